"""The positional-encoding kernel in Triton's interpreter, its operator and its reference, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import UsageError
from twins_trt.kernels.position import add_position, add_position_reference
from twins_trt.kernels.position.launch import cut, is_dense, unsupported
from twins_trt.kernels.position.op import add_position_op
from twins_trt.models.backbone import PositionEncoding

FORWARD = "twins_trt.kernels.position.launch:add_position_forward"

SHAPES = {  # batch, channels, height, width
    "1x1": (1, 32, 1, 1),
    "a row": (1, 8, 1, 19),
    "a column, batch 3": (3, 16, 7, 1),
    "primes, a part of a block of channels": (2, 40, 5, 17),
    "two blocks of channels, whole tiles": (1, 64, 2, 16),
    "odd channels": (2, 37, 3, 5),
    "one channel": (1, 1, 4, 3),
}

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs_of(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Inputs:
    """x, y, weight, bias."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((batch, height * width, channels), (batch, height * width, channels), (channels, 1, 3, 3), (channels,))
    x, y, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return x, y, weight, bias


def laid_out(weight: Tensor) -> Tensor:
    """The same weight with channels side by side in memory."""
    return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def strided(weight: Tensor) -> Tensor:
    """The same weight as every other channel of a NaN-filled one."""
    larger = torch.full((2 * len(weight), 1, 3, 5), float("nan"), dtype=weight.dtype)
    return larger[::2, :, :, 1:4].copy_(weight)


