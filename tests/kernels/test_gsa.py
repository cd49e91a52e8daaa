"""GSA kernels in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.case import Tiling
from twins_trt.kernels.gsa import gsa_reference
from twins_trt.kernels.gsa.launch import (
    SUM_TILING,
    backward_tiling,
    forward_tiling,
    one_program_holds_all_keys,
    splits_of_queries,
)

FORWARD = "twins_trt.kernels.gsa.launch:gsa_forward"
BACKWARD = "twins_trt.kernels.gsa.launch:gsa_backward"
CALL_WITH = "interpreter:call_with"

SHAPES = {  # batch, queries, keys, heads, head dim
    "1 query, 1 key": (1, 1, 1, 1, 32),
    "1 key": (1, 70, 1, 1, 64),
    "whole blocks": (1, 128, 128, 2, 32),
    "256 keys": (1, 96, 256, 1, 32),
    "primes, batch 3": (3, 131, 37, 2, 32),
    "head dim 64": (2, 60, 129, 1, 64),
    "more keys than one program holds": (1, 70, 300, 1, 64),
}
FORMS = [(name, one) for name in SHAPES for one in (True, False) if not one or SHAPES[name][2] <= 256]
FLOAT32_ROUNDING = 1e-6  # what remains in 16-bit results where cancellation makes the exact value, and theirs, zero


def example(shape: tuple[int, int, int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, keys, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, queries, heads * head_dim, generator=generator)
    kv = torch.randn(batch, keys, 2 * heads * head_dim, generator=generator)
    grad = torch.randn(batch, queries, heads * head_dim, generator=generator)
    return q.to(dtype), kv.to(dtype), grad.to(dtype)


def reference(q: Tensor, kv: Tensor, grad: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Result and gradients in the dtype that was passed."""
    q, kv = q.clone().requires_grad_(), kv.clone().requires_grad_()
    out = gsa_reference(q, kv, num_heads=heads)
    return out.detach(), *torch.autograd.grad(out, (q, kv), grad)


def error(x: Tensor, exact: Tensor) -> float:
    """‖x − exact‖ / ‖exact‖; root mean square of x − exact where exact is all but zero. NaN where any element is."""
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)


def run(
    interpreted: Callable[..., Any], q: Tensor, kv: Tensor, grad: Tensor, heads: int, **replaced: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Result and gradients by the kernels, with names of the launcher's module standing for other values."""
    out, lse = interpreted(CALL_WITH, replaced, FORWARD, q, kv, num_heads=heads)
    return out, *interpreted(CALL_WITH, replaced, BACKWARD, grad, q, kv, out, lse, num_heads=heads)


@pytest.mark.parametrize("name", SHAPES)
def test_float32_agrees_with_the_reference_in_float64(interpreted: Callable[..., Any], name: str) -> None:
    q, kv, grad = example(SHAPES[name], torch.float32)
    heads = SHAPES[name][3]
    exact = reference(q.double(), kv.double(), grad.double(), heads)
    for ours, value in zip(run(interpreted, q, kv, grad, heads), exact, strict=True):
        assert error(ours, value) <= 1e-5


@pytest.mark.parametrize(("name", "one_program"), FORMS)
def test_float16_errs_at_most_twice_as_much_as_the_reference(
    interpreted: Callable[..., Any], name: str, one_program: bool
) -> None:
    q, kv, grad = example(SHAPES[name], torch.float16)
    heads = SHAPES[name][3]
    exact = reference(q.double(), kv.double(), grad.double(), heads)
    half = reference(q, kv, grad, heads)
    kernels = run(interpreted, q, kv, grad, heads, one_program_holds_all_keys=one_program)
    for ours, theirs, value in zip(kernels, half, exact, strict=True):
        assert ours.dtype == torch.float16
        assert error(ours, value) <= max(2 * error(theirs, value), FLOAT32_ROUNDING)


@pytest.mark.parametrize("one_program", [True, False], ids=["one program", "two kernels"])
def test_queries_shared_out_over_programs(interpreted: Callable[..., Any], one_program: bool) -> None:
    q, kv, grad = example((2, 131, 37, 2, 32), torch.float32)
    exact = reference(q.double(), kv.double(), grad.double(), 2)
    replaced = {"one_program_holds_all_keys": one_program, "splits_of_queries": 3}
    kernels = run(interpreted, q, kv, grad, 2, **replaced)
    for ours, value in zip(kernels, exact, strict=True):
        assert error(ours, value) <= 1e-5


@pytest.mark.parametrize("one_program", [True, False], ids=["one program", "two kernels"])
def test_more_parts_than_are_summed_at_a_time(interpreted: Callable[..., Any], one_program: bool) -> None:
    q, kv, grad = example((1, 640, 5, 1, 32), torch.float32)
    exact = reference(q.double(), kv.double(), grad.double(), 1)
    replaced = {"one_program_holds_all_keys": one_program, "splits_of_queries": 20}
    assert SUM_TILING.options["PARTS"] < 20
    for ours, value in zip(run(interpreted, q, kv, grad, 1, **replaced), exact, strict=True):
        assert error(ours, value) <= 1e-5


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["256 keys", "primes, batch 3", "head dim 64"])
def test_float16_as_tiled_for_hopper(interpreted: Callable[..., Any], name: str, parts: int) -> None:
    q, kv, grad = example(SHAPES[name], torch.float16)
    heads = SHAPES[name][3]
    exact = reference(q.double(), kv.double(), grad.double(), heads)
    half = reference(q, kv, grad, heads)
    kernels = run(interpreted, q, kv, grad, heads, capability=90, splits_of_queries=parts)
    for ours, theirs, value in zip(kernels, half, exact, strict=True):
        assert error(ours, value) <= max(2 * error(theirs, value), FLOAT32_ROUNDING)


