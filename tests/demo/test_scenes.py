"""Drawn scenes: the same from the same seed, with labels that fit, in the layout that every command reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from told import Told

from twins_trt.data import open_dataset
from twins_trt.demo.scenes import CLASSES, PALETTE, draw_scene, write_scenes


def test_a_seed_is_a_scene() -> None:
    one, again, other = (draw_scene(80, 120, seed=seed) for seed in (3, 3, 4))
    assert one.image.shape == (80, 120, 3) and one.image.dtype == np.uint8
    assert one.label.shape == (80, 120) and one.label.dtype == np.uint8
    assert np.array_equal(one.image, again.image) and np.array_equal(one.label, again.label)
    assert (one.label != other.label).mean() > 0.05


def test_every_class_is_drawn_and_no_other() -> None:
    labels = [draw_scene(80, 120, seed=seed).label for seed in range(20)]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=len(CLASSES))
    assert len(counts) == len(CLASSES) == len(PALETTE) == len(set(PALETTE))
    shares = counts / counts.sum()
    assert (shares > 0.003).all() and shares.max() < 0.5


def test_light_varies_more_than_classes_do() -> None:
    """A threshold on brightness does not solve the task: the means of one class vary more between scenes than the means
    of two neighbouring classes differ."""
    scenes = [draw_scene(80, 120, seed=seed) for seed in range(12)]
    road, pavement = (
        np.array([scene.image[scene.label == CLASSES.index(name)].mean() for scene in scenes])
        for name in ("road", "pavement")
    )
    assert road.std() > 10
    assert road.max() > pavement.min()


def test_scenes_are_a_data_set(tmp_path: Path) -> None:
    told = Told()
    source = write_scenes(tmp_path, "train", range(2), size=(64, 96), progress=told)
    write_scenes(tmp_path, "val", [7], size=(64, 96))
    train, val = (open_dataset(source, split=split) for split in ("train", "val"))
    assert told.calls == [("scenes", "1 of 2", 0.5), ("scenes", "2 of 2", 1.0)]
    assert train.classes == CLASSES and train.names == ("scene000000", "scene000001") and val.names == ("scene000007",)
    assert train.labelled
    sample, scene = val[0], draw_scene(64, 96, seed=7)
    assert np.array_equal(sample.image, scene.image)
    assert sample.label is not None and np.array_equal(sample.label, scene.label)


@pytest.mark.parametrize("size", [(32, 32), (33, 95), (200, 40)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    assert draw_scene(*size, seed=1).label.shape == size
