"""The attention kernels on a GPU: what neither the interpreter nor cross-compilation can show.

`test_gpu_tests.py` runs these tests' logic on a CPU: it sets DEVICE, COMPILER and smaller shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from interpreter import poisoned_allocations
from torch import Tensor

from twins_trt.kernels.gsa import gsa, gsa_reference, gsa_sdpa
from twins_trt.kernels.lsa import lsa, lsa_reference, lsa_sdpa

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

DEVICE = "cuda"
COMPILER = "inductor"
FLOAT32 = 5e-5
"""Largest relative error of fp32 results by three tf32 products. A tensor core cuts off what it adds up instead of
rounding, about 4e-8 of the sum each time. A sum over 1,000 keys is 375 additions, so that 1e-5 would be luck."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ATTENTIONS = ["lsa", "gsa"]
LSA_SHAPES = {  # batch, height, width, heads, head dim
    "stage 1 of SVT-S": (2, 128, 128, 2, 32),
    "stage 1 of SVT-B, many windows": (16, 128, 128, 3, 32),
    "stage 4 of SVT-S": (1, 16, 16, 16, 32),
    "one axis padded": (2, 33, 56, 4, 32),
    "1x1": (1, 1, 1, 2, 32),
    "head dim 16, primes": (3, 31, 53, 2, 16),
    "head dim 64, whole windows": (2, 28, 35, 3, 64),
}
GSA_SHAPES = {  # batch, queries, keys, heads, head dim
    "stage 1 of SVT-S": (2, 16384, 256, 2, 32),
    "stage 4 of SVT-S": (1, 256, 256, 16, 32),
    "stage 1 of PCPVT": (2, 16384, 256, 1, 64),
    "stage 3 of PCPVT": (1, 1024, 256, 5, 64),
    "primes": (3, 1009, 131, 2, 32),
    "1 key": (1, 37, 1, 1, 64),
    "many keys": (1, 2048, 1000, 2, 32),
    "many keys, head dim 64": (1, 500, 777, 2, 64),
}
PADS_ATTEND = "lsa, unmasked"
SHAPES = [("lsa", name) for name in LSA_SHAPES] + [("gsa", name) for name in GSA_SHAPES]
SHAPES += [(PADS_ATTEND, name) for name in ("stage 1 of SVT-S", "head dim 16, primes")]  # both axes padded


def example(attention: str, name: str, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Tensor, int]:
    """Inputs, gradient of the result, and the number of heads."""
    torch.manual_seed(0)
    if attention != "gsa":
        batch, height, width, heads, head_dim = LSA_SHAPES[name]
        first, second = (batch, height, width, 3 * heads * head_dim), (3 * heads * head_dim,)
        out = (batch, height, width, heads * head_dim)
    else:
        batch, queries, keys, heads, head_dim = GSA_SHAPES[name]
        first, second = (batch, queries, heads * head_dim), (batch, keys, 2 * heads * head_dim)
        out = first
    x, y, grad = (torch.randn(shape, device=DEVICE).to(dtype) for shape in (first, second, out))
    return (x, y), grad, heads


def form(attention: str, backend: str) -> Callable[..., Tensor]:
    forms = {
        "lsa": {"triton": lsa, "reference": lsa_reference, "sdpa": lsa_sdpa},
        PADS_ATTEND: {
            "triton": functools.partial(lsa, padding="unmasked"),
            "reference": functools.partial(lsa_reference, padding="unmasked"),
            "sdpa": functools.partial(lsa_sdpa, padding="unmasked"),
        },
        "gsa": {"triton": gsa, "reference": gsa_reference, "sdpa": gsa_sdpa},
    }
    function = forms[attention][backend]
    return lambda x, y, heads: function(x, y, num_heads=heads, **({"backend": backend} if backend == "triton" else {}))