@pytest.mark.parametrize("one_program", [True, False], ids=["one program", "two kernels"])
def test_scores_far_below_zero_do_not_overflow(interpreted: Callable[..., Any], one_program: bool) -> None:
    """Every score near -1000: keys past the last one would otherwise weigh exp(+1000)."""
    q, kv, grad = example((1, 40, 5, 1, 32), torch.float32)
    q = q.abs() * 8
    kv[..., :32] = -kv[..., :32].abs() * 32
    exact = reference(q.double(), kv.double(), grad.double(), 1)
    scores = (q.double()[0] @ kv.double()[0, :, :32].T) * 32**-0.5
    # A score is rounded where it is summed and again where it is scaled, by up to 2^-24 of it each, and the exponential
    # makes a relative error of that. The order of the sum, and so how much of it shows, is the processor's.
    rounding = 2 * 2**-24 * float(scores.abs().max())
    for ours, value in zip(
        run(interpreted, q, kv, grad, 1, one_program_holds_all_keys=one_program), exact, strict=True
    ):
        assert error(ours, value) <= rounding


def test_log_sum_exp_is_that_of_the_scaled_scores(interpreted: Callable[..., Any]) -> None:
    q, kv, _ = example((2, 33, 70, 2, 32), torch.float32)
    _, lse = interpreted(FORWARD, q, kv, num_heads=2)
    queries = q.reshape(2, 33, 2, 32).transpose(1, 2).double()
    keys = kv[..., :64].reshape(2, 70, 2, 32).transpose(1, 2).double()
    exact = torch.logsumexp(queries @ keys.mT * 32**-0.5, dim=-1)
    assert lse.dtype == torch.float32
    assert (lse - exact).abs().max() <= 1e-5


@pytest.mark.parametrize("one_program", [True, False], ids=["one program", "two kernels"])
@pytest.mark.parametrize("form", ["inside a larger tensor", "batch last", "channels first"])
def test_strides_do_not_matter(interpreted: Callable[..., Any], form: str, one_program: bool) -> None:
    dense = example((2, 40, 21, 1, 32), torch.float32)
    expected = run(interpreted, *dense, 1, one_program_holds_all_keys=one_program)
    strided = tuple(strided_forms(x)[form] for x in dense)
    assert not any(x.is_contiguous() for x in strided)
    got = run(interpreted, *strided, 1, one_program_holds_all_keys=one_program)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def strided_forms(x: Tensor) -> dict[str, Tensor]:
    """The same values at other strides."""
    batch, rows, channels = x.shape
    inside = torch.full((batch, 2 * rows, channels + 16), float("nan"), dtype=x.dtype)[:, ::2, 16:]
    inside.copy_(x)
    return {
        "inside a larger tensor": inside,
        "batch last": x.transpose(0, 1).contiguous().transpose(0, 1),
        "channels first": x.mT.contiguous().mT,
    }


