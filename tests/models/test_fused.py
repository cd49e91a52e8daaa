"""The fused forward pass of a folded model: the same logits as by torch's own operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twins_trt.errors import UsageError
from twins_trt.kernels.position.launch import is_dense
from twins_trt.models import build_model
from twins_trt.models.folded import FoldedModel
from twins_trt.models.fused import patchwise, pointwise
from twins_trt.models.seeded import seed_weights
from twins_trt.models.zoo import list_models


def folded(name: str, kernels: str | None) -> FoldedModel:
    model = build_model(name, num_classes=11)
    seed_weights(model)
    return FoldedModel(model, device="cpu", dtype=torch.float32, kernels=kernels)


@pytest.mark.parametrize("size", [(64, 96), (67, 90)], ids=["multiples of 32", "padded"])
@pytest.mark.parametrize("name", [name for name in list_models() if "-s_" in name])
def test_the_fused_model_gives_the_same_masks(name: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, fused = (folded(name, kernels)(x) for kernels in (None, "reference"))
    assert plain.shape == fused.shape == (2, 11, -(-size[0] // 4), -(-size[1] // 4))
    assert (plain - fused).abs().max() <= 1e-4 * plain.abs().max()
    assert torch.equal(plain.argmax(1), fused.argmax(1))


@pytest.mark.parametrize("kernels", [None, "reference"])
@pytest.mark.parametrize("shape", [(1, 3, 28, 64), (1, 3, 64, 28), (1, 4, 64, 64), (3, 64, 64)], ids=str)
def test_what_no_model_takes_is_named(shape: tuple[int, ...], kernels: str | None) -> None:
    model = folded("twins_svt-s_fpn", kernels)
    with torch.inference_mode(), pytest.raises(UsageError, match="H and W of 29 or more"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("kernels", [None, "reference"])
def test_autocast_changes_nothing(kernels: str | None) -> None:
    model = folded("twins_svt-s_fpn", kernels)
    x = torch.randn(1, 3, 29, 33, generator=torch.Generator().manual_seed(0))  # the smallest side
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(x)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_weights_of_the_positional_encodings_are_dense() -> None:
    """They are read fastest so, and are the same weights."""
    encodings = [folded("twins_svt-s_fpn", kernels).model.backbone.position_encodings for kernels in ("auto", None)]
    for ours, plain in zip(*encodings, strict=True):
        assert is_dense(ours.proj.weight) and not is_dense(plain.proj.weight)
        assert torch.equal(ours.proj.weight, plain.proj.weight)


def test_products_are_convolutions() -> None:
    x = torch.randn(2, 5, 12, 8)
    narrow, patches = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 4, 4)
    torch.testing.assert_close(pointwise(narrow, x), narrow(x))
    torch.testing.assert_close(patchwise(patches, x).permute(0, 3, 1, 2), patches(x))
