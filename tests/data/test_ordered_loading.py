from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twins_trt.data import open_dataset
from twins_trt.data.loading import load_in_order
from twins_trt.errors import DataError, ImageError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(9):
        Image.fromarray(np.full((5, 7, 3), index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


@dataclass(frozen=True)
class Reader:
    """Slow for the first items, so that later ones are ready before them; leaves a file behind for every call."""

    folder: Path

    def __call__(self, item: int) -> int:
        (self.folder / f"read_{item}").touch()
        if item == 13:
            os._exit(1)
        time.sleep(0.2 if item == 0 else 0)
        return item * item


def test_order_does_not_depend_on_the_number_of_workers(folder: Path) -> None:
    dataset = open_dataset(f"folder:{folder}")
    alone = [(s.name, s.image.tobytes()) for s in dataset.load()]
    together = [(s.name, s.image.tobytes()) for s in dataset.load(workers=2)]
    assert [name for name, _ in alone] == [str(i) for i in range(9)]
    assert together == alone


def test_reading_ahead_is_bounded_and_stops_with_the_consumer(tmp_path: Path) -> None:
    results = load_in_order(Reader(tmp_path), range(100), workers=2, ahead=2)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    # Two were taken, so at most two more than workers * ahead = 4 can have been handed out.
    assert len(list(tmp_path.glob("read_*"))) <= 6
    assert not multiprocessing.active_children()


def test_an_error_comes_where_its_sample_was_due(folder: Path) -> None:
    (folder / "images/4.png").write_bytes(b"broken")
    names = []
    with pytest.raises(ImageError, match=r"4\.png") as caught:
        for sample in open_dataset(f"folder:{folder}").load(workers=2):
            names.append(sample.name)
    assert names == ["0", "1", "2", "3"]
    assert caught.value.fix == "replace or remove the file"  # typed errors survive the way between processes


def test_a_worker_that_dies_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="workers=0"):
        list(load_in_order(Reader(tmp_path), [1, 13, 2, 3], workers=1))


def test_a_negative_number_of_workers_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers is -1"):
        load_in_order(Reader(tmp_path), [1], workers=-1)