def run(attention: str, backend: str, inputs: tuple[Tensor, ...], grad: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Result and gradients."""
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    with poisoned_allocations():
        out = form(attention, backend)(*leaves, heads)
        grads = torch.autograd.grad(out, leaves, grad, materialize_grads=True)
    return out.detach(), *grads


def error(x: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)


def limit(dtype: torch.dtype, theirs: float) -> float:
    """Largest error of a result. theirs: that of the reference in the same dtype."""
    return FLOAT32 if dtype == torch.float32 else max(2 * theirs, 1e-6)


def tf32_faults(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[str]:
    """Where results do not look like products of tf32: more exact than fp32 need be, or worse than 11 bits allow.

    A result that is zero whatever the products are, such as the bias gradient where padded tokens do not attend, must
    be zero: it cannot tell how it was multiplied.
    """
    faults = []
    for i, (x, value) in enumerate(zip(found, exact, strict=True)):
        size = error(x, value)
        if not value.any():
            if x.any():
                faults.append(f"result {i} is {size:.1e} instead of zero")
        elif not FLOAT32 < size < 5e-3:
            faults.append(f"result {i} has the error {size:.1e}")
    return faults


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("attention", "name"), SHAPES)
def test_kernels_agree_with_the_reference_in_float64(attention: str, name: str, dtype: torch.dtype) -> None:
    inputs, grad, heads = example(attention, name, dtype)
    exact = run(attention, "reference", tuple(x.double() for x in inputs), grad.double(), heads)
    theirs = run(attention, "reference", inputs, grad, heads)
    for x, y, value in zip(run(attention, "triton", inputs, grad, heads), theirs, exact, strict=True):
        assert x.dtype == dtype
        assert error(x, value) <= limit(dtype, error(y, value))


TF32_SHAPES = [("lsa", "stage 1 of SVT-S"), ("lsa", "one axis padded"), ("gsa", "stage 1 of SVT-S")]


@pytest.mark.parametrize(("attention", "name"), TF32_SHAPES)
def test_tf32_on_request(attention: str, name: str) -> None:
    inputs, grad, heads = example(attention, name, torch.float32)
    exact = run(attention, "reference", tuple(x.double() for x in inputs), grad.double(), heads)
    torch.set_float32_matmul_precision("high")
    assert tf32_faults(run(attention, "triton", inputs, grad, heads), exact) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("attention", "name"), SHAPES)
def test_the_same_bits_every_time(attention: str, name: str, dtype: torch.dtype) -> None:
    inputs, grad, heads = example(attention, name, dtype)
    first = run(attention, "triton", inputs, grad, heads)
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(run(attention, "triton", inputs, grad, heads), first, strict=True))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_strides_do_not_matter(attention: str) -> None:
    name = "one axis padded" if attention == "lsa" else "primes"
    inputs, grad, heads = example(attention, name, torch.float16)
    exact = run(attention, "reference", tuple(x.double() for x in inputs), grad.double(), heads)
    theirs = run(attention, "reference", inputs, grad, heads)
    wide = [torch.full((*x.shape[:-1], x.shape[-1] + 24), float("nan"), device=DEVICE).half() for x in (*inputs, grad)]
    views = [buffer[..., 8:-16].copy_(x) for buffer, x in zip(wide, (*inputs, grad), strict=True)]
    # Not bit for bit what other strides give: narrower loads are another program, which may add in another order.
    for x, y, value in zip(run(attention, "triton", (views[0], views[1]), views[2], heads), theirs, exact, strict=True):
        assert error(x, value) <= limit(torch.float16, error(y, value))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_nothing_is_allocated_but_the_result(attention: str) -> None:
    inputs, _, heads = example(attention, "stage 1 of SVT-S", torch.float16)
    with torch.no_grad():
        form(attention, "triton")(*inputs, heads)  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = form(attention, "triton")(*inputs, heads)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 1.25 * out.nbytes  # GSA's log-sum-exp is a sixteenth


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_cuda_graph_replays_it(attention: str) -> None:
    inputs, _, heads = example(attention, "stage 1 of SVT-S", torch.float16)
    function = form(attention, "triton")
    with torch.no_grad():
        function(*inputs, heads)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = function(*inputs, heads)
        inputs[0].copy_(torch.randn_like(inputs[0]))
        expected = function(*inputs, heads)
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiled_by_inductor(attention: str) -> None:
    inputs, grad, heads = example(attention, "stage 4 of SVT-S", torch.float16)
    function = form(attention, "triton")
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = torch.compile(lambda x, y: function(x * 1, y * 1, heads), fullgraph=True, backend=COMPILER)(*leaves)
    compiled = (out.detach(), *torch.autograd.grad(out, leaves, grad, materialize_grads=True))
    eager = run(attention, "triton", inputs, grad, heads)
    assert all(torch.equal(x, y) for x, y in zip(compiled, eager, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_autocast_decides_the_dtype(attention: str, dtype: torch.dtype) -> None:
    inputs, _, heads = example(attention, "stage 4 of SVT-S", torch.float32)
    with torch.autocast(DEVICE, dtype=dtype):
        out = form(attention, "triton")(*inputs, heads)
    assert out.dtype == dtype


@pytest.mark.parametrize(("attention", "name"), SHAPES)
def test_sdpa_form_is_as_good_as_the_reference(attention: str, name: str) -> None:
    inputs, grad, heads = example(attention, name, torch.float16)
    exact = run(attention, "reference", tuple(x.double() for x in inputs), grad.double(), heads)
    theirs = run(attention, "reference", inputs, grad, heads)
    for x, y, value in zip(run(attention, "sdpa", inputs, grad, heads), theirs, exact, strict=True):
        assert error(x, value) <= max(2 * error(y, value), 1e-6)
