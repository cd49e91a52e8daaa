"""The add-and-normalize kernel in Triton's interpreter, and its operator, against torch's own in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import every_other, planes, rows_apart
from torch import Tensor
from torch.library import opcheck

from twins_trt.errors import UsageError
from twins_trt.kernels.crosscompile.compiler import compile_case
from twins_trt.kernels.layer_norm import add_layer_norm, add_layer_norm_reference
from twins_trt.kernels.layer_norm.launch import BLOCK, MODEL_CHANNELS, cases, cut, equally_spaced, unsupported
from twins_trt.kernels.layer_norm.op import add_layer_norm_op

FORWARD = "twins_trt.kernels.layer_norm.launch:add_layer_norm_forward"
EPS = 1e-6

SHAPES = {
    "one row": (16,),
    "one row of the most channels": (1, 2048),
    "rows that end inside a block, 64 channels": (2, 19, 64),
    "a whole block": (16, 64),
    "odd channels": (37, 21),
    "96 channels": (3, 5, 96),
    "320 channels": (2, 3, 320),
    "768 channels": (3, 768),
    "four axes": (2, 3, 5, 128),
}


def tensors_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All that can be passed. Channels differ in mean and size, and the rows' mean is not zero."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)

    channels = shape[-1]
    return {
        "x": random(*shape, scale=2.0, shift=1.5),
        "y": random(*shape),
        "weight": random(channels, scale=0.3, shift=1.0),
        "bias": random(channels, scale=0.5),
        "row": random(channels, scale=3.0),
    }


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).abs().max())


def exact_norm(total: Tensor, given: dict[str, Tensor]) -> Tensor:
    weight, bias = given["weight"].double(), given["bias"].double()
    return torch.nn.functional.layer_norm(total.double(), total.shape[-1:], weight, bias, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_is_as_exact_as_torch(interpreted: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    given = tensors_of(SHAPES[name], dtype)
    x, y, row = given["x"], given["y"], given["row"]
    for residual, bias_row in ((None, None), (y, None), (None, row), (y, row)):
        vectors = (given["weight"], given["bias"])
        total, normalized = interpreted(FORWARD, x, residual, *vectors, eps=EPS, row=bias_row, keep_sum=True)
        expected, theirs = add_layer_norm_reference(x, residual, *vectors, eps=EPS, row=bias_row)
        if residual is None and bias_row is None:
            assert total.numel() == 0
        else:
            assert torch.equal(total, expected)
        exact = exact_norm(expected, given)
        assert normalized.dtype == dtype and normalized.shape == x.shape
        # a few roundings of fp32, which torch may have been lucky with in a single row
        roundings = torch.finfo(torch.float32).eps * float(exact.abs().max())
        assert error(normalized, exact) <= 2 * max(error(theirs, exact), roundings)


def test_a_sum_that_nobody_wants_is_not_made(interpreted: Callable[..., Any]) -> None:
    given = tensors_of((7, 96))
    arguments = (given["x"], given["y"], given["weight"], given["bias"])
    _, normalized = interpreted(FORWARD, *arguments, eps=EPS, row=given["row"], keep_sum=True)
    total, alone = interpreted(FORWARD, *arguments, eps=EPS, row=given["row"], keep_sum=False)
    assert total.shape == (0,)
    assert torch.equal(alone, normalized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["rows that end inside a block, 64 channels", "96 channels", "one row"])
def test_what_comes_after_is_in_the_sum_alone(interpreted: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    """The bias of a product that is added to the sum later. LayerNorm does not see it."""
    given = tensors_of(SHAPES[name], dtype)
    x, y, vectors = given["x"], given["y"], (given["weight"], given["bias"])
    after = torch.stack((given["row"], torch.full_like(given["row"], float("nan"))), 1)[:, 0]  # strided
    for row in (None, given["bias"]):
        arguments = {"eps": EPS, "row": row, "keep_sum": True}
        without, expected = interpreted(FORWARD, x, y, *vectors, **arguments)
        total, normalized = interpreted(FORWARD, x, y, *vectors, after=after, **arguments)
        assert torch.equal(normalized, expected)
        assert torch.equal(total, without + after) and total.is_contiguous()


def test_a_large_mean_takes_nothing_from_the_variance(interpreted: Callable[..., Any]) -> None:
    """The mean of the squares less the square of the mean would be wrong in its first digit here."""
    given = tensors_of((5, 96))
    x = given["x"] + 4096
    _, normalized = interpreted(FORWARD, x, None, given["weight"], given["bias"], eps=EPS, row=None, keep_sum=True)
    assert error(normalized, exact_norm(x, given)) <= 1e-3


def test_eps_is_part_of_the_variance(interpreted: Callable[..., Any]) -> None:
    given = tensors_of((3, 64))
    flat = torch.full((3, 64), 7.0)
    _, normalized = interpreted(FORWARD, flat, None, given["weight"], given["bias"], eps=EPS, row=None, keep_sum=True)
    assert torch.equal(normalized, given["bias"].expand(3, 64))
    ones, zeros = torch.ones(64), torch.zeros(64)
    _, shrunk = interpreted(FORWARD, given["x"], None, ones, zeros, eps=1e6, row=None, keep_sum=True)
    assert shrunk.abs().max() <= 0.01


@pytest.mark.parametrize("form", [rows_apart, planes, every_other])
def test_strides_do_not_matter(interpreted: Callable[..., Any], form: Callable[[Tensor], Tensor]) -> None:
    given = tensors_of((2, 11, 96))
    x, y, vectors = given["x"], given["y"], (given["weight"], given["bias"])
    total, normalized = interpreted(FORWARD, x, y, *vectors, eps=EPS, row=None, keep_sum=True)
    for first, second in ((form(x), y), (x, form(y))):
        results = interpreted(FORWARD, first, second, *vectors, eps=EPS, row=None, keep_sum=True)
        assert torch.equal(results[0], total) and results[0].is_contiguous()
        assert torch.equal(results[1], normalized) and results[1].is_contiguous()


def test_equally_spaced_rows_are_read_in_place() -> None:
    x = torch.zeros(2, 11, 96)
    view = rows_apart(x)
    channels_last = torch.zeros(2, 96, 3, 5).to(memory_format=torch.channels_last).flatten(2).transpose(1, 2)
    for form, step in ((x, 96), (view, 128), (channels_last, 96), (x[0, 0], 96)):
        rows = equally_spaced(form, 8)
        assert rows.data_ptr() == form.data_ptr() and rows.stride() == (step, 1)
    for form in (planes(x), every_other(x)):
        assert equally_spaced(form, 8).is_contiguous()
    far = torch.empty_strided((2, 96), (2**29, 1), device="meta")
    assert equally_spaced(far, 2).stride() == (2**29, 1)
    assert equally_spaced(far, 4).is_contiguous()


def test_a_program_has_1024_elements_or_one_row() -> None:
    for channels in range(16, 2049):
        constants = dict(cut(channels, row=False, residual=False).constants)
        assert channels <= constants["BC"] < 2 * channels
        assert constants["BC"] * constants["BR"] == max(BLOCK, constants["BC"])
    assert [cut(c, row=True, residual=True).num_warps for c in (16, 64, 1024, 1025, 2048)] == [2, 2, 2, 4, 4]


@pytest.mark.parametrize("channels", [64, 96, 320])
def test_16_bit_loads_are_16_bytes_wide(channels: int) -> None:
    """Those of the vectors too, and without shared memory where a row lies in one warp."""
    pytest.importorskip("triton", reason="Triton is not installed")
    case = next(c for c in cases(87) if c.dtype == "fp16" and c.variant == f"{channels} channels residual")
    resources = compile_case(case, "sm_87").resources
    assert (resources.narrow_loads, resources.wide_loads, resources.spills) == (0, 8, 0)
    assert (resources.shared == 0) == (channels <= 256)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in cases(90)]
    assert len(set(names)) == len(names) == 3 * 4 * len(MODEL_CHANNELS)
    assert {"add_layer_norm fp16 0 96 channels row", "add_layer_norm bf16 0 320 channels residual, row after"} <= set(
        names
    )


@pytest.mark.parametrize(
    ("added", "keep_sum"), [("residual", True), ("residual", False), ("row", False), ("nothing", True)]
)
def test_the_operator_is_registered_in_full(added: str, keep_sum: bool) -> None:
    given = tensors_of((2, 5, 24))
    y = given["y"] if added == "residual" else None
    row = given["row"] if added == "row" else None
    for x in (given["x"], planes(given["x"])):
        arguments = (x, y, given["weight"], given["bias"], row, EPS, keep_sum)
        assert set(opcheck(add_layer_norm_op, arguments).values()) == {"SUCCESS"}
        total, normalized = add_layer_norm_op(*arguments)
        expected = add_layer_norm_reference(x, y, given["weight"], given["bias"], eps=EPS, row=row)
        assert torch.equal(normalized, expected[1])
        if keep_sum and added != "nothing":
            assert torch.equal(total, expected[0])
        else:
            assert total.shape == (0,)


def test_the_operator_compiles_and_exports() -> None:
    given = tensors_of((2, 5, 24))
    x, y, vectors = given["x"], given["y"], (given["weight"], given["bias"])
    compiled = torch.compile(
        lambda x, y: add_layer_norm_op(x * 2, y, *vectors, None, EPS, True), fullgraph=True, backend="aot_eager"
    )
    for ours, theirs in zip(compiled(x, y), add_layer_norm_op(x * 2, y, *vectors, None, EPS, True), strict=True):
        assert torch.equal(ours, theirs)

    class Norm(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return add_layer_norm(x, y, *vectors, eps=EPS, backend="triton")

    program = torch.export.export(Norm(), (x, y))
    assert not any("twins_trt" in str(node.target) for node in program.graph.nodes)


def test_outside_a_gpu_it_is_the_plain_model_to_the_bit() -> None:
    given = tensors_of((2, 7, 96))
    norm = torch.nn.LayerNorm(96, eps=EPS)
    norm.load_state_dict({name: given[name] for name in ("weight", "bias")})
    x, y, row = given["x"], given["y"], given["row"]
    with torch.no_grad():
        total, normalized = add_layer_norm(x, y, norm.weight, norm.bias, eps=EPS)
        assert torch.equal(total, x + y) and torch.equal(normalized, norm(x + y))
        total, normalized = add_layer_norm(x, y, norm.weight, norm.bias, eps=EPS, row=row)
        assert torch.equal(total, x + row + y) and torch.equal(normalized, norm(x + row + y))
        total, normalized = add_layer_norm(x, None, norm.weight, norm.bias, eps=EPS)
        assert total is x and torch.equal(normalized, norm(x))
        total, normalized = add_layer_norm(x, y, norm.weight, norm.bias, eps=EPS, keep_sum=False)
        assert total.shape == (0,) and torch.equal(normalized, norm(x + y))


def reached_by_name() -> tuple[bool, Tensor, Tensor, Tensor]:
    """Where kernels are interpreted."""
    given = tensors_of((2, 5, 96))
    x, vectors = given["x"], (given["weight"], given["bias"])
    itself, normalized = add_layer_norm(x, None, *vectors, eps=EPS, backend="triton")
    total, normalized_total = add_layer_norm(x, given["y"], *vectors, eps=EPS, backend="triton")
    return itself is x, normalized, total, normalized_total


def test_the_public_function_reaches_the_kernel(interpreted: Callable[..., Any]) -> None:
    itself, normalized, total, normalized_total = interpreted("test_layer_norm:reached_by_name")
    given = tensors_of((2, 5, 96))
    assert itself
    assert torch.equal(total, given["x"] + given["y"])
    assert error(normalized, exact_norm(given["x"], given)) <= 2e-6
    assert error(normalized_total, exact_norm(total, given)) <= 2e-6
    vectors = {"eps": EPS, "row": None, "keep_sum": True}
    kernel = interpreted(FORWARD, given["x"], given["y"], given["weight"], given["bias"], **vectors)
    assert torch.equal(normalized_total, kernel[1])


def test_what_cannot_be_is_named() -> None:
    given = tensors_of((2, 5, 96))
    x, weight, bias = given["x"], given["weight"], given["bias"]
    with pytest.raises(UsageError, match=r"residual \[5, 96\] does not fit x \[2, 5, 96\]"):
        add_layer_norm(x, x[0], weight, bias, eps=EPS)
    with pytest.raises(UsageError, match=r"weight \[95\]"):
        add_layer_norm(x, None, weight[1:], bias, eps=EPS)
    with pytest.raises(UsageError, match=r"row \[1, 96\]"):
        add_layer_norm(x, None, weight, bias, eps=EPS, row=weight[None])
    with pytest.raises(UsageError, match=r"int64 \[3\] has no channels"):
        add_layer_norm(torch.zeros(3, dtype=torch.int64), None, weight, bias, eps=EPS)
    with pytest.raises(UsageError, match="add_layer_norm has no backend 'sdpa'"):
        add_layer_norm(x, None, weight, bias, eps=EPS, backend="sdpa")
    with pytest.raises(UsageError, match=r"torch\.float16 beside torch\.float32"):
        add_layer_norm(x, x.half(), weight, bias, eps=EPS, backend="triton")


def test_the_kernel_says_what_it_does_not_take() -> None:
    assert unsupported(torch.empty(3, 2048), None) is None
    assert "15 channels" in str(unsupported(torch.empty(3, 15)))
    assert "2049 channels" in str(unsupported(torch.empty(3, 2049)))
    assert "0 rows" in str(unsupported(torch.empty(0, 64)))
    assert "2147483648 rows" in str(unsupported(torch.empty(2**31, 16, device="meta")))
    nothing = add_layer_norm(torch.empty(0, 64), None, torch.ones(64), torch.ones(64), eps=EPS)[1]
    assert nothing.shape == (0, 64)
