"""A bundle with everything a report shows. Its names try to break out of the page, its figures are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.profiling.results_of import measurement, profile
from tests.tiny_graphs import MakeBundle
from twins_trt.profiling.results import Measurement, Profile, write_profile
from twins_trt.runtime import Bundle, EngineFile, Figure, Source, write_bundle

SCRIPT = "<script>document.title='broken in'</script>"
HOSTILE = (SCRIPT, '"><img src=x onerror=alert(1)>', "a & b | c", "`pole`", "*sky* [x](javascript:alert(1))")
WORST = ("evil<b>name", "second'\"&")


def gate(*, passed: bool = True, simulated: bool = True) -> dict[str, Any]:
    """What `gate.json` holds, in round numbers: the classes lose 0.1, 0.2, ... points; the last one is never seen."""
    iou = [90.0, 80.0, 70.0, 60.0, None]
    losses = [0.1, 0.2, 1.5, 6.0, None]
    before = [None if a is None or b is None else a + b for a, b in zip(iou, losses, strict=True)]
    return {
        "passed": passed,
        "reasons": [] if passed else ["the mIoU may drop by 2.000 points, at most 0.5 are allowed"],
        "engine": "onnxruntime",
        "simulated": simulated,
        "precision": "int8",
        "dataset": f"folder:{SCRIPT}",
        "split": "val",
        "images": 40,
        "thresholds": {"max_drop": 0.5, "min_images": 30, "min_agreement": None},
        "drop": {"mean": 0.21, "low": 0.05, "high": 0.41 if passed else 2.0, "confidence": 0.95},
        "reference": {"miou": 76.95, "iou": before},
        "scores": {"miou": 75.0, "iou": iou},
        "classes": list(HOSTILE),
        "class_drops": losses,
        "agreement": 0.98765,
        "worst": [
            {"name": WORST[0], "agreement": 0.9, "drop": 3.5},
            {"name": WORST[1], "agreement": 0.95, "drop": -1.0},
        ],
        "repeats": True,
        "batch_agrees": None,
        "measured_on": "a test",
        "seeded": False,
    }


def audit() -> dict[str, Any]:
    """What `audit.json` holds for one engine of 12 kernels."""
    found = {
        "kernels": 12,
        "by_type": {"gemm": 7, "kgen": 4, SCRIPT: 1},
        "attentions": 2,
        "expected_attentions": 2,
        "unfused_attentions": [],
        "copies": 1,
        "pointwise": 3,
        "bytes_moved": 2_500_000,
        "dynamic": False,
        "float32": ["a", "b"],
        "largest": [{"kernel": SCRIPT, "shape": [1, 24, 32], "dtype": "float16", "nbytes": 1536}],
    }
    engine = {"file": "engines/x.engine", "flavour": "tensorrt_rtx", "version": "1.7", "targets": ["sm_86"]}
    return {"engines": [{**engine, "audit": found}]}


def full_bundle(make_bundle: MakeBundle) -> Bundle:
    """A bundle with all files that a report reads."""
    plain = make_bundle(
        classes=HOSTILE,
        precision="int8",
        gate="passed",
        source=Source(checkpoint=f"{SCRIPT}.pth", sha256="cd" * 32),
        engines=(EngineFile("engines/x.engine", "tensorrt_rtx", "1.7", ("sm_86",)),),
        figures=(Figure("latency", 12.5, "ms", SCRIPT, True),),
        tools={"twins-trt": "0.1", SCRIPT: "1"},
    )
    plan = {"model": "m", "level": "int8-linear", "blocks": {SCRIPT: "int8-linear", "head": "fp16"}, "smooth": 0.5}
    files: dict[str, bytes | Path] = {name: plain.file(name) for name in plain.files}
    files |= {f"{name}.json": json.dumps(value).encode() for name, value in (("gate", gate()), ("audit", audit()))}
    files["plan.json"] = json.dumps(plan).encode()
    return write_bundle(plain.path, plain.manifest, files, overwrite=True)


def full_profile(folder: Path, bundle: Bundle) -> Path:
    """A profile of that bundle beside another subject, of 120 calls each."""
    rng = np.random.default_rng(0)
    graph = bundle.manifest.graph_sha256

    def calls(middle: float) -> list[float]:
        return (middle * rng.lognormal(0, 0.08, 120)).tolist()

    ours = measurement(SCRIPT, calls(12.0))
    ours = replace(ours, subject=replace(ours.subject, graph_sha256=graph, simulated=True))
    found: tuple[Measurement, ...] = (ours, measurement("plain export", calls(21.0)))
    both: Profile = replace(profile(*found), warnings=("the <b>machine</b> was busy",))
    path = folder / "profile.json"
    write_profile(path, both)
    return path


def pictures(folder: Path) -> Path:
    """Five panels of 32 × 24 pixels for each of the worst images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in WORST:
        Image.fromarray(rng.integers(0, 255, (24, 5 * 32, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def ladder(folder: Path) -> Path:
    """Three rungs, the last of which fails and has no engine."""
    rungs = [  # as benchmarks/ladder.py writes them
        {"name": "fp32", "miou": 77.0, "drop": 0.0, "drop_low": 0.0, "drop_high": 0.0, "cpu_ms": 20.0},
        {"name": SCRIPT, "miou": 76.8, "drop": 0.2, "drop_low": 0.1, "drop_high": 0.3, "engine_bytes": 5_500_000},
        {"name": "int8-attention", "miou": 70.0, "drop": 7.0, "drop_low": 6.0, "drop_high": 8.0, "passed": False},
    ]
    path = folder / "ladder.json"
    path.write_text(json.dumps({"rows": rungs}))
    return path
