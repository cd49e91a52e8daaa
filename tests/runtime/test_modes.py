"""Segmenters that run pictures in parts, on tiny graphs whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from machine import Machine
from tiny_graphs import MakeBundle, UInt8Array

from twins_trt.errors import UsageError
from twins_trt.inference import InferenceMode, predict_mask
from twins_trt.runtime import Preprocessing, Segmenter, Tiles
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.predict import FLAGS

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


@pytest.fixture
def whole(make_bundle: MakeBundle) -> Callable[[UInt8Array], UInt8Array]:
    """What the graph gives of a picture that it sees as one. It sees 4×4 blocks alone, so parts see as much."""
    segmenter = Segmenter(make_bundle((8, 32, 200), (8, 32, 200), outputs=("logits",)))
    return lambda image: segmenter(image).mask


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [1, 2, (1, 2, 4)])
def test_large_pictures_go_through_a_small_graph_in_tiles(
    make_bundle: MakeBundle, picture: Draw, whole: Any, dtype: str, batch: Any
) -> None:
    segmenter = Segmenter(make_bundle(dtype=dtype, batch=batch, outputs=("mask", "logits")), mode="tile")
    image = picture(128, 96)
    assert np.mean(segmenter(image).mask == whole(image)) > 0.999  # but for the order of sums
    assert segmenter(picture(131, 97)).mask.shape == (131, 97)


def test_tiles_of_any_size_where_the_graph_is_dynamic(make_bundle: MakeBundle, picture: Draw, whole: Any) -> None:
    bundle = make_bundle(RANGE, RANGE, outputs=("logits",))
    image = picture(96, 160)
    for tiles in (Tiles(), Tiles((32, 48)), Tiles((32, 32), 0), Tiles(overlap=4)):
        assert np.mean(Segmenter(bundle, mode=tiles)(image).mask == whole(image)) > 0.999


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "mode",
    [
        InferenceMode("slide", crop=32, stride=20),
        InferenceMode("ms_flip", ratios=(0.5, 1.0), flip=True),
        InferenceMode("both", crop=24, stride=16, ratios=(0.75, 1.0), flip=True),
    ],
    ids=lambda mode: mode.name,
)
def test_modes_are_those_of_the_evaluation(
    make_bundle: MakeBundle, picture: Draw, dtype: str, mode: InferenceMode
) -> None:
    pytest.importorskip("cv2")
    bundle = make_bundle((8, 32, 96), (8, 32, 96), dtype=dtype, outputs=("logits",))
    image = picture(80, 64)
    mask = Segmenter(bundle, mode=mode)(image).mask
    planes = make_bundle((8, 32, 96), (8, 32, 96), dtype="float32", outputs=("logits",))
    engine = Segmenter(planes).engine
    wanted = predict_mask(lambda pixels: engine(pixels)["logits"], image, preprocessing=Preprocessing(), mode=mode)
    assert np.mean(mask == wanted) > 0.999  # the two graphs normalize in another order
    assert len(np.unique(mask)) > 2


def test_windows_that_a_small_picture_does_not_fill_are_padded(
    make_bundle: MakeBundle, picture: Draw, whole: Any
) -> None:
    bundle = make_bundle(32, 32, outputs=("logits",))
    image = picture(20, 32)
    assert np.mean(Segmenter(bundle, mode="tile")(image).mask == whole(image)) > 0.999
    slid = Segmenter(bundle, mode=InferenceMode("slide", crop=32, stride=20))(image).mask
    assert np.mean(slid[:-2] == whole(image)[:-2]) > 0.999  # the last rows blend with the padding, as windows do


def test_streams_run_in_parts_too(make_bundle: MakeBundle, picture: Draw) -> None:
    segmenter = Segmenter(make_bundle(RANGE, RANGE, outputs=("logits",)), mode="tile")
    images: list[Any] = [picture(100, 70), "no/such.png", picture(40, 90)]
    frames = list(segmenter.stream(images))
    assert [frame.error is None for frame in frames] == [True, False, True]
    for i in (0, 2):
        assert np.array_equal(frames[i].result().mask, segmenter(images[i]).mask)


def test_a_gpu_runs_pictures_in_parts(machine: Machine, picture: Draw) -> None:
    bundle = machine.bundle(outputs=("logits",))
    image = picture(100, 90)
    with Segmenter(bundle, mode="tile") as gpu, Segmenter(bundle, "onnxruntime", mode="tile") as cpu:
        assert gpu.engine.name == "tensorrt"
        assert np.array_equal(gpu(image).mask, cpu(image).mask)


def test_what_cannot_be_is_refused_with_the_way_out(make_bundle: MakeBundle, picture: Draw) -> None:
    logits = make_bundle(24, 32, outputs=("logits",))
    with pytest.raises(UsageError, match="there is no mode 'whale'"):
        Segmenter(logits, mode="whale")
    with pytest.raises(UsageError, match="gives logits can be run in parts") as caught:
        Segmenter(make_bundle(), mode="tile")
    assert caught.value.fix == 'build it with outputs="logits"'
    with pytest.raises(UsageError, match="ms_flip runs an image at several sizes") as caught:
        Segmenter(logits, mode="ms_flip")
    assert caught.value.fix == 'build it for a range: size="MIN:OPT:MAXxMIN:OPT:MAX"'
    with pytest.raises(UsageError, match="tiles of 64x64 pixels do not fit image uint8") as caught:
        Segmenter(logits, mode=Tiles((64, 64)))
    assert caught.value.fix == 'leave tile out, or build for them: size="HxW"'
    with pytest.raises(UsageError, match="overlap by 24"):
        Segmenter(logits, mode=Tiles(overlap=24))
    with pytest.raises(UsageError, match="the mode runs 80x64 pixels at once") as caught:
        Segmenter(logits, mode="slide")(picture(80, 64))
    assert caught.value.fix == 'use mode="tile", or build with a larger size'
    with on_command_line(FLAGS):  # of predict, which has no outputs: those are of build
        with pytest.raises(UsageError) as caught:
            Segmenter(make_bundle(), mode="tile")
        assert caught.value.fix == "build it with --outputs logits"
        with pytest.raises(UsageError) as caught:
            Segmenter(logits, mode=Tiles((64, 64)))
        assert caught.value.fix == "leave --tile out, or build for them: --size HxW"
        with pytest.raises(UsageError) as caught:
            Segmenter(logits, mode="slide")(picture(80, 64))
        assert caught.value.fix == "use --mode tile, or build with a larger --size"
