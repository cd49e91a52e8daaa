"""The resize-and-argmax kernel in Triton's interpreter, and its operator, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import UsageError
from twins_trt.kernels.postprocess import resize_argmax, resize_argmax_reference
from twins_trt.kernels.postprocess.launch import (
    BLOCK,
    fits_cells,
    has_whole_blocks,
    resize_argmax_forward,
    unsupported,
)
from twins_trt.kernels.postprocess.op import resize_argmax_op
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.runtime import GraphInterface, TensorSpec
from twins_trt.runtime.engines.torch import TorchEngine

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
    "the model's classes at four times the size": ((2, 150, 3, 5), (12, 20)),
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


def padded_classes(x: Tensor, garbage: float = float("nan")) -> Tensor:
    """As a folded model gives them: a view of the first classes of a multiple of 16, which ends where storage ends."""
    batch, classes, height, width = x.shape
    buffer = torch.full((batch, height, width, -(-classes // BLOCK) * BLOCK), garbage, dtype=x.dtype)
    return buffer.permute(0, 3, 1, 2)[:, :classes].copy_(x)


FORMS = {
    "planes": lambda x: x,
    "classes last": classes_last,
    "inside a larger one": inside_a_larger_one,
    "padded classes": padded_classes,
}


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


def in_cells(interpreted: Callable[..., Any], logits: Tensor, cells: bool | None = True) -> Tensor:
    size = (4 * logits.shape[2], 4 * logits.shape[3])
    mask, _ = interpreted(FORWARD, padded_classes(logits), *size, probability=False, cells=cells)
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (1, 20, 1, 6), (2, 20, 6, 1), (3, 33, 5, 7), (1, 150, 9, 8)], ids=str)
def test_cells_make_the_mask_of_the_reference(
    interpreted: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Corners, rims, several images, more cells than one program takes, and classes that end inside a block."""
    logits = logits_of(shape, dtype)
    expected = resize_argmax_reference(logits.double(), (4 * shape[2], 4 * shape[3]))[0]
    assert torch.equal(in_cells(interpreted, logits), expected)
    assert torch.equal(in_cells(interpreted, logits, cells=False), expected)


def test_the_first_of_equal_classes_wins_in_a_cell(interpreted: Callable[..., Any]) -> None:
    some = logits_of((1, 9, 3, 4))
    logits = torch.cat((some.repeat_interleave(2, dim=1), some), dim=1)
    assert torch.equal(in_cells(interpreted, logits), 2 * resize_argmax_reference(some, (12, 16))[0])
    assert not in_cells(interpreted, torch.zeros(1, 40, 2, 2)).any()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 6e4])
@pytest.mark.parametrize("cells", [True, False])
def test_what_lies_behind_the_classes_does_not_matter(
    interpreted: Callable[..., Any], cells: bool, garbage: float
) -> None:
    """Also where every class is below anything that a pad could be taken for."""
    logits = logits_of((2, 19, 4, 5), torch.float16) - 6e4
    expected = resize_argmax_reference(logits.double(), (16, 20))[0]
    form = padded_classes(logits, garbage)
    assert torch.equal(interpreted(FORWARD, form, 16, 20, probability=False, cells=cells)[0], expected)


def test_a_pixel_of_nan_gets_a_class_that_exists(interpreted: Callable[..., Any]) -> None:
    logits = torch.full((1, 19, 3, 3), float("nan"))
    for cells in (True, False):
        assert in_cells(interpreted, logits, cells=cells).max() < 19


def test_16_bytes_are_read_only_where_storage_goes_on_behind_the_last_class() -> None:
    def view(classes: int, first: int = 0, short: int = 0) -> Tensor:
        """[2, classes, 3, 4] in rows of 160 classes, in a storage that lacks the last `short` elements."""
        storage = torch.empty(2 * 3 * 4 * 160 - short)
        return storage.as_strided((2, classes, 3, 4), (3 * 4 * 160, 1, 4 * 160, 160), first)

    assert has_whole_blocks(view(150))
    assert has_whole_blocks(view(145)) and has_whole_blocks(view(160))
    assert has_whole_blocks(view(150)[1:, :, 1:, 2:])  # the last position is the same
    assert not has_whole_blocks(view(150, short=1))
    assert has_whole_blocks(view(150, short=1)[:1])  # of another position the block is whole
    assert has_whole_blocks(view(144, short=16))  # 144 are whole blocks of their own
    assert not has_whole_blocks(view(150, first=10))
    assert not has_whole_blocks(classes_last(logits_of((2, 150, 3, 4))))
    assert has_whole_blocks(classes_last(logits_of((2, 160, 3, 4))))
    assert not has_whole_blocks(logits_of((2, 160, 3, 4)))


def test_cells_are_taken_where_they_fit() -> None:
    logits = padded_classes(logits_of((1, 19, 3, 4)))
    assert fits_cells(logits, 12, 16, probability=False)
    assert not fits_cells(logits, 12, 16, probability=True)
    assert not fits_cells(logits, 12, 15, probability=False)
    assert not fits_cells(classes_last(logits), 12, 16, probability=False)


@pytest.mark.parametrize("classes", [150, 5])
def test_the_torch_engine_hands_over_logits_that_are_read_16_bytes_at_a_time(
    monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """At a size of whole cells, and at one that its logits do not divide."""
    handed: list[tuple[bool, bool]] = []

    def spy(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, None]:
        wide = all(stride % BLOCK == 0 for stride in (logits.stride(0), *logits.stride()[2:]))
        handed.append((wide and has_whole_blocks(logits), fits_cells(logits, *size, probability=False)))
        return resize_argmax_reference(logits, size)[0], None

    monkeypatch.setattr("twins_trt.kernels.postprocess.resize_argmax", spy)
    model = build_model("twins_svt-demo_fpn", classes)
    seed_weights(model)
    side = (32, 64, 128)
    image, mask = TensorSpec.image(side, side), TensorSpec.mask(side, side)
    words = tuple(map(str, range(classes)))
    engine = TorchEngine(model, GraphInterface((image,), (mask,), words, ((0, 0, 0),) * classes), device="cpu")
    for height, width in ((64, 96), (61, 64)):
        engine(np.zeros((1, height, width, 3), np.uint8))
    assert handed == [(True, True), (True, False)]


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
    with pytest.raises(UsageError, match=r"13x12 of logits .* is not made of 4x4 cells"):
        resize_argmax_forward(padded_classes(logits_of((1, 2, 3, 3))), 13, 12, probability=False, cells=True)
    wide = torch.empty_strided((1, 2, 1, 1), (0, 2**31, 1, 1), device="meta")
    assert "2147483648 elements" in str(unsupported(wide))
