"""The whole way from a checkpoint to a report, on a machine with neither GPU nor network nor data.

Scenes are drawn, ranges calibrated, the precision plan made, the INT8 graph judged against PyTorch and, where
TensorRT-RTX is installed, compiled and audited; then it is profiled, and everything goes on one page. Nothing here does
any of that itself: it calls what the other commands call, so it also shows how they are called from Python.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from twins_trt.builders.bundle.run import BuildReport, build_bundle
from twins_trt.builders.gate import gate_bundle
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
from twins_trt.spelling import spelled
from twins_trt.verbs.build import BuildRequest
from twins_trt.verbs.demo import DemoRequest

TARGETS = ("sm_86", "sm_89", "sm_120")
"""GPUs that one engine of TensorRT-RTX serves, built without any of them."""

FIRST_CALIBRATION_SCENE = 300_000  # none of these were trained on, or scored with the checkpoint
FIRST_GATE_SCENE = 400_000
SHOWN_SCENE = 500_003
ENLARGED = 2

_STEPS = ("scenes", "build", "pictures", "profile", "report", "overlay")


@dataclass(frozen=True)
class DemoResult:
    """What came of it. passed: the gate's verdict. simulated: ONNX Runtime stood in for the engine, which needs its
    GPU. compiler: what built the engine, empty where none was built. seconds: wall time by step."""

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


def run_demo(options: DemoRequest, *, progress: Progress | None = None) -> DemoResult:
    """Fills `options.out` with scenes, bundle, pictures, profile, report and overlay.

    Raises `UsageError` where that folder holds something, `GateError` where the gate fails and no fallback helps, and
    whatever a step of it raises.
    """
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", f"name a new folder: {spelled('out', 'DIR')}")
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(_STEPS, progress)
    data = _draw(options, out, clock)
    built = _build(options, out, data, clock)
    pictures = _draw_worst(options, built.bundle, data, out / "worst", clock)
    bundle = _profile(options, built.bundle, clock)
    clock.begin("")
    report = out / "report.html"
    write_report(bundle.path, report, pictures=pictures)
    clock.begin("")
    overlay = _overlay(bundle, out / "overlay.png", RuntimeOptions(threads=options.threads))
    clock.end()
    gate, audit = built.gate, next(iter(built.audits.values()), None)
    assert gate is not None  # the build was asked for it
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


def _draw(options: DemoRequest, out: Path, clock: Clock) -> str:
    clock.begin("")
    total = options.calibration + options.gate
    parts = (("train", FIRST_CALIBRATION_SCENE, options.calibration), ("val", FIRST_GATE_SCENE, options.gate))
    drawn = 0

    def one_more(_: int) -> None:
        nonlocal drawn
        drawn += 1
        clock.progress("", f"{drawn} of {total}", drawn / total)

    for split, first, count in parts:
        data = write_scenes(out / "scenes", split, range(first, first + count), size=DEMO.crop_size, progress=one_more)
    return data


def _build(options: DemoRequest, out: Path, data: str, clock: Clock) -> BuildReport:
    clock.begin("")
    compiles = find_spec("tensorrt_rtx") is not None
    wanted = BuildRequest(
        DEMO.name,
        str(out / "demo.bundle"),
        precision="int8",
        targets=TARGETS if compiles else ("cpu",),
        flavour=("tensorrt_rtx",) if compiles else None,
        calibrate_on=data,
        calib_images=options.calibration,
        gate_on=data,
        threads=options.threads,
    )

    return build_bundle(wanted, progress=_inside(clock))


def _draw_worst(options: DemoRequest, bundle: Bundle, data: str, folder: Path, clock: Clock) -> Path:
    """The pictures of `twins-trt gate --pictures`, of the images that the verdict in the bundle names."""
    clock.begin("")
    model, _ = load_weights(DEMO.name)
    names = {each["name"] for each in bundle.read_json("gate.json")["worst"]}
    dataset = open_dataset(data, split="val")
    worst = replace(dataset, items=tuple(item for item in dataset.items if item.name in names))
    gallery = Gallery(folder, bundle.interface.palette)
    gate_bundle(
        bundle,
        model,
        worst,
        options=RuntimeOptions(threads=options.threads),
        progress=clock.progress,
        look=gallery,
    )
    gallery.save()
    return folder


def _profile(options: DemoRequest, bundle: Bundle, clock: Clock) -> Bundle:
    """Latency, stages and layers, kept in the bundle."""
    clock.begin("")
    found = profile(
        [bundle_candidate(bundle.path)],
        ProfileOptions(rounds=options.rounds, warm_up_s=5.0, batches=(), threads=options.threads, power_s=0.0),
        command=f"twins-trt profile {bundle.path} --rounds {options.rounds} --save",
        progress=_inside(clock),
    )
    return save_profile(bundle, found)


def _overlay(bundle: Bundle, path: Path, options: RuntimeOptions) -> Path:
    """A scene and its segmentation side by side."""
    scene = draw_scene(*DEMO.crop_size, seed=SHOWN_SCENE)
    with Segmenter(bundle, options=options) as segmenter:
        sheet = Image.fromarray(np.concatenate([scene.image, segmenter(scene.image).overlay()], axis=1))
    with whole_file(path, durable=False) as file:
        sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.LANCZOS).save(file, "PNG")
    return path


def _inside(clock: Clock) -> Progress:
    """For what has steps of its own: they become details of the demo's."""
    return lambda step, detail, share: clock.progress("", f"{step} {detail}".strip(), share)
