"""The resize-and-add kernels in Triton's interpreter, their operator and its reference, against torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import UsageError
from twins_trt.kernels.resize import resize_add, resize_add_reference
from twins_trt.kernels.resize.launch import resize_add_forward, unsupported
from twins_trt.kernels.resize.op import resize_add_op

FORWARD = "twins_trt.kernels.resize.launch:resize_add_forward"
MODES = ("bilinear", "nearest")

SHAPES = {  # batch, channels, height, width of the map; height, width of the result
    "1x1": ((1, 1, 1, 1), (1, 1)),
    "1x1 enlarged": ((1, 5, 1, 1), (3, 2)),
    "twice the size": ((2, 16, 6, 9), (12, 18)),
    "batch 3, primes, two blocks of channels": ((3, 67, 5, 7), (13, 11)),
    "twice, one pixel, two blocks of channels": ((1, 67, 1, 1), (2, 2)),
    "twice, one row": ((3, 2, 1, 6), (2, 12)),
    "smaller": ((1, 17, 13, 23), (5, 3)),
    "half": ((1, 8, 12, 10), (6, 5)),
    "one axis larger, one smaller": ((2, 3, 3, 23), (17, 10)),
    "one axis equal": ((1, 3, 5, 9), (5, 14)),
    "the same size": ((2, 9, 7, 10), (7, 10)),
    "odd ratios of a pyramid": ((1, 3, 11, 13), (21, 26)),
}


def map_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def by_torch(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode=mode)


def assert_rounds_to(out: Tensor, exact: Tensor, scale: Tensor) -> None:
    """`out` is `exact` in fp16, or its neighbour where fp32's error at the size of `scale` decides the rounding."""
    slack = scale.abs().amax() * 2.0**-20
    assert ((out >= (exact - slack).half()) & (out <= (exact + slack).half())).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_is_torch(interpreted: Callable[..., Any], name: str, mode: str) -> None:
    """Bit for bit where nothing is interpolated, and else within rounding of torch in float64."""
    shape, size = SHAPES[name]
    x, add = map_of(shape), map_of((*shape[:2], *size), seed=1)
    alone = interpreted(FORWARD, x, *size, mode, None)
    added = interpreted(FORWARD, x, *size, mode, add)
    assert torch.equal(added, add + alone)
    if mode == "nearest" or shape[2:] == size:
        assert torch.equal(alone, by_torch(x, size, mode))
    # torch's indices are fp32 too, so a weight is off by up to 2⁻²³ of the index
    error = (alone - by_torch(x.double(), size, mode)).abs().max()
    assert error <= 1e-5
    for out in (alone, added):
        assert out.shape == (*shape[:2], *size)
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["twice the size", "twice, one row", "batch 3, primes, two blocks of channels", "the same size"]
)
def test_float16_is_rounded_after_each_operation(interpreted: Callable[..., Any], name: str, mode: str) -> None:
    shape, size = SHAPES[name]
    x, add = map_of(shape, torch.float16), map_of((*shape[:2], *size), torch.float16, seed=1)
    alone = interpreted(FORWARD, x, *size, mode, None)
    assert alone.dtype == torch.float16
    assert_rounds_to(alone, by_torch(x.double(), size, mode), x)
    added = interpreted(FORWARD, x, *size, mode, add)
    assert torch.equal(added, add + alone)
    if mode == "bilinear" and shape[2:] != size:  # one rounding is another result
        assert not torch.equal(added, (add.double() + by_torch(x.double(), size, mode)).half())


@pytest.mark.parametrize("mode", MODES)
def test_both_kernels_make_the_same_of_twice_the_size(interpreted: Callable[..., Any], mode: str) -> None:
    """The general one makes it with a row more, of which the first axis has none to interpolate."""
    x = map_of((2, 5, 1, 9))
    twice = interpreted(FORWARD, x, 2, 18, mode, None)
    general = interpreted(FORWARD, x, 3, 18, mode, None)[:, :, :2]
    inner = slice(1, -1) if mode == "bilinear" else slice(None)  # at the rim the weights differ, and the sum does not
    assert torch.equal(twice[..., inner], general[..., inner])
    assert (twice - general).abs().max() <= 1e-6


