"""Heads with one logit at run time: masks, probabilities and averages, as mmsegmentation's formulas give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import UsageError
from twins_trt.inference import InferenceMode, predict_mask
from twins_trt.inference.logits import class_probabilities
from twins_trt.models.folded import FoldedModel
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import GraphInterface, Segmenter, TensorSpec

T = 0.3
SPECS = {
    "mask": TensorSpec.mask(32, 48),
    "logits": TensorSpec("logits", "float32", (1, 2, 8, 12)),
    "probability": TensorSpec("probability", "float32", (1, 32, 48)),
}


class Head:
    """An engine that gives what a model of one logit gives of red, 8x12 logits of 32x48 pixels."""

    name, concurrent, observe = "fake", True, None

    def __init__(self, outputs: tuple[str, ...]) -> None:
        self.inputs, self.outputs = (TensorSpec.image(32, 48),), tuple(SPECS[name] for name in outputs)

    def __call__(self, image, *, outputs=None, out=None):  # type: ignore[no-untyped-def]
        logit = logit_of(image[0])
        full = functional.interpolate(torch.from_numpy(logit)[None, None], (32, 48), mode="bilinear")[0, 0]
        constant = np.full_like(logit, np.log(T / (1 - T)))
        given = {
            "mask": (full.sigmoid() > T).numpy().astype(np.uint8)[None],
            "logits": np.stack([constant, logit])[None],
            "probability": full.sigmoid().numpy()[None],
        }
        return {name: given[name] for name in outputs}

    def close(self) -> None:
        pass


def logit_of(image: np.ndarray) -> np.ndarray:
    return image[::4, ::4, 0].astype(np.float32) / 64 - 3


def interface(outputs: tuple[str, ...], threshold: float | None = T, classes: int = 2) -> GraphInterface:
    names = tuple("abc"[:classes])
    return GraphInterface(
        (TensorSpec.image(32, 48),),
        tuple(SPECS[name] for name in outputs),
        names,
        ((0, 0, 0),) * classes,
        Preprocessing(),
        threshold,
    )


@pytest.mark.parametrize("outputs", [("mask",), ("logits",), ("probability",), ("mask", "probability"), tuple(SPECS)])
@pytest.mark.parametrize("size", [(32, 48), (40, 30)])
def test_masks_and_probabilities(outputs: tuple[str, ...], size: tuple[int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Segmenter(interface(outputs), Head(outputs))(image)  # type: ignore[arg-type]
    assert found.mask.shape == size and 0 < found.mask.mean() < 1
    if outputs == ("mask",):
        assert found.probability is None
        return
    assert found.probability is not None and found.probability.dtype == np.float32
    assert found.probability.shape == size
    if size == (32, 48):
        logit = torch.from_numpy(logit_of(image))[None, None]
        value = functional.interpolate(logit, size, mode="bilinear", align_corners=False)[0, 0].sigmoid().numpy()
        assert np.abs(found.probability - value).max() < 1e-5
    if size == (32, 48) or "logits" in outputs or "mask" not in outputs:
        assert np.array_equal(found.mask, found.probability > T)


@pytest.mark.parametrize(
    ("outputs", "threshold", "classes", "message"),
    [
        (("mask",), 0.3, 3, "threshold is 0.3 with 3 classes"),
        (("mask",), 1.0, 2, "threshold is 1.0 with 2 classes"),
        (("mask",), float("nan"), 2, "threshold is nan"),
        (("probability",), None, 2, "is probability float32"),
    ],
)
def test_interfaces_that_cannot_be(
    outputs: tuple[str, ...], threshold: float | None, classes: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        interface(outputs, threshold, classes)


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_averages_compare_the_mean_sigmoid(as_tensor: bool, flip: bool, rng: np.random.Generator) -> None:
    """mmsegmentation 0.x, `aug_test`: the sum of the sigmoids over their number is above the threshold."""
    image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    weight = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)

    def logit(pixels: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(pixels, torch.from_numpy(weight), stride=4) * 0.4

    def predict(pixels: np.ndarray):  # type: ignore[no-untyped-def]
        one = logit(torch.from_numpy(pixels))
        both = torch.cat([torch.full_like(one, float(np.log(T / (1 - T)))), one], dim=1)
        return both if as_tensor else both.numpy()

    mode = InferenceMode("own", ratios=(1.0, 1.0), flip=flip)
    mask = predict_mask(predict, image, mode=mode, threshold=T)
    pixels = torch.from_numpy(((image - Preprocessing().mean) / Preprocessing().std).astype(np.float32))
    pixels = pixels.permute(2, 0, 1)[None]
    variants = [pixels, pixels.flip(3)] if flip else [pixels]
    total = torch.zeros(32, 48)
    for i, variant in enumerate(variants):
        full = functional.interpolate(logit(variant), (32, 48), mode="bilinear", align_corners=False)[0, 0]
        total += (full.flip(1) if i else full).sigmoid()
    mean = (total / len(variants)).numpy()
    clear = np.abs(mean - T) > 1e-5
    assert np.array_equal(mask[clear], (mean > T)[clear]) and 0.05 < mask.mean() < 0.95
    if flip:  # the softmax of both channels would give another mask
        softmax = predict_mask(predict, image, mode=mode)
        assert (softmax != mask).any()


def test_large_logits_overflow_nothing() -> None:
    logits = np.array([0, -1e4, 0, 1e4], np.float32).reshape(2, 2, 1, 1)
    found = class_probabilities(logits, threshold=T)
    assert found[:, 1].ravel().tolist() == [0, 1] and np.allclose(found[:, 0], T)


@pytest.mark.parametrize("takes_rgb", [True, False])
@pytest.mark.parametrize("kernels", ["reference", None])
def test_a_folded_model_has_the_background_and_the_order(takes_rgb: bool, kernels: str | None) -> None:
    def model() -> Segmentor:
        torch.manual_seed(0)
        made = Segmentor(DEMO, 2, attention="reference", threshold=T).eval()
        seed_weights(made)
        from twins_trt.models.conventions import Conventions

        made.conventions = Conventions(Preprocessing(channels="bgr"), threshold=T)
        return made

    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    plain = model()
    with torch.inference_mode():
        wanted = plain.class_logits(plain(x.flip(1) if takes_rgb else x))
        folded = FoldedModel(model(), device="cpu", dtype=torch.float32, kernels=kernels, takes_rgb=takes_rgb)
        found = folded(x)
    assert found.shape == wanted.shape == (1, 2, 16, 24)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
