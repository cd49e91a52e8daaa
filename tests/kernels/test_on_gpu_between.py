"""The kernels between the attentions on a GPU, and whole models that run them.

`test_gpu_tests.py` runs these tests' logic on a CPU: it sets DEVICE.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
from interpreter import poisoned_allocations
from probe_operators import forced
from torch import Tensor

from twins_trt.kernels.bias import bias_act_
from twins_trt.kernels.ffn import add_norm_ffn
from twins_trt.kernels.layer_norm import add_layer_norm
from twins_trt.kernels.patch import patch_norm
from twins_trt.kernels.position import add_position
from twins_trt.kernels.resize import resize_add
from twins_trt.models import build_model
from twins_trt.models.folded import FoldedModel
from twins_trt.models.seeded import seed_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

DEVICE = "cuda"
KERNELS = "triton"
TOKENS = {
    "stage 1": (2, 128, 128, 64),
    "primes": (3, 31, 53, 96),
    "wide": (1, 7, 5, 1024),
    "not a power of 2": (2, 16, 16, 320),
}
MAPS = {
    "x2": ((2, 128, 64, 64), (128, 128)),
    "primes": ((3, 40, 13, 17), (29, 23)),
    "smaller": ((1, 256, 20, 30), (7, 11)),
}
PATCHES = {  # maps, kernel, resulting channels
    "summary of stage 1": ((1, 64, 128, 128), 8, 64),
    "embedding of stage 4": ((2, 320, 32, 32), 2, 512),
    "primes": ((3, 64, 13, 17), 2, 128),
    "many": ((2, 64, 128, 128), 2, 128),
}
WAYS = ("fused", "apart", "plain")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MODELS = ["twins_svt-s_fpn", "twins_pcpvt-s_fpn", "twins_svt-s_upernet"]
SIZE = (224, 288)

Operator = Callable[..., tuple[Tensor, ...]]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def channels_last(*shape: int) -> Tensor:
    return random(*shape).contiguous(memory_format=torch.channels_last)


def norm(name: str, *, residual: bool) -> tuple[Operator, list[Tensor]]:
    batch, height, width, channels = TOKENS[name]
    tensors = [random(batch, height * width, channels), random(channels), random(channels), random(channels)]
    if residual:
        tensors.append(random(batch, height * width, channels))

    def operator(
        x: Tensor, weight: Tensor, bias: Tensor, row: Tensor, y: Tensor | None = None, *, backend: str
    ) -> tuple[Tensor, ...]:
        total, out = add_layer_norm(x, y, weight, bias, eps=1e-5, row=row, keep_sum=residual, backend=backend)
        return (total, out) if residual else (out,)

    return operator, tensors


def ffn(name: str, chosen: str | None = None) -> tuple[Operator, list[Tensor]]:
    """chosen: how, else what suits the sizes."""
    batch, height, width, channels = TOKENS[name]
    hidden = 4 * channels
    x, y = (random(batch, height * width, channels) for _ in range(2))
    weight1, weight2 = random(hidden, channels) * channels**-0.5, random(channels, hidden) * hidden**-0.5

    def operator(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
        with nullcontext() if chosen is None else forced(chosen):
            return (add_norm_ffn(*tensors, eps=1e-5, backend=backend),)

    vectors = [random(channels) for _ in range(3)]
    return operator, [x, y, *vectors[:2], weight1, random(hidden), weight2, vectors[2]]


def position(name: str) -> tuple[Operator, list[Tensor]]:
    batch, height, width, channels = TOKENS[name]
    x, y = (random(batch, height * width, channels) for _ in range(2))

    def operator(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *, backend: str) -> tuple[Tensor, ...]:
        return (add_position(x, y, weight, bias, size=(height, width), backend=backend),)

    return operator, [x, y, random(channels, 1, 3, 3), random(channels)]


def patches(name: str) -> tuple[Operator, list[Tensor]]:
    shape, side, channels_out = PATCHES[name]
    channels = shape[1]
    weight = channels_last(channels_out, channels, side, side) / (side * channels**0.5)

    def operator(*tensors: Tensor, backend: str) -> tuple[Tensor, ...]:
        return (patch_norm(*tensors, eps=1e-5, backend=backend),)

    return operator, [channels_last(*shape), weight, *(random(channels_out) for _ in range(3))]


def resized(name: str, mode: str) -> tuple[Operator, list[Tensor]]:
    shape, size = MAPS[name]

    def operator(x: Tensor, add: Tensor, *, backend: str) -> tuple[Tensor, ...]:
        return (
            resize_add(x, size, mode=mode, add=add, backend=backend),
            resize_add(x, size, mode=mode, backend=backend),
        )

    return operator, [channels_last(*shape), channels_last(*shape[:2], *size)]


def biased(name: str) -> tuple[Operator, list[Tensor]]:
    shape, _ = MAPS[name]

    def operator(x: Tensor, bias: Tensor, *, backend: str) -> tuple[Tensor, ...]:
        # each its own map, should the operator work in place
        return tuple(bias_act_(x.clone(), bias, relu=relu, backend=backend) for relu in (False, True))

    return operator, [channels_last(*shape), random(shape[1])]


CASES: dict[str, Callable[[], tuple[Operator, list[Tensor]]]] = {
    **{f"add_layer_norm {name}": functools.partial(norm, name, residual=True) for name in TOKENS},
    "add_layer_norm without a residual": functools.partial(norm, "primes", residual=False),
    **{f"add_norm_ffn {name}": functools.partial(ffn, name) for name in TOKENS},
    **{f"add_norm_ffn {chosen} primes": functools.partial(ffn, "primes", chosen) for chosen in WAYS},
    **{f"add_position {name}": functools.partial(position, name) for name in TOKENS},
    **{f"patch_norm {name}": functools.partial(patches, name) for name in PATCHES},
    **{
        f"resize_add {mode} {name}": functools.partial(resized, name, mode)
        for name in MAPS
        for mode in ("bilinear", "nearest")
    },
    **{f"bias_act_ {name}": functools.partial(biased, name) for name in MAPS},
}


def error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernels_are_as_good_as_torch(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    operator, tensors = CASES[case]()
    tensors = [x.to(dtype) for x in tensors]
    exact = operator(*(x.double() for x in tensors), backend="reference")
    theirs = operator(*tensors, backend="reference")
    with poisoned_allocations():
        ours, again = (operator(*tensors, backend="triton") for _ in range(2))
    for x, same, other, value in zip(ours, again, theirs, exact, strict=True):
        assert x.dtype == dtype and torch.equal(x, same)
        assert error(x, value) <= max(2 * error(other, value), 1e-6)


def folded(name: str, dtype: torch.dtype, kernels: str | None) -> FoldedModel:
    model = build_model(name, attention="reference")
    seed_weights(model)
    return FoldedModel(model, device=DEVICE, dtype=dtype, kernels=kernels)


@pytest.mark.parametrize("name", MODELS)
def test_models_with_kernels_are_as_good_as_without(name: str) -> None:
    """Logits in half precision, against fp32 by torch's own operators."""
    torch.manual_seed(0)
    x = channels_last(2, 3, *SIZE)
    half = torch.float16 if DEVICE == "cuda" else torch.float32
    with torch.inference_mode():
        exact = folded(name, torch.float32, None)(x).double()
        theirs = folded(name, half, None)(x.to(half))
        ours = folded(name, half, KERNELS)(x.to(half))
    assert ours.shape == exact.shape
    assert error(ours, exact) <= max(2 * error(theirs, exact), 1e-5)


def replayed(model: FoldedModel, images: Sequence[Tensor]) -> Iterator[Tensor]:
    """Logits by one CUDA graph of the model; a CPU has none."""
    if DEVICE != "cuda":
        yield from map(model, images)
        return
    x, graph, stream = images[0].clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model(x)  # compiles
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        out = model(x)
    out.fill_(torch.nan)
    for image in images:
        x.copy_(image)
        graph.replay()
        torch.cuda.synchronize()
        yield out.clone()


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_whose_parts_run_at_once_gives_the_same_masks(name: str) -> None:
    """Two images, in turn, twice: what one replay leaves behind is no part of the next."""
    torch.manual_seed(0)
    half = torch.float16 if DEVICE == "cuda" else torch.float32
    images = [channels_last(1, 3, *SIZE).to(half) for _ in range(2)] * 2
    with torch.inference_mode():
        model = folded(name, half, KERNELS)
        expected = [model(x) for x in images[:2]] * 2
        for found, logits in zip(replayed(model, images), expected, strict=True):
            assert torch.equal(found.argmax(1), logits.argmax(1))
            assert error(found, logits.double()) <= 1e-3