def test_nearest_chooses_the_pixels_of_torch_at_any_size(interpreted: Callable[..., Any]) -> None:
    """At these lengths fp32's o · (in / out) falls below a whole index that it should be, as 7 · (62 / 14) below 31."""
    differ = 0
    for length, target in ((62, 14), (26, 22), (14, 46), (21, 69), (2, 82), (13, 39)):
        x = torch.arange(length, dtype=torch.float32).reshape(1, 1, 1, length)
        expected = by_torch(x, (1, target), "nearest")
        assert torch.equal(interpreted(FORWARD, x, 1, target, "nearest", None), expected)
        differ += not torch.equal(expected[0, 0, 0], (torch.arange(target) * length // target).float())
    assert differ == 5


def forms_of(x: Tensor) -> list[Tensor]:
    batch, channels, height, width = x.shape
    larger = torch.full((batch, 2 * height, width + 3, channels + 3), float("nan"), dtype=x.dtype)
    view = larger.permute(0, 3, 1, 2)[:, :channels, ::2, 1 : width + 1].copy_(x)
    return [x.contiguous(), view, x.transpose(2, 3).contiguous().transpose(2, 3)]


@pytest.mark.parametrize("mode", MODES)
def test_strides_do_not_matter(interpreted: Callable[..., Any], mode: str) -> None:
    x, add = map_of((2, 5, 4, 3)), map_of((2, 5, 9, 7), seed=1)
    expected = interpreted(FORWARD, x, 9, 7, mode, add)
    for x_, add_ in zip(forms_of(x), forms_of(add), strict=True):
        out = interpreted(FORWARD, x_, 9, 7, mode, add_)
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_kernel_follows_from_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids by hand: tiles of 4 x 8 pixels or of 4 x 4 cells, in blocks of 64 channels."""
    kernel = pytest.importorskip("twins_trt.kernels.resize.kernel", reason="Triton is not installed")
    launched: list[tuple[str, int, bool]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *_, **options: launched.append((self._name, *grid, options["BILINEAR"]))

    for name in ("resize_add_kernel", "resize_add_twice_kernel"):
        monkeypatch.setattr(kernel, name, Recorder(name))
    x = map_of((3, 65, 8, 8))
    for size, mode in (((16, 16), "bilinear"), ((16, 16), "nearest"), ((16, 17), "bilinear"), ((8, 8), "bilinear")):
        resize_add_forward(x, *size, mode, None)
    assert launched == [
        ("resize_add_twice_kernel", 3 * 2 * (3 * 3), True),
        ("resize_add_twice_kernel", 3 * 2 * (2 * 2), False),
        ("resize_add_kernel", 3 * 2 * (4 * 3), True),
        ("resize_add_kernel", 3 * 2 * (2 * 1), False),
    ]


def test_infinity_stays_where_sizes_are_equal(interpreted: Callable[..., Any]) -> None:
    x = torch.tensor([1.0, float("inf"), 2.0, float("-inf")]).reshape(1, 1, 2, 2)
    assert torch.equal(interpreted(FORWARD, x, 2, 2, "bilinear", None), x)


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_is_the_two_operations_of_torch(mode: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, add = map_of((2, 6, 5, 7), dtype), map_of((2, 6, 9, 14), dtype, seed=1)
        for form in (x, x.contiguous()):
            out = resize_add(form, (9, 14), mode=mode, add=add)
            assert torch.equal(out, add + by_torch(form, (9, 14), mode))
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(resize_add(form, (9, 14), mode=mode), by_torch(form, (9, 14), mode))


def test_the_operator_is_registered_in_full() -> None:
    x, add = map_of((2, 5, 3, 4)), map_of((2, 5, 6, 7), seed=1)
    for mode, other in (("bilinear", None), ("nearest", add)):
        arguments = (x, 6, 7, mode, other)
        assert set(opcheck(resize_add_op, arguments).values()) == {"SUCCESS"}
        assert torch.equal(resize_add_op(*arguments), resize_add_reference(x, (6, 7), mode=mode, add=other))


def test_the_operator_compiles_and_exports() -> None:
    x, add = map_of((1, 5, 3, 4)), map_of((1, 5, 6, 8), seed=1)
    compiled = torch.compile(lambda x: resize_add_op(x * 2, 6, 8, "nearest", add), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), resize_add_op(x * 2, 6, 8, "nearest", add))

    class Neck(torch.nn.Module):
        def forward(self, x: Tensor, add: Tensor) -> Tensor:
            return resize_add(x, (6, 8), mode="bilinear", add=add, backend="triton")

    program = torch.export.export(Neck(), (x, add))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def reached_by_name() -> Tensor:
    """Where kernels are interpreted."""
    return resize_add(map_of((1, 5, 3, 4)), (6, 7), mode="nearest", add=map_of((1, 5, 6, 7), seed=1), backend="triton")


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    x, add = map_of((1, 5, 3, 4)), map_of((1, 5, 6, 7), seed=1)
    assert torch.equal(interpreted("test_resize:reached_by_name"), resize_add(x, (6, 7), mode="nearest", add=add))
    target, from_kernel = "twins_trt.kernels.resize.op:resize_add", torch.full((1, 5, 6, 7), 3.0)
    for backend, expected in (("triton", from_kernel), ("auto", by_torch(x, (6, 7), "nearest"))):
        values = {"resize_add_forward": from_kernel.clone()}
        out = interpreted("interpreter:call_with", values, target, x, (6, 7), mode="nearest", backend=backend)
        assert torch.equal(out, expected)


def test_what_cannot_be_is_named() -> None:
    x = map_of((1, 3, 4, 4))
    with pytest.raises(UsageError, match=r"\[3, 4, 4\] is not a map"):
        resize_add(x[0], (4, 4), mode="nearest")
    with pytest.raises(UsageError, match="uint8"):
        resize_add(x.to(torch.uint8), (4, 4), mode="nearest")
    with pytest.raises(UsageError, match="4x0"):
        resize_add(x, (4, 0), mode="nearest")
    with pytest.raises(UsageError, match="no mode 'bicubic'"):
        resize_add(x, (4, 4), mode="bicubic")
    for add in (x[:, :1], x.half(), map_of((1, 3, 8, 4))):
        with pytest.raises(UsageError, match="cannot be added"):
            resize_add(x, (4, 4), mode="nearest", add=add)
    with pytest.raises(UsageError, match="resize_add has no backend 'sdpa'"):
        resize_add(x, (4, 4), mode="nearest", backend="sdpa")


def test_a_map_that_32_bits_do_not_address_is_refused() -> None:
    x = torch.empty(1, 2**11, 2**5, 2**5, device="meta")
    assert unsupported(x, 2**10, 2**10 - 1) is None
    assert "2147483648 elements" in str(unsupported(x, 2**10, 2**10))
    large = torch.empty(1, 2**11, 2**10, 2**10, device="meta")
    assert "2147483648 elements" in str(unsupported(large, 1, 1))
