"""The whole way from a checkpoint to a report, on a machine with neither GPU nor network nor data.

Scenes are drawn, ranges calibrated, the precision plan made, the INT8 graph judged against PyTorch and, where
TensorRT-RTX is installed, compiled and audited; then it is profiled, and a report shows everything. The demo calls the
same functions as the other commands, so it also shows how to call them from Python.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from twins_trt.builders.bundle.run import BuildReport, build_bundle
from twins_trt.builders.gate import gate_bundle, reference_images
from twins_trt.builders.gate.record import Gallery
from twins_trt.data import open_dataset
from twins_trt.demo.scenes import draw_scene, write_scenes
from twins_trt.errors import UsageError
from twins_trt.files import whole_file
from twins_trt.models.weights import load_weights
from twins_trt.models.zoo import DEMO
from twins_trt.profiling.candidates import bundle_candidate
from twins_trt.profiling.measure import profile
from twins_trt.profiling.results import ProfileOptions
from twins_trt.profiling.saved import save_profile
from twins_trt.progress import Clock, Progress
from twins_trt.report import write_report
from twins_trt.runtime import Bundle, RuntimeOptions, Segmenter
from twins_trt.runtime.manifest import GATE
from twins_trt.spelling import spelled
from twins_trt.verbs.build import BuildRequest
from twins_trt.verbs.demo import DemoRequest

TARGETS = ("sm_86", "sm_89", "sm_120")
"""GPUs that one engine of TensorRT-RTX runs on; the build needs none of them."""

FIRST_CALIBRATION_SCENE = 300_000  # neither training nor the checkpoint's score used any of these
FIRST_GATE_SCENE = 400_000
SHOWN_SCENE = 500_003
ENLARGED = 2

_STEPS = ("scenes", "build", "pictures", "profile", "report", "overlay")


@dataclass(frozen=True)
class DemoResult:
    """The results of a demo. passed: the gate's verdict. simulated: ONNX Runtime stood in for the engine, which
    needs its GPU. compiler: of the engine; empty where none was built. seconds: wall time by step."""

    passed: bool
    simulated: bool
    miou: float
    drop: float
    drop_high: float
    compiler: str
    fused_attentions: int | None
    attentions: int | None
    bundle: str
    report: str
    overlay: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return sum(self.seconds.values())


def run_demo(request: DemoRequest, *, progress: Progress | None = None) -> DemoResult:
    """Fills `request.out` with scenes, bundle, pictures, profile, report and overlay.

    Raises `UsageError` where that folder is not empty, `GateError` where the gate fails and no fallback helps, and as
    the steps do.
    """
    out = Path(request.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", f"name a new folder: {spelled('out', 'DIR')}")
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(_STEPS, progress)
    data = _draw(request, out, clock)
    built = _build(request, out, data, clock)
    pictures = _draw_worst(request, built.bundle, data, out / "worst", clock)
    bundle = _profile(request, built.bundle, clock)
    clock.begin("")
    report = out / "report.html"
    write_report(bundle.path, report, pictures=pictures)
    clock.begin("")
    overlay = _overlay(bundle, out / "overlay.png", RuntimeOptions(threads=request.threads))
    clock.end()
    gate, audit = built.gate, next(iter(built.audits.values()), None)
    assert gate is not None  # the request has gate_on
    engines = bundle.manifest.engines
    return DemoResult(
        passed=gate.passed,
        simulated=gate.simulated,
        miou=gate.scores.miou,
        drop=gate.drop.mean,
        drop_high=gate.drop.high,
        compiler=f"{engines[0].flavour} {engines[0].version}" if engines else "",
        fused_attentions=None if audit is None else audit.attentions,
        attentions=None if audit is None else audit.expected_attentions,
        bundle=str(bundle.path),
        report=str(report),
        overlay=str(overlay),
        seconds={name: round(value, 2) for name, value in clock.seconds.items()},
    )


def _draw(request: DemoRequest, out: Path, clock: Clock) -> str:
    clock.begin("")
    parts = (("train", FIRST_CALIBRATION_SCENE, request.calibration), ("val", FIRST_GATE_SCENE, request.gate))
    for split, first, count in parts:
        seeds = range(first, first + count)
        data = write_scenes(out / "scenes", split, seeds, size=DEMO.crop_size, progress=clock.progress)
    return data


def _build(request: DemoRequest, out: Path, data: str, clock: Clock) -> BuildReport:
    clock.begin("")
    compiles = find_spec("tensorrt_rtx") is not None
    build = BuildRequest(
        DEMO.name,
        str(out / "demo.bundle"),
        precision="int8",
        targets=TARGETS if compiles else ("cpu",),
        flavour=("tensorrt_rtx",) if compiles else None,
        calibrate_on=data,
        calib_images=request.calibration,
        gate_on=data,
        threads=request.threads,
    )
    return build_bundle(build, progress=_as_detail(clock))


def _draw_worst(request: DemoRequest, bundle: Bundle, data: str, folder: Path, clock: Clock) -> Path:
    """Draws the pictures of `twins-trt gate --pictures` for the images that the bundle's verdict names."""
    clock.begin("")
    model, _ = load_weights(DEMO.name)
    names = {each["name"] for each in bundle.read_json(GATE)["worst"]}
    dataset = open_dataset(data, split="val")
    worst = replace(dataset, items=tuple(item for item in dataset.items if item.name in names))
    gallery = Gallery(folder, bundle.interface.palette)
    gate_bundle(
        bundle,
        reference_images(bundle, model, worst),
        options=RuntimeOptions(threads=request.threads),
        progress=clock.progress,
        look=gallery,
    )
    gallery.save()
    return folder


def _profile(request: DemoRequest, bundle: Bundle, clock: Clock) -> Bundle:
    """Measures latency, stages and layers, and saves them in the bundle."""
    clock.begin("")
    measured = profile(
        [bundle_candidate(bundle.path)],
        ProfileOptions(rounds=request.rounds, warm_up_s=5.0, batches=(), threads=request.threads, power_s=0.0),
        command=f"twins-trt profile {bundle.path} --rounds {request.rounds} --save",
        progress=_as_detail(clock),
    )
    return save_profile(bundle, measured)


def _overlay(bundle: Bundle, path: Path, options: RuntimeOptions) -> Path:
    """Draws a scene and its segmentation side by side."""
    scene = draw_scene(*DEMO.crop_size, seed=SHOWN_SCENE)
    with Segmenter(bundle, options=options) as segmenter:
        sheet = Image.fromarray(np.concatenate([scene.image, segmenter(scene.image).overlay()], axis=1))
    with whole_file(path, durable=False) as file:
        sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.LANCZOS).save(file, "PNG")
    return path


def _as_detail(clock: Clock) -> Progress:
    """A `Progress` for work with steps of its own, which become details of the demo's step."""
    return lambda step, detail, share: clock.progress("", f"{step} {detail}".strip(), share)
