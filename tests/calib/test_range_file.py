"""The range file belongs to one graph, one set of images and one set of options, and says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calib_graphs import OBSERVED, photos, write_graph

from twins_trt.calib import CalibrationOptions, Ranges, calibrate, load_ranges, save_ranges
from twins_trt.calib.images import data_key, digest
from twins_trt.errors import DataError, UsageError

OPTIONS = CalibrationOptions(minimum=4)
IMAGES = photos(4)


@pytest.fixture(scope="module")
def ranges(graph: Path) -> Ranges:
    return calibrate(graph, IMAGES, options=OPTIONS)


@pytest.fixture
def file(ranges: Ranges, tmp_path: Path) -> Path:
    return save_ranges(ranges, tmp_path / "calibration.json")


def test_round_trip(ranges: Ranges, file: Path, graph: Path) -> None:
    loaded = load_ranges(file, graph=graph, images=reversed(IMAGES), options=OPTIONS)
    assert loaded == ranges
    assert loaded.key == ranges.key == json.loads(file.read_text())["key"]
    assert tuple(loaded.ranges) == OBSERVED
    assert not list(file.parent.glob(".*"))


def test_one_pixel_one_weight_or_one_option_is_another_key(ranges: Ranges, graph: Path, tmp_path: Path) -> None:
    pixel = [image.copy() for image in IMAGES]
    pixel[2][5, 7, 1] ^= 1
    keys = {
        ranges.key,
        calibrate(graph, pixel, options=OPTIONS).key,
        calibrate(write_graph(tmp_path / "other.onnx", seed=1), IMAGES, options=OPTIONS).key,
        calibrate(graph, IMAGES, options=replace(OPTIONS, percentile=99.9)).key,
        calibrate(graph, IMAGES, options=replace(OPTIONS, bins=2048)).key,
        calibrate(graph, IMAGES, options=replace(OPTIONS, observers=("mse",))).key,
        calibrate(graph, IMAGES[:3] + photos(1, first=9), options=OPTIONS).key,
        calibrate(graph, [*IMAGES, IMAGES[0]], options=OPTIONS).key,
    }
    assert len(keys) == 8


def test_the_same_bytes_in_another_shape_are_other_images() -> None:
    image = IMAGES[0]
    turned = image.reshape(image.shape[1], image.shape[0], 3)
    assert data_key([digest(image)]) != data_key([digest(turned)])
    assert digest(image) == digest(np.asfortranarray(image))


def test_stale_files_are_refused_with_both_keys(ranges: Ranges, file: Path, graph: Path, tmp_path: Path) -> None:
    pixel = [*IMAGES[:3], IMAGES[3] ^ np.uint8(1)]
    other = write_graph(tmp_path / "other.onnx", seed=1)
    changed = replace(OPTIONS, percentile=99.0)
    for graph_given, images, options, said in (
        (other, IMAGES, OPTIONS, "graph"),
        (graph, pixel, OPTIONS, "data"),
        (graph, IMAGES, changed, "settings"),
        (other, pixel, changed, "graph and other data and other settings"),
    ):
        with pytest.raises(DataError, match=f"is of another {said}:") as caught:
            load_ranges(file, graph=graph_given, images=images, options=options)
        keys = re.findall(r"[0-9a-f]{64}", caught.value.cause)
        assert keys == [ranges.key, calibrate(graph_given, images, options=options).key]
        assert "twins-trt calibrate" in str(caught.value.fix)


def test_altered_and_damaged_files(file: Path, graph: Path) -> None:
    whole = json.loads(file.read_text())
    tensor = OBSERVED[0]
    for fields, said in (
        ({"graph_sha256": "0" * 64}, "it was altered"),
        ({"images": "four"}, "images is 'four'"),
        ({"version": 2}, "version is 2, this twins-trt reads 1"),
        ({"settings": whole["settings"] | {"bins": 77}}, "bins is 77"),
        ({"surprise": 1}, "surprise"),
        ({"ranges": {tensor: {"min": 0.0, "max": 1.0, "amax": {"mse": 1.0}}}}, f"ranges.{tensor} is"),
        ({"ranges": {tensor: {"min": 0.0, "max": 1.0, "amax": dict.fromkeys(OPTIONS.observers, -1.0)}}}, "is {'min'"),
    ):
        file.write_text(json.dumps(whole | fields))
        with pytest.raises(DataError, match=re.escape(said)):
            load_ranges(file, graph=graph)
    for text, said in (("{", "is no JSON"), ("[]", "holds list")):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            load_ranges(file, graph=graph)
    with pytest.raises(DataError, match="cannot be read"):
        load_ranges(file.with_name("absent.json"), graph=graph)


def test_amax_of_the_first_observer_unless_one_is_named(ranges: Ranges) -> None:
    each = ranges.ranges["attn/norm"]
    assert ranges.amax("attn/norm") == each.amax[ranges.observers[0]]
    assert ranges.amax("attn/norm", "minmax") == each.amax["minmax"] == max(-each.min, each.max)
    with pytest.raises(UsageError, match="no observer 'kl'"):
        ranges.amax("attn/norm", "kl")
    with pytest.raises(DataError, match="no tensor 'head'"):
        ranges.amax("head")


def test_a_file_that_cannot_be_written(ranges: Ranges, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        save_ranges(ranges, tmp_path / "absent" / "calibration.json")
