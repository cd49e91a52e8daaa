"""Results files: what a benchmark measured, where, when, with which versions. Every table in the documentation is
rendered from one (`python -m benchmarks.render`), so no figure is typed by hand."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("twins-trt", "torch", "triton", "onnx", "onnxruntime", "tensorrt-rtx-cu13", "numpy")


def write_results(name: str, *, command: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `results/NAME.json`, whole or not at all. `command`: what makes it again."""
    content = {
        "benchmark": name,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def read_results(name: str) -> dict[str, Any]:
    """The content of `results/NAME.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system and GPU, without the host's name."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages that decide a figure; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_run(results: Mapping[str, Any]) -> str:
    """One line for under a table: machine, versions, date."""
    machine, versions = results["machine"], results["versions"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']} GiB"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['gpu'] or 'no GPU'}; "
        f"{named}; {results['date']}"
    )


def _processor() -> str:
    """Model and the vector extensions that matrix products live on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", named.get("Features", "")).split())
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve") if flag in flags]
    return " ".join([named.get("model name", platform.machine()), *([f"({', '.join(vectors)})"] if vectors else [])])


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> str | None:
    from twins_trt.device import current_device

    device = current_device()
    return None if device is None else f"{device.name} ({device.target})"
