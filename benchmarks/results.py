"""Results files: what a benchmark measured, where, when and with which versions.

`python -m benchmarks.render` renders every table of the documentation from them, so no figure is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twins_trt.codec import encode
from twins_trt.files import whole_file
from twins_trt.profiling import machine

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("twins-trt", "torch", "triton", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13", "numpy")


def write_results(
    name: str,
    *,
    command: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    folder: Path = RESULTS,
) -> Path:
    """Writes `NAME.json` into `folder`, whole or not at all. command: makes the file again."""
    content = {
        "benchmark": name,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    with whole_file(path, durable=False) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read_results(name: str, *, folder: Path = RESULTS) -> dict[str, Any]:
    """The content of `NAME.json` in `folder`."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system, GPU and board, without the host's name."""
    return encode(machine.describe_machine())


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a figure depends on."""
    return machine.describe_versions(PACKAGES)


def describe_run(results: Mapping[str, Any]) -> str:
    """The line below a table: machine, versions, date."""
    where, versions = results["machine"], results["versions"]
    memory = "" if where["memory_gib"] is None else f", {where['memory_gib']} GiB"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{where['processor']}, {where['cores']} cores{memory}, {where['gpu'] or 'no GPU'}; {named}; {results['date']}"
    )
