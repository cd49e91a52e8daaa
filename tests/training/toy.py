"""Models of a few layers and a data set of coloured blocks, small enough to train in a test; and what runs leave."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from twins_trt.models import zoo
from twins_trt.training import TrainRequest, TrainStep

Options = Callable[..., TrainRequest]
"""The fixture `options`."""

TOY, TOY_UPERNET, TOY_PCPVT = "twins_svt-toy_fpn", "twins_svt-toy_upernet", "twins_pcpvt-toy_fpn"
COLOURS = np.array([(200, 60, 40), (60, 230, 200), (20, 20, 120)], np.uint8)  # told apart in grey too
WIDTHS = {
    "embed_dims": (16, 32, 48, 64),
    "num_heads": (1, 2, 3, 4),
    "depths": (2, 2, 1, 1),
    "mlp_ratios": (2, 2, 2, 2),
    "fpn_channels": (32, 32),
}


def register() -> None:
    """Puts the toys into the zoo of this process."""
    for name, base in ((TOY, "svt-s_fpn"), (TOY_UPERNET, "svt-s_upernet"), (TOY_PCPVT, "pcpvt-s_fpn")):
        zoo.SPECS[name] = replace(zoo.get_spec(f"twins_{base}"), name=name, variant="toy", **WIDTHS)


def unregister() -> None:
    for name in (TOY, TOY_UPERNET, TOY_PCPVT):
        zoo.SPECS.pop(name, None)


def draw(root: Path, *, train: int = 8, val: int = 2, size: tuple[int, int] = (72, 88)) -> str:
    """A data set of 3 classes, blocks of 8 pixels in the colour of their class with noise; the top rows ignored."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            blocks = rng.integers(0, 3, (-(-size[0] // 8), -(-size[1] // 8))).astype(np.uint8)
            label = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
            image = np.clip(COLOURS[label].astype(int) + rng.integers(-30, 31, (*label.shape, 3)), 0, 255)
            label = label.copy()
            label[:3] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / f"{i}.png")
            Image.fromarray(label).save(root / split / "labels" / f"{i}.png")
    return f"folder:{root}"


def log_rows(out: str | Path) -> list[tuple[str, ...]]:
    """Every column of a run's log but the seconds."""
    with open(Path(out) / "log.csv", newline="") as file:
        return [tuple(row[:-1]) for row in csv.reader(file)]


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return loaded


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def stop_after(iteration: int) -> Callable[[TrainStep], None]:
    """An observer that sends Ctrl-C once."""

    def observe(step: TrainStep) -> None:
        if step.iteration == iteration and step.phase == "train":
            signal.raise_signal(signal.SIGINT)

    return observe
