"""The modes against slow code after their definitions: explicit windows, torch's resize in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.data import Preprocessing
from twins_trt.errors import EngineError, UsageError
from twins_trt.inference import INFERENCE_MODES, InferenceMode, inference_mode, predict_mask, resize_image
from twins_trt.inference.modes import slide_logits, sliding_windows, variant_sizes

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")
functional = torch.nn.functional

CLASSES = 5
P = Preprocessing()


def network(pixels: np.ndarray) -> np.ndarray:
    """A stand-in whose logits depend on the pixel, its surroundings and its place: float32 [1, 5, ceil(H/4), ...]."""
    planes = pixels[:, :, ::4, ::4]
    y, x = np.mgrid[: planes.shape[2], : planes.shape[3]].astype(np.float32)
    mix = np.random.default_rng(3).standard_normal((CLASSES, 5)).astype(np.float32)
    features = np.concatenate([planes, np.tanh(planes[:, :1] * planes[:, 1:2]), (x * 0.07 - y * 0.05)[None, None]], 1)
    around = np.roll(features, 1, axis=3) * 0.3
    return np.einsum("cf,nfhw->nchw", mix, features + around).astype(np.float32)


def network_in_torch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(network(pixels))


NETWORKS = [network, network_in_torch]


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return resize_image(coarse, (67, 91))


def pixels_of(image: np.ndarray) -> np.ndarray:
    return ((image.astype(np.float64) - P.mean) / P.std).transpose(2, 0, 1)[None].astype(np.float32)


def enlarged(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(np.asarray(logits, np.float64))
    return functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False).numpy()


def assert_mask_of(mask: np.ndarray, scores: np.ndarray) -> None:
    """`mask` takes the best class of scores [1, C, H, W] wherever the best is not level with the next to rounding."""
    assert (mask.dtype, mask.shape) == (np.uint8, scores.shape[2:])
    ranked = np.sort(scores[0], axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(mask[clear], scores[0].argmax(axis=0)[clear])
    assert len(np.unique(mask)) > 2  # the picture is not so dull that anything would pass


def windows_by_walking(size: tuple[int, int], crop: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Step through each side until a window reaches its end; that one is moved back inside."""

    def starts(side: int) -> list[int]:
        found = [0]
        while found[-1] + crop < side:
            found.append(found[-1] + stride)
        return [max(min(start, side - crop), 0) for start in found]

    return [(y, min(y + crop, size[0]), x, min(x + crop, size[1])) for y in starts(size[0]) for x in starts(size[1])]


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.data())
def test_windows_are_those_of_walking_and_cover_everything(
    height: int, width: int, crop: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(max(1, crop // 3), crop))
    found = [(r.start, r.stop, c.start, c.stop) for r, c in sliding_windows((height, width), crop, stride)]
    assert found == windows_by_walking((height, width), crop, stride)
    covered = np.zeros((height, width), bool)
    for top, bottom, left, right in found:
        assert (bottom - top, right - left) == (min(crop, height), min(crop, width))
        covered[top:bottom, left:right] = True
    assert covered.all()


def test_ade20ks_windows() -> None:
    found = [(r.start, c.start) for r, c in sliding_windows((512, 1024), 512, 341)]
    assert found == [(0, 0), (0, 341), (0, 512)]
    assert len(list(sliding_windows((513, 853), 512, 341))) == 4


@pytest.mark.parametrize("net", NETWORKS)
def test_whole(net: Callable, image: np.ndarray) -> None:
    assert_mask_of(predict_mask(net, image), enlarged(network(pixels_of(image)), image.shape[:2]))


@pytest.mark.parametrize("net", NETWORKS)
def test_whole_at_a_test_scale_resizes_twice(net: Callable, image: np.ndarray) -> None:
    scaled = Preprocessing(test_scale=(140, 96))
    logits = network(pixels_of(resize_image(image, (96, 130))))
    twice = enlarged(enlarged(logits, (96, 130)), image.shape[:2])
    mask = predict_mask(net, image, preprocessing=scaled)
    assert_mask_of(mask, twice)
    # mmseg's detour over the input's size is not the same as going straight to the image's.
    assert (mask != enlarged(logits, image.shape[:2])[0].argmax(axis=0)).any()


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(("crop", "stride"), [(32, 21), (40, 40), (70, 13), (200, 100)])
def test_slide_averages_the_windows(net: Callable, image: np.ndarray, crop: int, stride: int) -> None:
    pixels = pixels_of(image)
    total = np.zeros((1, CLASSES, *image.shape[:2]))
    count = np.zeros(image.shape[:2])
    for top, bottom, left, right in windows_by_walking(image.shape[:2], crop, stride):
        window = enlarged(network(pixels[:, :, top:bottom, left:right]), (bottom - top, right - left))
        total[:, :, top:bottom, left:right] += window
        count[top:bottom, left:right] += 1
    np.testing.assert_allclose(slide_logits(net, pixels, crop=crop, stride=stride), total / count, atol=1e-4)
    mode = InferenceMode("own", crop=crop, stride=stride)
    assert_mask_of(predict_mask(net, image, mode=mode), total / count)


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("test_scale", [None, (120, 88)])
def test_ms_flip_averages_softmax(net: Callable, image: np.ndarray, test_scale: tuple[int, int] | None) -> None:
    image = np.ascontiguousarray(image[:64, :88])
    total = np.zeros((1, CLASSES, *image.shape[:2]))
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        factor = ratio if test_scale is None else min(120 * ratio / 88, 88 * ratio / 64)
        size = (round(64 * factor), round(88 * factor))  # none lies at a half, where the way of rounding has a say
        for turn in (slice(None), slice(None, None, -1)):
            scaled = pixels_of(resize_image(image, size)[:, turn])
            logits = np.ascontiguousarray(enlarged(network(scaled), size)[..., turn])
            total += torch.from_numpy(enlarged(logits, image.shape[:2])).softmax(dim=1).numpy()
    mask = predict_mask(net, image, mode="ms_flip", preprocessing=Preprocessing(test_scale=test_scale))
    assert_mask_of(mask, total / 12)


def test_flip_is_symmetric(image: np.ndarray) -> None:
    mode = InferenceMode("flip", flip=True)
    mask = predict_mask(network, image, mode=mode)
    mirrored = predict_mask(network, np.ascontiguousarray(image[:, ::-1]), mode=mode)[:, ::-1]
    assert (mask == mirrored).mean() > 0.999
    assert (mask != predict_mask(network, image)).any()


def test_ratios_scale_the_test_scale_or_the_image() -> None:
    mode = inference_mode("ms_flip")
    assert variant_sizes((512, 683), Preprocessing(test_scale=(2048, 512)), mode) == (
        (256, 342),
        (384, 512),
        (512, 683),
        (640, 854),
        (768, 1025),
        (896, 1195),
    )
    assert variant_sizes((100, 200), P, mode) == ((50, 100), (75, 150), (100, 200), (125, 250), (150, 300), (175, 350))


def test_modes_by_name() -> None:
    assert set(INFERENCE_MODES) == {"whole", "slide", "ms_flip", "slide_ms_flip"}
    slide = inference_mode("slide")
    assert (slide.crop, slide.stride, slide.augmented) == (512, 341, False)
    assert inference_mode("slide_ms_flip").augmented
    assert inference_mode(slide) is slide
    for mode in INFERENCE_MODES.values():
        assert InferenceMode.from_json(mode.to_json()) == mode
    with pytest.raises(UsageError, match="one of whole, slide, ms_flip"):
        inference_mode("tta")


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 5},
        {"stride": 5},
        {"crop": 5, "stride": 6},
        {"crop": 5, "stride": 0},
        {"ratios": ()},
        {"ratios": (0.0,)},
    ],
)
def test_modes_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        InferenceMode("own", **options)


@pytest.mark.parametrize("output", [None, np.zeros((5, 9, 9)), np.zeros((2, 5, 9, 9)), np.zeros((1, 300, 2, 2))])
def test_what_is_not_logits_is_an_engine_error(image: np.ndarray, output: object) -> None:
    with pytest.raises(EngineError, match="logits"):
        predict_mask(lambda pixels: output, image)


@pytest.mark.parametrize("mode", list(INFERENCE_MODES))
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
def test_nan_is_an_error_not_the_first_class(image: np.ndarray, mode: str, as_tensor: bool) -> None:
    logits = np.zeros((1, 5, 4, 4), np.float32)
    logits[0, 2, 3, 1] = np.nan
    with pytest.raises(EngineError, match="returned NaN"):
        predict_mask(lambda pixels: torch.from_numpy(logits) if as_tensor else logits, image, mode=mode)
