"""LSA kernels in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.lsa import lsa_reference
from twins_trt.kernels.lsa.launch import forward_tiling, heads_per_program, takes_many_windows
from twins_trt.kernels.lsa.reference import PADDINGS
from twins_trt.models import zoo as models

FORWARD = "twins_trt.kernels.lsa.launch:lsa_forward"
BACKWARD = "twins_trt.kernels.lsa.launch:lsa_backward"

SHAPES = {  # batch, height, width, heads, head dim
    "1x1": (1, 1, 1, 1, 32),
    "whole windows": (1, 14, 7, 2, 32),
    "only the bottom padded": (2, 9, 14, 2, 16),
    "only the right padded": (1, 7, 20, 1, 32),
    "both padded, primes": (1, 11, 17, 1, 64),
    "batch 3": (3, 5, 13, 2, 32),
    "one column": (1, 15, 1, 1, 16),
}


def example(shape: tuple[int, int, int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    channels = heads * head_dim
    qkv = torch.randn(batch, height, width, 3 * channels, generator=generator)
    bias = torch.randn(3 * channels, generator=generator)
    grad = torch.randn(batch, height, width, channels, generator=generator)
    return qkv.to(dtype), bias.to(dtype), grad.to(dtype)


def reference(qkv: Tensor, bias: Tensor, grad: Tensor, heads: int, padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Result and gradients in the dtype that was passed."""
    qkv, bias = qkv.clone().requires_grad_(), bias.clone().requires_grad_()
    out = lsa_reference(qkv, bias, num_heads=heads, padding=padding)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), grad, allow_unused=True)
    return out.detach(), dqkv, torch.zeros_like(bias) if dbias is None else dbias


def error(x: Tensor, exact: Tensor) -> float:
    """‖x − exact‖ / ‖exact‖; root mean square of x − exact where exact is all but zero. NaN where any element is."""
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_agrees_with_the_reference_in_float64(interpreted: Callable[..., Any], name: str, padding: str) -> None:
    heads = SHAPES[name][3]
    qkv, bias, grad = example(SHAPES[name], torch.float32)
    exact = reference(qkv.double(), bias.double(), grad.double(), heads, padding)
    out = interpreted(FORWARD, qkv, bias, num_heads=heads, padding=padding)
    dqkv, dbias = interpreted(BACKWARD, grad, qkv, bias, num_heads=heads, padding=padding)
    assert error(out, exact[0]) <= 1e-5
    assert error(dqkv, exact[1]) <= 1e-5
    assert error(dbias, exact[2]) <= 1e-5


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_float16_errs_at_most_twice_as_much_as_the_reference(
    interpreted: Callable[..., Any], name: str, padding: str
) -> None:
    heads = SHAPES[name][3]
    qkv, bias, grad = example(SHAPES[name], torch.float16)
    exact = reference(qkv.double(), bias.double(), grad.double(), heads, padding)
    half = reference(qkv, bias, grad, heads, padding)
    out = interpreted(FORWARD, qkv, bias, num_heads=heads, padding=padding)
    dqkv, dbias = interpreted(BACKWARD, grad, qkv, bias, num_heads=heads, padding=padding)
    for ours, theirs, value in zip((out, dqkv, dbias), half, exact, strict=True):
        assert ours.dtype == torch.float16
        assert error(ours, value) <= 2 * error(theirs, value)


@pytest.mark.parametrize("name", ["only the bottom padded", "batch 3"])
def test_two_heads_in_one_program(interpreted: Callable[..., Any], name: str) -> None:
    qkv, bias, _ = example(SHAPES[name], torch.float16)
    one = interpreted(FORWARD, qkv, bias, num_heads=2)
    two = interpreted("interpreter:call_with", {"heads_per_program": 2}, FORWARD, qkv, bias, num_heads=2)
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["only the bottom padded", "only the right padded", "both padded, primes"])
def test_float32_gradients_as_tiled_for_hopper(interpreted: Callable[..., Any], name: str) -> None:
    heads = SHAPES[name][3]
    qkv, bias, grad = example(SHAPES[name], torch.float32)
    exact = reference(qkv.double(), bias.double(), grad.double(), heads, "parity")
    hopper = {"capability": 90}
    dqkv, dbias = interpreted("interpreter:call_with", hopper, BACKWARD, grad, qkv, bias, num_heads=heads)
    assert error(dqkv, exact[1]) <= 1e-5
    assert error(dbias, exact[2]) <= 1e-5


