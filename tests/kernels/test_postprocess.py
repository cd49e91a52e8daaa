"""The resize-and-argmax kernel in Triton's interpreter, and its operator, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import UsageError
from twins_trt.kernels.postprocess import resize_argmax, resize_argmax_reference
from twins_trt.kernels.postprocess.launch import unsupported
from twins_trt.kernels.postprocess.op import resize_argmax_op

FORWARD = "twins_trt.kernels.postprocess.launch:resize_argmax_forward"

SHAPES = {  # batch, classes, height, width of the logits; height, width of the mask
    "1x1": ((1, 1, 1, 1), (1, 1)),
    "1x1 enlarged": ((1, 5, 1, 1), (3, 2)),
    "four times the size": ((1, 19, 7, 9), (28, 36)),
    "batch 3, primes": ((3, 11, 5, 7), (13, 31)),
    "smaller": ((2, 17, 13, 11), (5, 3)),
    "one axis larger, one smaller": ((1, 4, 3, 23), (17, 10)),
    "the same size": ((1, 3, 9, 8), (9, 8)),
    "as many classes as a mask holds": ((1, 255, 2, 2), (5, 5)),
}


def logits_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def classes_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def inside_a_larger_one(x: Tensor) -> Tensor:
    """As a classifier with padded classes gives them: a view of every other row of a NaN-filled tensor."""
    batch, classes, height, width = x.shape
    larger = torch.full((batch, 2 * height, width + 3, classes + 13), float("nan"), dtype=x.dtype)
    return larger.permute(0, 3, 1, 2)[:, :classes, ::2, 1 : width + 1].copy_(x)


FORMS = {"planes": lambda x: x, "classes last": classes_last, "inside a larger one": inside_a_larger_one}


def exact_probability(logits: Tensor, size: tuple[int, int]) -> Tensor:
    full = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    return full.softmax(1).amax(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_agrees_with_the_reference_in_float64(interpreted: Callable[..., Any], name: str, form: str) -> None:
    shape, size = SHAPES[name]
    logits = logits_of(shape)
    mask, best = interpreted(FORWARD, FORMS[form](logits), *size, probability=True)
    assert torch.equal(mask, resize_argmax_reference(logits.double(), size)[0])
    exact = exact_probability(logits, size)
    assert ((best - exact) / exact).abs().max() <= 1e-5
    without, nothing = interpreted(FORWARD, FORMS[form](logits), *size, probability=False)
    assert torch.equal(without, mask)
    assert nothing.numel() == 0


@pytest.mark.parametrize("form", ["planes", "classes last"])
def test_float16_is_interpolated_in_float32(interpreted: Callable[..., Any], form: str) -> None:
    shape, size = SHAPES["batch 3, primes"]
    logits = logits_of(shape, torch.float16)
    mask, best = interpreted(FORWARD, FORMS[form](logits), *size, probability=True)
    assert torch.equal(mask, resize_argmax_reference(logits.double(), size)[0])
    assert best.dtype == torch.float32
    assert (best - exact_probability(logits, size)).abs().max() <= 1e-6


@pytest.mark.parametrize("form", ["planes", "classes last"])
def test_the_first_of_equal_classes_wins(interpreted: Callable[..., Any], form: str) -> None:
    """Every class three times over, neighbours and far apart, so that equal ones meet within a block and across."""
    some = logits_of((1, 9, 3, 4))
    logits = torch.cat((some.repeat_interleave(2, dim=1), some), dim=1)
    mask, _ = interpreted(FORWARD, FORMS[form](logits), 7, 9, probability=False)
    assert torch.equal(mask, 2 * resize_argmax_reference(some, (7, 9))[0])
    flat = torch.zeros(1, 40, 2, 2)
    assert not interpreted(FORWARD, FORMS[form](flat), 5, 5, probability=False)[0].any()


def test_very_large_and_very_small_logits(interpreted: Callable[..., Any]) -> None:
    logits = logits_of((1, 20, 3, 3)) * 1e4
    logits[:, 3] = -6e4  # as a padded class
    mask, best = interpreted(FORWARD, classes_last(logits), 8, 8, probability=True)
    assert torch.equal(mask, resize_argmax_reference(logits.double(), (8, 8))[0])
    assert (best - exact_probability(logits, (8, 8))).abs().max() <= 1e-3  # a difference of 1e-3 at 1e4 is fp32's own
    assert best.max() <= 1


def test_the_operator_is_registered_in_full() -> None:
    for probability in (False, True):
        arguments = (logits_of((2, 5, 3, 4)), 6, 7, probability)
        assert set(opcheck(resize_argmax_op, arguments).values()) == {"SUCCESS"}
        mask, best = resize_argmax_op(*arguments)
        expected = resize_argmax_reference(arguments[0], (6, 7), probability=True)
        assert torch.equal(mask, expected[0])
        assert torch.equal(best, expected[1]) if probability else best.numel() == 0


def test_the_operator_compiles_and_exports() -> None:
    compiled = torch.compile(lambda x: resize_argmax_op(x * 2, 12, 16, True), fullgraph=True, backend="aot_eager")
    logits = logits_of((1, 5, 3, 4))
    for ours, theirs in zip(compiled(logits), resize_argmax_op(logits * 2, 12, 16, True), strict=True):
        assert torch.equal(ours, theirs)

    class Post(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return resize_argmax(x, (12, 16), backend="triton")[0]

    program = torch.export.export(Post(), (logits,))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def reached_by_name() -> tuple[Tensor, Tensor | None]:
    """Where kernels are interpreted."""
    return resize_argmax(logits_of((1, 5, 3, 4)), (6, 7), probability=True, backend="triton")


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    logits = logits_of((1, 5, 3, 4))
    mask, best = interpreted("test_postprocess:reached_by_name")
    expected = resize_argmax(logits, (6, 7), probability=True)
    assert expected[1] is not None
    assert torch.equal(mask, expected[0])
    assert (best - expected[1]).abs().max() <= 1e-6
    assert resize_argmax(logits, (6, 7))[1] is None


def test_what_cannot_be_is_named() -> None:
    for logits, words in (
        (torch.zeros(1, 256, 2, 2), "1 to 255 classes"),
        (torch.zeros(5, 2, 2), r"\[5, 2, 2\]"),
        (torch.zeros(1, 5, 2, 2, dtype=torch.int32), "int32"),
    ):
        with pytest.raises(UsageError, match=words):
            resize_argmax(logits, (4, 4))
    with pytest.raises(UsageError, match="0x4"):
        resize_argmax(logits_of((1, 2, 2, 2)), (0, 4))
    with pytest.raises(UsageError, match="resize_argmax has no backend 'sdpa'"):
        resize_argmax(logits_of((1, 2, 2, 2)), (4, 4), backend="sdpa")
    wide = torch.empty_strided((1, 2, 1, 1), (0, 2**31, 1, 1), device="meta")
    assert "2147483648 elements" in str(unsupported(wide))
