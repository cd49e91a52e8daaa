"""Pictures of any kind and size, through fixed and dynamic graphs, against classes computed in numpy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bilinear import bilinear
from PIL import Image
from threads import in_threads
from tiny_graphs import CLASSES, PALETTE, QUARTER, MakeBundle, UInt8Array, nearest_class, scores

from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.errors import BundleError, EngineError, ImageError, UsageError
from twins_trt.runtime import Bundle, Preprocessing, RuntimeOptions, Segmenter, Source, TensorSpec, open_engine

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


class NumpyEngine:
    """An engine without a runtime: counts its calls and the batches it saw, and notices threads that overlap."""

    name = "numpy"

    def __init__(self, bundle: Bundle, *, concurrent: bool = True, delay: float = 0.0) -> None:
        self.inputs, self.outputs = bundle.interface.inputs, bundle.interface.outputs
        self.concurrent, self.delay = concurrent, delay
        self.batches: list[int] = []
        self.inside = self.most_inside = 0
        self.failing = False

    def __call__(
        self, image: Any, *, outputs: Sequence[str] | None = None, out: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(self.delay)
        self.inside -= 1
        if self.failing:
            raise EngineError("the enqueue failed")
        assert self.inputs[0].fits(image.shape)
        self.batches.append(len(image))
        return {"mask": nearest_class(image)}

    def close(self) -> None:
        self.inputs = ()


def mask_from_blocks(image: UInt8Array, *sizes: tuple[int, int]) -> tuple[UInt8Array, Any]:
    """Classes and the margin between the best two: logits of 4×4 blocks, resized to each of `sizes` in turn."""
    height, width = image.shape[0] // QUARTER, image.shape[1] // QUARTER
    cut = image[: height * QUARTER, : width * QUARTER]
    full = scores(cut).reshape(height, QUARTER, width, QUARTER, -1).mean((1, 3))
    for size in sizes:
        full = bilinear(full, size)
    ordered = np.sort(full, -1)
    return full.argmax(-1).astype(np.uint8), ordered[..., -1] - ordered[..., -2]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_picture_of_the_graphs_size_is_classified_pixel_by_pixel(
    make_bundle: MakeBundle, picture: Draw, dtype: str
) -> None:
    image = picture(24, 32)
    result = Segmenter(make_bundle(dtype=dtype))(image)
    assert result.mask.dtype == np.uint8
    assert np.array_equal(result.mask, nearest_class(image))
    assert (result.classes, result.palette) == (CLASSES, PALETTE)
    assert result.image is image


def test_every_way_to_give_a_picture_is_the_same_picture(
    make_bundle: MakeBundle, picture: Draw, tmp_path: Path
) -> None:
    image = picture(24, 32)
    Image.fromarray(image).save(tmp_path / "x.png")
    bundle = make_bundle()
    with Segmenter(str(bundle.path)) as segmenter:
        for given in (image, Image.fromarray(image), tmp_path / "x.png", str(tmp_path / "x.png"), image[None]):
            result = segmenter(given)
            one = result[0] if isinstance(result, list) else result
            assert np.array_equal(one.mask, nearest_class(image))
    with pytest.raises(EngineError, match="is closed"):
        segmenter(image)


def test_a_fixed_graph_stretches_and_brings_the_mask_back_to_the_nearest_pixel(
    make_bundle: MakeBundle, picture: Draw
) -> None:
    image = picture(61, 47)
    result = Segmenter(make_bundle())(image)
    assert np.array_equal(result.mask, resize_mask(nearest_class(resize_image(image, (24, 32))), (61, 47)))


def test_letterbox_cuts_the_padding_off_again(make_bundle: MakeBundle, picture: Draw) -> None:
    tall, wide = picture(48, 20), picture(12, 32)
    high, broad = Segmenter(make_bundle(), fit="letterbox")([tall, wide])
    assert np.array_equal(high.mask, resize_mask(nearest_class(resize_image(tall, (24, 10))), (48, 20)))
    assert np.array_equal(broad.mask, nearest_class(wide))  # fits without a resize


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_logits_are_resized_before_the_argmax(make_bundle: MakeBundle, picture: Draw, fit: Any) -> None:
    image = picture(48, 40)
    mask = Segmenter(make_bundle(outputs=("logits",)), fit=fit)(image).mask
    if fit == "stretch":
        wanted, margin = mask_from_blocks(resize_image(image, (24, 32)), (24, 32), (48, 40))
    else:
        padded = np.empty((24, 32, 3), np.uint8)
        padded[:] = (124, 116, 104)
        padded[:, :20] = resize_image(image, (24, 20))
        canvas = bilinear(scores(padded).reshape(6, QUARTER, 8, QUARTER, -1).mean((1, 3)), (24, 32))
        full = bilinear(canvas[:, :20], (48, 40))
        wanted, margin = full.argmax(-1).astype(np.uint8), np.diff(np.sort(full, -1)[..., -2:])[..., 0]
    assert mask.shape == (48, 40)
    assert not (mask != wanted)[margin > 0.5].any()  # of scores around 1e4 to 1e5, in float32
    assert np.mean(mask != wanted) < 0.01


def test_of_both_outputs_logits_serve_resized_pictures_and_the_mask_the_others(
    make_bundle: MakeBundle, picture: Draw
) -> None:
    segmenter = Segmenter(make_bundle(outputs=("mask", "logits")))
    exact, larger = picture(24, 32), picture(48, 64)
    assert np.array_equal(segmenter(exact).mask, nearest_class(exact))
    wanted, margin = mask_from_blocks(resize_image(larger, (24, 32)), (24, 32), (48, 64))
    assert not (segmenter(larger).mask != wanted)[margin > 0.5].any()


def test_a_dynamic_graph_takes_pictures_at_their_own_size(make_bundle: MakeBundle, picture: Draw) -> None:
    segmenter = Segmenter(make_bundle(RANGE, RANGE))
    images = [picture(24, 32), picture(33, 17), picture(64, 64), picture(8, 9)]
    for image, result in zip(images, segmenter(images), strict=True):
        assert np.array_equal(result.mask, nearest_class(image))


def test_a_dynamic_graph_keeps_to_the_test_scale_and_the_profile(make_bundle: MakeBundle, picture: Draw) -> None:
    scaled = make_bundle(RANGE, RANGE, preprocessing=Preprocessing(test_scale=(60, 30)))
    for bundle, size, seen in ((scaled, (20, 24), (30, 36)), (make_bundle(RANGE, RANGE), (128, 96), (64, 48))):
        image = picture(*size)
        mask = Segmenter(bundle)(image).mask
        assert np.array_equal(mask, resize_mask(nearest_class(resize_image(image, seen)), size))


def test_dynamic_logits_follow_the_test_pipeline(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle(RANGE, RANGE, outputs=("logits",), preprocessing=Preprocessing(test_scale=(60, 30)))
    image = picture(20, 24)
    mask = Segmenter(bundle)(image).mask
    wanted, margin = mask_from_blocks(resize_image(image, (30, 36)), (30, 36), (20, 24))
    assert not (mask != wanted)[margin > 0.5].any()


@pytest.mark.parametrize(
    ("batch", "count", "batches"),
    [(1, 3, [1, 1, 1]), (4, 3, [4]), (4, 9, [4, 4, 4]), ((1, 2, 4), 6, [4, 2]), ((2, 2, 4), 5, [4, 2])],
)
def test_batches_are_filled_and_padded(
    make_bundle: MakeBundle, picture: Draw, batch: Any, count: int, batches: list[int]
) -> None:
    bundle = make_bundle(batch=batch)
    images = [picture(24, 32) for _ in range(count)]
    engine = NumpyEngine(bundle)
    for segmenter in (Segmenter(bundle, engine), Segmenter(bundle)):
        results = segmenter(images)
        assert len(results) == count
        for image, result in zip(images, results, strict=True):
            assert np.array_equal(result.mask, nearest_class(image))
    assert engine.batches == batches


def test_pictures_of_one_size_run_together_and_come_back_in_order(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle(RANGE, RANGE, batch=(1, 2, 4))
    engine = NumpyEngine(bundle)
    sizes = [(24, 32), (16, 16), (24, 32), (16, 16), (40, 8), (24, 32)]
    images = [picture(*size) for size in sizes]
    for image, result in zip(images, Segmenter(bundle, engine)(images), strict=True):
        assert np.array_equal(result.mask, nearest_class(image))
    assert sorted(engine.batches) == [1, 2, 3]


def test_no_pictures_give_no_segmentations(make_bundle: MakeBundle) -> None:
    segmenter = Segmenter(make_bundle())
    assert segmenter([]) == []
    assert segmenter(np.zeros((0, 24, 32, 3), np.uint8)) == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((24, 32), np.uint8), r"must be uint8 \[H, W, 3\] RGB, not uint8 \[24, 32\]"),
        (np.zeros((24, 32, 4), np.uint8), r"not uint8 \[24, 32, 4\]"),
        (np.zeros((24, 32, 3), np.float32), r"not float32 \[24, 32, 3\]"),
        (np.zeros((0, 32, 3), np.uint8), r"not uint8 \[0, 32, 3\]"),
        (np.zeros((1, 24, 32, 4), np.uint8), r"not uint8 \[24, 32, 4\]"),
        (None, "a NoneType is not an image"),
        ([[1, 2, 3]], "a list is not an image"),
        ("no/such.png", r"no/such\.png does not exist"),
        (b"bytes", "a bytes is not an image"),
    ],
)
def test_what_is_not_a_picture_is_refused(make_bundle: MakeBundle, image: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        Segmenter(make_bundle())(image)


def test_pictures_may_be_views(make_bundle: MakeBundle, picture: Draw) -> None:
    image = picture(48, 64)
    segmenter = Segmenter(make_bundle())
    for view in (image[::2, ::-2], image[:24, :32], image[:24, 32:, ::-1]):
        assert np.array_equal(segmenter(view).mask, nearest_class(view))


def test_options_that_do_not_exist_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    with pytest.raises(UsageError, match="no fit 'crop'"):
        Segmenter(bundle, fit="crop")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no engine 'cuda'"):
        Segmenter(bundle, "cuda")
    with pytest.raises(BundleError, match="is an ONNX file, not a bundle"):
        Segmenter(bundle.graph)


def test_what_should_not_be_deployed_is_logged(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "twins_trt"):
        Segmenter(make_bundle(source=Source(seeded=True), gate="failed"))
    assert [record.getMessage().split(" ", 1)[1] for record in caplog.records] == [
        "holds random weights: its masks mean nothing",
        "failed its accuracy gate",
    ]


def test_an_engine_that_gives_another_batch_or_size_is_caught(make_bundle: MakeBundle, picture: Draw) -> None:
    class Wrong(NumpyEngine):
        shape: tuple[int, ...] = ()

        def __call__(self, image: Any, **more: Any) -> dict[str, Any]:
            return {"mask": np.zeros(self.shape, np.uint8)}

    bundle = make_bundle(batch=2)
    engine = Wrong(bundle)
    for shape, said in (((1, 24, 32), r"mask \[1, 24, 32\] for a batch of 2"), ((2, 12, 16), r"a mask of \[12, 16\]")):
        engine.shape = shape
        with pytest.raises(EngineError, match=said):
            Segmenter(bundle, engine)(picture(24, 32))


def wrong_masks(segmenter: Segmenter, images: list[list[UInt8Array]]) -> list[object]:
    """Segment each list in a thread of its own, all at once; what went wrong."""

    def wrong(mine: list[UInt8Array]) -> Iterator[str]:
        return ("another's mask" for image in mine if not np.array_equal(segmenter(image).mask, nearest_class(image)))

    return in_threads(wrong, images)


def test_two_threads_share_a_segmenter(make_bundle: MakeBundle, picture: Draw) -> None:
    segmenter = Segmenter(make_bundle(RANGE, RANGE))
    images = [[picture(24 + i, 32 - j) for i in range(20)] for j in range(2)]
    assert wrong_masks(segmenter, images) == []


@pytest.mark.parametrize("concurrent", [True, False])
def test_an_engine_for_one_thread_is_run_by_one_at_a_time(
    make_bundle: MakeBundle, picture: Draw, concurrent: bool
) -> None:
    bundle = make_bundle()
    engine = NumpyEngine(bundle, concurrent=concurrent, delay=0.01)
    assert wrong_masks(Segmenter(bundle, engine), [[picture(24, 32) for _ in range(8)] for _ in range(2)]) == []
    assert engine.most_inside == (2 if concurrent else 1)


def test_an_unlimited_batch_runs_in_one_go(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle(batch=(1, 2, 4))
    free = replace(bundle.interface, inputs=(TensorSpec("image", "uint8", ("N", 24, 32, 3)),))
    bundle = replace(bundle, manifest=replace(bundle.manifest, interface=free))
    engine = NumpyEngine(bundle)
    images = [picture(24, 32) for _ in range(6)]
    masks = [result.mask for result in Segmenter(bundle, engine)(images)]
    assert engine.batches == [6]
    assert all(np.array_equal(mask, nearest_class(image)) for mask, image in zip(masks, images, strict=True))
    assert open_engine(bundle).inputs[0].max is None


def test_an_observer_is_told_every_stage_once_a_picture(make_bundle: MakeBundle, picture: Draw) -> None:
    seen: list[tuple[str, float]] = []
    options = RuntimeOptions(observe=lambda stage, seconds: seen.append((stage, seconds)))
    bundle = make_bundle()
    engine = NumpyEngine(bundle, delay=0.02)
    segmenter = Segmenter(bundle, engine, options=options)
    segmenter(picture(24, 32))
    assert [stage for stage, _ in seen] == ["decode", "preprocess", "run", "postprocess"]
    assert dict(seen)["run"] >= 0.02
    engine.failing = True
    with pytest.raises(EngineError):
        segmenter(picture(24, 32))
    assert [stage for stage, _ in seen[4:]] == ["decode", "preprocess"]  # a stage that failed has no time


def test_observing_begins_and_ends_between_calls_and_the_engine_is_told(make_bundle: MakeBundle, picture: Draw) -> None:
    seen: list[str] = []
    bundle = make_bundle()
    segmenter = Segmenter(bundle, NumpyEngine(bundle))

    def observe(stage: str, seconds: float) -> None:
        seen.append(stage)

    counts = []
    for chosen in (None, observe, None):
        segmenter.observe = chosen
        assert segmenter.observe is segmenter.engine.observe is chosen
        segmenter(picture(24, 32))
        list(segmenter.stream([picture(24, 32)]))
        counts.append(len(seen))
    assert counts == [0, 8, 8]  # four stages of two pictures