@pytest.mark.parametrize("form", ["dense", "inside a larger map", "columns first"])
@pytest.mark.parametrize("name", ["whole windows", "both padded, primes", "batch 3"])
def test_gradients_with_many_windows_a_program(interpreted: Callable[..., Any], name: str, form: str) -> None:
    """Four programs at most, so that most take several windows; `batch 3` has 12, edges among them."""
    heads = SHAPES[name][3]
    qkv, bias, grad = example(SHAPES[name], torch.float16)
    exact = reference(qkv.double(), bias.double(), grad.double(), heads, "masked")
    half = reference(qkv, bias, grad, heads, "masked")
    if form != "dense":
        qkv, grad = strided_forms(qkv)[form], strided_forms(grad)[form]
    many = {"takes_many_windows": True}
    call = ("interpreter:call_with", many, BACKWARD, grad, qkv, bias)
    dqkv, dbias = interpreted(*call, num_heads=heads, padding="masked")
    assert error(dqkv, exact[1]) <= 2 * error(half[1], exact[1])
    assert not dbias.any()


def test_programs_take_many_windows_only_where_that_was_faster() -> None:
    def many(windows: int, **other: Any) -> bool:
        kind = {"dtype": "fp16", "head_dim": 32, "pads_attend": False, "capability": 90, "multiprocessors": 132}
        return takes_many_windows(windows=windows, **kind | other)

    assert many(2 * 16 * 19 * 19) and many(4 * 16 * 10 * 10)  # stages 1 and 2 of SVT-S
    assert not many(8 * 16 * 5 * 5) and not many(2 * 19 * 19)  # stage 3, and one image
    assert many(2 * 19 * 19, multiprocessors=16)
    for other in ({"pads_attend": True}, {"dtype": "fp32"}, {"head_dim": 64}, {"capability": 87}):
        assert not many(2 * 16 * 19 * 19, **other)


def test_heads_share_a_program_only_when_there_is_work_for_everybody() -> None:
    stage_1 = 19 * 19

    def heads(dtype: str, num_heads: int, windows: int, *, head_dim: int = 32, capability: int = 80) -> int:
        return heads_per_program(
            dtype=dtype,
            head_dim=head_dim,
            num_heads=num_heads,
            windows=windows,
            capability=capability,
            multiprocessors=132,
        )

    assert heads("fp16", 2, 16 * stage_1) == 2
    assert heads("fp16", 2, stage_1) == 1
    assert heads("fp16", 3, 16 * stage_1) == 1
    assert heads("fp32", 2, 16 * stage_1) == 1
    assert heads("fp16", 2, 16 * stage_1, capability=90) == 1  # in fewer registers instead
    assert heads("fp16", 2, 16 * stage_1, capability=90, head_dim=64) == 2


def test_registers_are_limited_where_that_was_faster_and_does_not_spill() -> None:
    limits = {
        (dtype, head_dim, sm): forward_tiling(
            dtype=dtype,
            head_dim=head_dim,
            heads_per_program=1,
            pads_attend=False,
            precision="tf32",
            window_size=7,
            capability=sm,
        ).max_registers
        for dtype in ("fp16", "bf16", "fp32")
        for head_dim in (16, 32, 64)
        for sm in (87, 90, 100, 120)
    }
    assert {key: limit for key, limit in limits.items() if limit is not None} == {
        (dtype, head_dim, 90): 64 for dtype in ("fp16", "bf16") for head_dim in (16, 32)
    }


def test_padded_keys_take_part_only_where_mmsegmentation_lets_them(interpreted: Callable[..., Any]) -> None:
    """One axis padded: `parity` and `masked` differ, and the bias has a gradient in `parity` alone."""
    shape = SHAPES["only the bottom padded"]
    qkv, bias, grad = example(shape, torch.float32)
    parity = interpreted(FORWARD, qkv, bias, num_heads=shape[3], padding="parity")
    masked = interpreted(FORWARD, qkv, bias, num_heads=shape[3], padding="masked")
    assert torch.equal(parity[:, :7], masked[:, :7])
    assert error(parity[:, 7:], masked[:, 7:].double()) > 0.1
    channels = qkv.shape[-1] // 3
    _, with_pads = interpreted(BACKWARD, grad, qkv, bias, num_heads=shape[3], padding="parity")
    _, without = interpreted(BACKWARD, grad, qkv, bias, num_heads=shape[3], padding="masked")
    assert with_pads[channels:].abs().min() > 0
    assert not with_pads[:channels].any()  # a padded token's query goes nowhere
    assert not without.any()


def test_models_and_kernels_know_the_same_paddings() -> None:
    assert models.PADDINGS == PADDINGS


@pytest.mark.parametrize("name", SHAPES)
def test_unmasked_pads_are_tokens_that_project_to_the_bias(name: str) -> None:
    """As timm computes it: zeros are padded before the projection, so that every window is whole."""
    _, height, width, heads, _ = SHAPES[name]
    qkv, bias, _ = example(SHAPES[name], torch.float64)
    bottom, right = -height % 7, -width % 7
    whole = bias.expand(qkv.shape[0], height + bottom, width + right, -1).clone()
    whole[:, :height, :width] = qkv
    expected = lsa_reference(whole, torch.full_like(bias, float("nan")), num_heads=heads)[:, :height, :width]
    out = lsa_reference(qkv, bias, num_heads=heads, padding="unmasked")
    assert torch.equal(out, expected)
    masked = lsa_reference(qkv, bias, num_heads=heads, padding="masked")
    assert torch.equal(out, masked) == (bottom == right == 0)


