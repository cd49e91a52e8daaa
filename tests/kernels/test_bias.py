"""The bias kernel in Triton's interpreter, its operator and its reference, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import EngineError, UsageError
from twins_trt.kernels.bias import bias_act_
from twins_trt.kernels.bias.launch import cut, unsupported
from twins_trt.kernels.bias.op import bias_act_op_

SHAPES = {  # batch, channels, height, width
    "1x1": (1, 8, 1, 1),
    "one value": (1, 1, 1, 1),
    "batch 3, primes": (3, 24, 5, 7),
    "more than a program takes": (1, 160, 9, 13),
    "odd channels": (2, 19, 5, 3),
}
DTYPES = [torch.float32, torch.float16]


def inputs_of(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A map, channels last, and a bias."""
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(shape, generator=generator), torch.randn(shape[1], generator=generator)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)


def expected_of(x: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = x + bias[:, None, None]
    return torch.relu(out) if relu else out


def changed(x: Tensor, bias: Tensor, relu: bool, backend: str = "triton") -> Tensor:
    """Where kernels are interpreted: x, which was changed in place. That process shares memory with this one."""
    out = bias_act_(x, bias, relu=relu, backend=backend)
    assert out is x
    return x


CHANGED = "test_bias:changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_is_torch_to_the_bit(interpreted: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    x, bias = inputs_of(SHAPES[name], dtype)
    for relu in (False, True):
        assert torch.equal(interpreted(CHANGED, x.clone(), bias, relu), expected_of(x, bias, relu))


def test_nothing_outside_is_written(interpreted: Callable[..., Any]) -> None:
    """The middle one of three images, whose elements end inside a program's run."""
    images, bias = inputs_of((3, 24, 5, 7), torch.float16)
    out = interpreted("test_bias:changed_in_the_middle", images.clone(), bias)
    assert torch.equal(out[::2], images[::2])
    assert torch.equal(out[1:2], expected_of(images[1:2], bias, True))


def changed_in_the_middle(images: Tensor, bias: Tensor) -> Tensor:
    changed(images[1:2], bias, True)
    return images


def test_nan_stays_and_a_strided_bias_is_read(interpreted: Callable[..., Any]) -> None:
    x, bias = inputs_of((1, 8, 2, 3))
    x[0, 3, 1, 1] = float("nan")
    x[0, 4, 1, 1] = float("-inf")
    apart = torch.stack((bias, bias + 1), dim=1)[:, 0]
    out = interpreted(CHANGED, x.clone(), apart, True)
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.nan_to_num(), expected_of(x, bias, True).nan_to_num())


def test_wide_loads_are_of_16_bytes() -> None:
    for dtype, size in (("fp16", 2), ("bf16", 2), ("fp32", 4)):
        assert cut(dtype=dtype, whole=True, relu=True).options["VECTOR"] * size == 16
        assert cut(dtype=dtype, whole=False, relu=True).options["VECTOR"] == 1


def test_other_layouts_go_to_the_reference() -> None:
    planes = torch.randn(2, 5, 3, 4)
    bias = torch.randn(5)
    expected = expected_of(planes, bias, True)
    assert "channels_last" in str(unsupported(planes))
    assert unsupported(planes.contiguous(memory_format=torch.channels_last)) is None
    assert bias_act_(planes, bias, relu=True) is planes
    assert torch.equal(planes, expected)


def test_the_operator_is_registered_in_full() -> None:
    for relu in (False, True):
        x, bias = inputs_of((2, 5, 3, 4))
        expected = expected_of(x, bias, relu)
        assert set(opcheck(bias_act_op_, (x.clone(), bias, relu)).values()) == {"SUCCESS"}
        assert bias_act_op_(x, bias, relu) is None
        assert torch.equal(x, expected)


def test_the_operator_compiles_and_exports() -> None:
    x, bias = inputs_of((1, 5, 3, 4))

    def doubled(x: Tensor) -> Tensor:
        out = x * 2
        bias_act_op_(out, bias, True)
        return out

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected_of(x * 2, bias, True))

    class Act(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return bias_act_(x * 2, bias, relu=True, backend="triton")

    program = torch.export.export(Act(), (x,))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), expected_of(x * 2, bias, True))


def test_what_cannot_be_is_named() -> None:
    x, bias = inputs_of((1, 8, 3, 4))
    with pytest.raises(UsageError, match=r"\[8, 3, 4\]"):
        bias_act_(x[0], bias, relu=True)
    with pytest.raises(UsageError, match=r"a bias \[7\] does not fit maps \[1, 8, 3, 4\]"):
        bias_act_(x, bias[:7], relu=True)
    with pytest.raises(UsageError, match=r"its bias torch\.float16"):
        bias_act_(x, bias.half(), relu=True)
    with pytest.raises(UsageError, match="bias_act_ has no backend 'sdpa'"):
        bias_act_(x, bias, relu=True, backend="sdpa")
    with pytest.raises(UsageError, match="channels_last"):
        bias_act_(x.contiguous(), bias, relu=True, backend="triton")
    with pytest.raises(EngineError, match="do not run on a cpu tensor"):
        bias_act_(x, bias, relu=True, backend="triton")
    many = torch.empty(2**15, 2**16, 1, 1, device="meta")
    assert "2147483648 elements" in str(unsupported(many))
    assert unsupported(many[1:]) is None