@pytest.mark.parametrize("one_program", [True, False], ids=["one program", "two kernels"])
def test_a_batch_taller_than_the_grid_is_launched_in_parts(interpreted: Callable[..., Any], one_program: bool) -> None:
    q, kv, grad = example((3, 20, 10, 1, 32), torch.float32)
    whole = run(interpreted, q, kv, grad, 1, one_program_holds_all_keys=one_program)
    parts = run(interpreted, q, kv, grad, 1, one_program_holds_all_keys=one_program, MAX_BLOCKS=2)
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_rows_that_a_kernel_cannot_address_are_refused(interpreted: Callable[..., Any]) -> None:
    q = torch.zeros(32).as_strided((1, 1, 32), (0, 2**25, 1))
    with pytest.raises(UsageError, match="span 4294967328 elements"):
        interpreted(FORWARD, q, torch.zeros(1, 1, 64), num_heads=1)


def test_one_program_holds_all_keys_where_its_registers_do() -> None:
    holds = {
        (dtype, head_dim, keys, capability): one_program_holds_all_keys(
            dtype=dtype, head_dim=head_dim, keys=keys, capability=capability
        )
        for dtype in ("fp16", "fp32")
        for head_dim in (32, 64)
        for keys in (256, 257)
        for capability in (87, 90, 120)
    }
    assert {key for key, value in holds.items() if value} == {
        ("fp16", 32, 256, 87),
        ("fp16", 32, 256, 90),
        ("fp16", 32, 256, 120),
        ("fp16", 64, 256, 90),
    }


def test_queries_are_shared_out_until_every_multiprocessor_works() -> None:
    one_round = splits_of_queries(16384, 32, 32, 32, 132)
    assert one_round == 4  # 128 programs; 5 would need a second round
    assert splits_of_queries(16384, 132, 32, 32, 132) == 1
    assert splits_of_queries(16384, 2, 32, 32, 132) > 30
    assert splits_of_queries(49, 1, 32, 32, 132) == 1  # never less than four blocks each


def test_queries_are_shared_out_in_rounds_of_programs() -> None:
    def parts(queries: int, programs: int, head_dim: int = 32) -> int:
        return splits_of_queries(queries, programs, head_dim, 2048 // head_dim, 132, in_rounds=True)

    assert parts(16384, 32) == 4  # 128 programs; 5 would need a second round
    assert parts(16384, 2) == 64  # four blocks each: three would be 172 programs
    assert parts(1024, 128) == 1
    assert parts(1024, 80, 64) == splits_of_queries(1024, 80, 64, 32, 132) == 1  # 3 were slower
    assert parts(16384, 1, 64) == 128  # 64 would leave half of the multiprocessors idle


def test_tilings_differ_on_hopper_where_that_was_measured() -> None:
    def forward(capability: int, head_dim: int = 32, *, small: bool = False, tail: bool = False) -> Tiling:
        kind = {"dtype": "fp16", "precision": "tf32", "small": small, "tail": tail}
        return forward_tiling(head_dim=head_dim, capability=capability, **kind)

    assert forward(87) == forward(120) != forward(90)
    assert forward(87, small=True) == forward(90, small=True)
    assert [forward(90, *form).max_registers for form in ((32,), (64,))] == [80, 96]
    assert forward(90, 64, tail=True).max_registers is None  # it would spill
    backward = {
        (head_dim, capability): backward_tiling(head_dim=head_dim, keys=256, precision="tf32", capability=capability)
        for head_dim in (32, 64)
        for capability in (87, 90, 100)
    }
    assert backward[32, 87] == backward[32, 100] != backward[32, 90]
    assert backward[64, 90] == backward[64, 100]