def test_unmasked_pads_of_both_axes_reach_the_bias_gradient_window_by_window(interpreted: Callable[..., Any]) -> None:
    """Each edge window has a row of its own: a row that two windows write, or none does, gives another sum or NaN."""
    for shape in ((2, 11, 17, 1, 16), (2, 5, 5, 1, 16), (1, 8, 22, 2, 16), (2, 22, 8, 1, 16)):
        qkv, bias, grad = example(shape, torch.float32)
        exact = reference(qkv.double(), bias.double(), grad.double(), shape[3], "unmasked")
        dqkv, dbias = interpreted(BACKWARD, grad, qkv, bias, num_heads=shape[3], padding="unmasked")
        assert error(dqkv, exact[1]) <= 1e-5
        assert error(dbias, exact[2]) <= 1e-5 and dbias.any()


@pytest.mark.parametrize("window_size", [3, 5, 8])
def test_other_window_sizes(interpreted: Callable[..., Any], window_size: int) -> None:
    qkv, bias, grad = example((1, 9, 12, 1, 16), torch.float32)
    x, b = qkv.double().requires_grad_(), bias.double().requires_grad_()
    exact = lsa_reference(x, b, num_heads=1, window_size=window_size)
    exact.backward(grad.double())
    assert x.grad is not None
    out = interpreted(FORWARD, qkv, bias, num_heads=1, window_size=window_size)
    dqkv, _ = interpreted(BACKWARD, grad, qkv, bias, num_heads=1, window_size=window_size)
    assert error(out, exact.detach()) <= 1e-5
    assert error(dqkv, x.grad) <= 1e-5


def strided_forms(x: Tensor) -> dict[str, Tensor]:
    """The same values at other strides."""
    batch, height, width, channels = x.shape
    inside = torch.full((batch, height + 2, 2 * width, channels + 16), float("nan"), dtype=x.dtype)
    inside = inside[:, 1 : height + 1, ::2, 16:]
    inside.copy_(x)
    return {
        "inside a larger map": inside,
        "columns first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "channels first": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    }


@pytest.mark.parametrize("form", ["inside a larger map", "columns first", "channels first"])
def test_strides_do_not_matter(interpreted: Callable[..., Any], form: str) -> None:
    qkv, bias, grad = example((2, 9, 8, 1, 32), torch.float32)
    out = interpreted(FORWARD, qkv, bias, num_heads=1)
    dqkv, dbias = interpreted(BACKWARD, grad, qkv, bias, num_heads=1)
    qkv, grad = strided_forms(qkv)[form], strided_forms(grad)[form]
    assert not qkv.is_contiguous() and not grad.is_contiguous()
    assert torch.equal(interpreted(FORWARD, qkv, bias, num_heads=1), out)
    strided = interpreted(BACKWARD, grad, qkv, bias, num_heads=1)
    assert torch.equal(strided[0], dqkv) and torch.equal(strided[1], dbias)


def test_a_batch_taller_than_the_grid_is_launched_in_parts(interpreted: Callable[..., Any]) -> None:
    qkv, bias, grad = example((5, 9, 7, 1, 16), torch.float32)
    out = interpreted(FORWARD, qkv, bias, num_heads=1)
    dqkv, dbias = interpreted(BACKWARD, grad, qkv, bias, num_heads=1)
    grid = {"MAX_BLOCKS": 4}
    assert torch.equal(interpreted("interpreter:call_with", grid, FORWARD, qkv, bias, num_heads=1), out)
    parts = interpreted("interpreter:call_with", grid, BACKWARD, grad, qkv, bias, num_heads=1)
    assert torch.equal(parts[0], dqkv) and torch.equal(parts[1], dbias)
    assert dbias.any()


def test_a_map_that_a_kernel_cannot_address_is_refused(interpreted: Callable[..., Any]) -> None:
    storage = torch.zeros(1, 96)
    qkv = storage.as_strided((1, 1, 1, 96), (0, 2**29, 96, 1))
    with pytest.raises(UsageError, match="spans 3758097152 elements"):
        interpreted(FORWARD, qkv, torch.zeros(96), num_heads=1)


@pytest.mark.parametrize("window_size", [3, 7, 8])
def test_which_tokens_lie_in_the_map(interpreted: Callable[..., Any], window_size: int) -> None:
    found = interpreted("probe_kernels:tokens_in_maps", window_size)
    assert len(found) == (window_size + 1) ** 2
    for (rows, columns), tokens in found.items():
        expected = [t < window_size**2 and t // window_size < rows and t % window_size < columns for t in range(64)]
        assert tokens == expected, (rows, columns)
