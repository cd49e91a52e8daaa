"""What is built on the desktop for a simulated Jetson: bundles of a checkpoint, packed, with the pack of the gate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT, SimulatedJetPack, locked
from PIL import Image
from simulation import TIMEOUT_S, Done

PACKAGE = ROOT / "twins_trt"
SIZE = ("--size", "96x128")
"""Of every graph: small, because a CPU computes it."""
TWINS = (sys.executable, "-m", "twins_trt")


@dataclass(frozen=True)
class Subject:
    """A checkpoint with labelled images. build: more flags of `build`. gate: of both gates. photos: to predict."""

    name: str
    checkpoint: Path
    data: str
    photos: tuple[Path, ...]
    build: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """A folder with road.bundle and the one to compare it with, other.bundle, each also as .tar, and road.pack."""

    folder: Path
    precision: str
    other: str


def twins(folder: Path, *words: object) -> Done:
    """`twins-trt WORDS` in the project's own environment."""
    done = subprocess.run(
        [*TWINS, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def build(folder: Path, subject: Subject, jetpack: SimulatedJetPack) -> Built:
    """Builds for a JetPack, as its user does: INT8 to be compared with FP16.

    TensorRT 8.6 reads no INT8 beside FP16 (`twins-trt targets`), so there FP16 is compared with FP32.
    """
    precision, other = ("fp16", "fp32") if jetpack.release == "6.0" else ("int8", "fp16")
    built = Built(folder, precision, other)
    with locked(folder.with_suffix(".lock")):
        if not (folder / "complete").is_file():
            folder.mkdir(exist_ok=True)
            for name, each in (("road", precision), ("other", other)):
                _build(folder, subject, jetpack, name=name, precision=each)
            (folder / "complete").touch()
    return built


def _build(folder: Path, subject: Subject, jetpack: SimulatedJetPack, *, name: str, precision: str) -> None:
    ranges: Sequence[str] = ("--calib-data", subject.data, "--calib-images", "8") if precision == "int8" else ()
    graph = ("--precision", precision, "--target", jetpack.name, "--jetpack", jetpack.release)
    # As the simulated GPU: sums on several threads differ in their last bit, and tests run side by side.
    gate = ("--gate-data", subject.data, *subject.gate, "--pack", "road.pack", "--threads", "1")
    out = ("--out", f"{name}.bundle", "--overwrite")
    done = twins(folder, "build", subject.checkpoint, *graph, *subject.build, *ranges, *gate, *out)
    assert done.code == 0, done.err
    pack = ("--pack", "road.pack") if name == "road" else ()  # the other's engine is judged by a pack beside it
    done = twins(folder, "export-to", "device", f"{name}.bundle", *pack, "--out", f"{name}.tar")
    assert done.code == 0, done.err


def shrunk(pictures: Path, folder: Path) -> tuple[Path, ...]:
    """Two pictures at the graph's size: a device without OpenCV resizes others with Pillow, which rounds otherwise."""
    folder.mkdir(exist_ok=True)
    made = []
    for picture in sorted(pictures.iterdir())[:2]:
        made.append(folder / f"{picture.stem}.png")
        Image.open(picture).convert("RGB").resize((128, 96)).save(made[-1])
    return tuple(made)