def exact(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Computed in float64, but rounded to the dtype where torch rounds."""
    tokens = x if y is None else x + y
    batch, _, channels = x.shape
    image = tokens.double().transpose(1, 2).reshape(batch, channels, *size)
    conv = torch.nn.functional.conv2d(image, weight.double(), bias.double(), padding=1, groups=channels)
    return (conv.to(x.dtype) + image.to(x.dtype)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("has_sum", [False, True], ids=["x", "x + y"])
@pytest.mark.parametrize("name", SHAPES)
def test_float32_agrees_with_float64(interpreted: Callable[..., Any], name: str, has_sum: bool) -> None:
    x, y, weight, bias = inputs_of(SHAPES[name])
    size = SHAPES[name][2:]
    added = y if has_sum else None
    expected = exact(x, added, weight, bias, size)
    outs = [interpreted(FORWARD, x, added, form(weight), bias, *size) for form in (laid_out, strided)]
    assert (outs[0] - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(outs[0], outs[1])
    assert outs[0].is_contiguous()


@pytest.mark.parametrize("has_sum", [False, True], ids=["x", "x + y"])
@pytest.mark.parametrize("name", ["primes, a part of a block of channels", "odd channels"])
def test_float16_is_rounded_where_torch_rounds(interpreted: Callable[..., Any], name: str, has_sum: bool) -> None:
    """Steps of 1/64 and weights of 1/16 are exact in fp32, so that only the three roundings are left."""
    x, y, weight, bias = inputs_of(SHAPES[name])
    x, y = ((64 * z).round() / 64 for z in (x, y))
    weight, bias = ((16 * z).round() / 16 for z in (weight, bias))
    x, y, weight, bias = (z.half() for z in (16 * x, y, weight, bias))
    size = SHAPES[name][2:]
    added = y if has_sum else None
    expected = exact(x, added, weight, bias, size)
    once = exact(x.double(), None if added is None else added.double(), weight.double(), bias.double(), size).half()
    assert not torch.equal(once, expected)  # these inputs tell one rounding from three
    assert torch.equal(interpreted(FORWARD, x, added, laid_out(weight), bias, *size), expected)


def test_tokens_may_be_strided(interpreted: Callable[..., Any]) -> None:
    x, y, weight, bias = inputs_of((2, 24, 3, 5), torch.float16)
    planes = x.transpose(1, 2).contiguous().transpose(1, 2)
    part = torch.cat((y, y), dim=2)[:, :, :24]
    assert not planes.is_contiguous() and not part.is_contiguous()
    out = interpreted(FORWARD, planes, part, weight, bias, 3, 5)
    assert torch.equal(out, interpreted(FORWARD, x, y, weight, bias, 3, 5))


def test_the_reference_is_the_models_own_to_the_bit() -> None:
    for shape, dtype in (((2, 40, 5, 17), torch.float32), ((1, 64, 8, 8), torch.float16)):
        x, y, weight, bias = inputs_of(shape, dtype)
        module = PositionEncoding(shape[1]).to(dtype)
        with torch.no_grad():
            module.proj.weight.copy_(weight)
            module.proj.bias = torch.nn.Parameter(bias)
            for added in (None, y):
                expected = module(x if added is None else x + added, shape[2:])
                out = add_position(x, added, module.proj.weight, module.proj.bias, size=shape[2:])
                assert torch.equal(out, expected)


def test_which_weights_are_dense() -> None:
    weight = inputs_of((1, 40, 1, 1))[2]
    assert is_dense(laid_out(weight))
    assert not is_dense(weight)
    assert not is_dense(strided(weight))
    assert not is_dense(laid_out(weight)[::2])


def test_wide_loads_are_of_16_bytes() -> None:
    for dtype, size in (("fp16", 2), ("bf16", 2), ("fp32", 4)):
        options = cut(dtype=dtype, whole=True, dense=True, has_sum=False).options
        assert options["VECTOR"] * size == 16
        assert options["DENSE"]
        assert cut(dtype=dtype, whole=False, dense=True, has_sum=False).options["VECTOR"] == 1


def test_the_operator_is_registered_in_full() -> None:
    x, y, weight, bias = inputs_of((2, 6, 3, 4))
    for added in (None, y):
        arguments = (x, added, weight, bias, 3, 4)
        assert set(opcheck(add_position_op, arguments).values()) == {"SUCCESS"}
        expected = add_position_reference(x, added, weight, bias, size=(3, 4))
        assert torch.equal(add_position_op(*arguments), expected)


def test_the_operator_compiles_and_exports() -> None:
    x, y, weight, bias = inputs_of((1, 6, 3, 4))
    compiled = torch.compile(
        lambda x: add_position_op(x * 2, y, weight, bias, 3, 4), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), add_position_op(x * 2, y, weight, bias, 3, 4))

    class Encoding(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return add_position(x, y, weight, bias, size=(3, 4), backend="triton")

    program = torch.export.export(Encoding(), (x, y))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def reached_by_name() -> Tensor:
    """Where kernels are interpreted."""
    return add_position(*inputs_of((1, 8, 3, 4)), size=(3, 4), backend="triton")


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    x, y, weight, bias = inputs_of((1, 8, 3, 4))
    out = interpreted("test_position:reached_by_name")
    assert torch.equal(out, interpreted(FORWARD, x, y, weight, bias, 3, 4))
    assert (out - add_position(x, y, weight, bias, size=(3, 4))).abs().max() <= 1e-5


def test_what_cannot_be_is_named() -> None:
    x, y, weight, bias = inputs_of((1, 8, 3, 4))
    with pytest.raises(UsageError, match=r"\[1, 12, 8\] are not a map of 4x4"):
        add_position(x, y, weight, bias, size=(4, 4))
    with pytest.raises(UsageError, match=r"\[8, 1, 3, 1\]"):
        add_position(x, y, weight[..., :1], bias, size=(3, 4))
    with pytest.raises(UsageError, match=r"tokens \[1, 11, 8\] to add"):
        add_position(x, y[:, :-1], weight, bias, size=(3, 4))
    with pytest.raises(UsageError, match=r"x is torch\.float32"):
        add_position(x, y.half(), weight, bias, size=(3, 4))
    with pytest.raises(UsageError, match="add_position has no backend 'sdpa'"):
        add_position(x, y, weight, bias, size=(3, 4), backend="sdpa")
    assert unsupported(torch.empty(1, 2**21, 1023, device="meta")) is None
    assert "2147483648 elements" in str(unsupported(torch.empty(1, 2**21, 1024, device="meta")))
