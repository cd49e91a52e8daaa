"""The logic of the tests for a GPU, on a CPU: that they can be green, and that each expectation can be missed.

Triton's interpreter stands in for the GPU, at smaller shapes. tf32 has a stand-in here. What is allocated and CUDA
graphs are left to the GPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import test_on_gpu as attentions
import test_on_gpu_around as around
import test_on_gpu_between as between
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

SMALL: dict[str, Any] = {
    "DEVICE": "cpu",
    "COMPILER": "aot_eager",
    "LOGITS": (2, 20, 6, 5),
    "LSA_SHAPES": {
        "stage 1 of SVT-S": (1, 9, 10, 2, 32),
        "stage 4 of SVT-S": (1, 9, 10, 2, 32),
        "one axis padded": (2, 5, 14, 2, 32),
        "1x1": (1, 1, 1, 2, 32),
        "head dim 64, whole windows": (1, 7, 14, 1, 64),
    },
    "TOKENS": {"primes": (2, 3, 5, 96)},
    "MAPS": {"primes": ((2, 40, 3, 5), (7, 4))},
    "GSA_SHAPES": {
        "stage 1 of SVT-S": (2, 40, 30, 2, 32),
        "stage 4 of SVT-S": (2, 40, 30, 2, 32),
        "primes": (2, 37, 13, 2, 32),
        "1 key": (1, 37, 1, 1, 64),
        "many keys": (1, 40, 260, 1, 32),
    },
}


def rehearse(module: str, test: str, *arguments: Any, **changed: Any) -> None:
    """Where kernels are interpreted: one of the tests. changed: other values of its module's names."""
    loaded = importlib.import_module(module)
    for name, value in {**SMALL, **changed}.items():
        if hasattr(loaded, name):
            setattr(loaded, name, value)
    getattr(loaded, test)(*arguments)


SHAPES = [(attention, name) for attention in ("lsa", "gsa") for name in SMALL[f"{attention.upper()}_SHAPES"]]
SHAPES.append((attentions.PADS_ATTEND, "stage 1 of SVT-S"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("attention", "name"), SHAPES)
def test_attentions_agree(interpreted: Callable[..., Any], attention: str, name: str, dtype: torch.dtype) -> None:
    test = "test_kernels_agree_with_the_reference_in_float64"
    interpreted("test_gpu_tests:rehearse", "test_on_gpu", test, attention, name, dtype)


@pytest.mark.parametrize("attention", ["lsa", "gsa"])
@pytest.mark.parametrize(
    ("test", "more"),
    [
        ("test_the_same_bits_every_time", ("one axis padded", torch.float16)),
        ("test_strides_do_not_matter", ()),
        ("test_compiled_by_inductor", ()),
        ("test_autocast_decides_the_dtype", (torch.float16,)),
        ("test_sdpa_form_is_as_good_as_the_reference", ("one axis padded",)),
    ],
)
def test_what_else_the_attentions_are_held_to(
    interpreted: Callable[..., Any], test: str, more: tuple[Any, ...], attention: str
) -> None:
    if attention == "gsa":
        more = tuple("primes" if each == "one axis padded" else each for each in more)
    interpreted("test_gpu_tests:rehearse", "test_on_gpu", test, attention, *more)


@pytest.mark.parametrize("layout", around.LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (13, 11), (24, 20)])
def test_masks(interpreted: Callable[..., Any], size: tuple[int, int], layout: str) -> None:
    test = "test_masks_and_probabilities"
    interpreted("test_gpu_tests:rehearse", "test_on_gpu_around", test, size, layout, torch.float16)


@pytest.mark.parametrize(
    ("test", "arguments"),
    [
        ("test_cells_and_pixels_make_the_same_mask", (torch.float16,)),
        ("test_the_first_of_equal_classes_wins", (3,)),
        ("test_inputs_are_the_references_bit_for_bit", ((17, 53), torch.float16)),
    ],
)
def test_what_else_is_around(interpreted: Callable[..., Any], test: str, arguments: tuple[Any, ...]) -> None:
    interpreted("test_gpu_tests:rehearse", "test_on_gpu_around", test, *arguments)


@pytest.mark.parametrize("case", [name for name in between.CASES if "primes" in name])
def test_what_is_between(interpreted: Callable[..., Any], case: str) -> None:
    test = "test_kernels_are_as_good_as_torch"
    interpreted("test_gpu_tests:rehearse", "test_on_gpu_between", test, case, torch.float16)


@pytest.mark.parametrize("name", between.MODELS)
def test_a_model_with_kernels(interpreted: Callable[..., Any], name: str) -> None:
    """With no side that is a multiple of 32."""
    test = "test_models_with_kernels_are_as_good_as_without"
    interpreted("test_gpu_tests:rehearse", "test_on_gpu_between", test, name, SIZE=(29, 37))


@pytest.mark.parametrize("name", between.MODELS)
def test_a_model_without_a_graph(interpreted: Callable[..., Any], name: str) -> None:
    """What a graph changes is left to the GPU; `test_fused.py` holds the order of its streams."""
    test = "test_a_graph_whose_parts_run_at_once_gives_the_same_masks"
    interpreted("test_gpu_tests:rehearse", "test_on_gpu_between", test, name, SIZE=(29, 37), KERNELS="reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        "test_an_engine_with_graphs_gives_what_one_without_gives_and_nearly_what_float32_gives",
        "test_graphs_are_given_up_and_made_again",
    ],
)
def test_engines(monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    """In float16 on the CPU, so how near the masks come to those of float32 is seen too."""
    monkeypatch.setattr(around, "DEVICE", "cpu")
    monkeypatch.setattr(around, "MODEL", "twins_svt-demo_fpn")
    getattr(around, test)()


def test_a_wrong_result_is_seen(interpreted: Callable[..., Any]) -> None:
    test = "test_kernels_agree_with_the_reference_in_float64"
    arguments = ("test_on_gpu", test, "lsa", "one axis padded", torch.float16)
    with pytest.raises(AssertionError):
        interpreted("test_gpu_tests:rehearse_off_by", 1e-2, *arguments)
    interpreted("test_gpu_tests:rehearse_off_by", 0.0, *arguments)


def rehearse_off_by(wrong: float, module: str, *arguments: Any) -> None:
    """The test with every result of the kernels multiplied by 1 + `wrong`."""
    real = attentions.run

    def run(attention: str, backend: str, *rest: Any) -> tuple[Tensor, ...]:
        return tuple(x * (1 + wrong * (backend == "triton")) for x in real(attention, backend, *rest))

    try:
        rehearse(module, *arguments, run=run)
    finally:
        attentions.run = real


def cut_off(x: Tensor, bits: int = 13) -> Tensor:
    """fp32 -> tf32 as a tensor core reads it: the last 13 bits are dropped. 16 make it bf16."""
    return (x.view(torch.int32) & -(1 << bits)).view(torch.float32)


def rounded(x: Tensor) -> Tensor:
    """fp32 -> the nearest tf32."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Products(TorchDispatchMode):
    """Every matrix product with operands in another format, also in backward."""

    def __init__(self, to_format: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._to_format = to_format

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            args = tree_map(self._to_format, args)
        return func(*args, **(kwargs or {}))


@functools.cache
def tf32_case(attention: str, name: str) -> tuple[Any, ...]:
    """Inputs, the exact results, and those of the reference in fp32, at the sizes that the GPU gets."""
    inputs, grad, heads = attentions.example(attention, name, torch.float32)
    exact = attentions.run(attention, "reference", tuple(x.double() for x in inputs), grad.double(), heads)
    return inputs, grad, heads, exact


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "name"), attentions.TF32_SHAPES)
def test_tf32_is_told_from_fp32(monkeypatch: pytest.MonkeyPatch, attention: str, name: str) -> None:
    """At the sizes that the GPU gets: products of tf32 pass, more exact and less exact ones do not."""
    monkeypatch.setattr(attentions, "DEVICE", "cpu")
    inputs, grad, heads, exact = tf32_case(attention, name)
    for to_tf32 in (cut_off, rounded):
        with Products(to_tf32):
            found = attentions.run(attention, "reference", inputs, grad, heads)
        assert attentions.tf32_faults(found, exact) == []
    nonzero = sum(bool(value.any()) for value in exact)
    assert nonzero == (2 if name == "stage 1 of SVT-S" and attention == "lsa" else 3)
    in_fp32 = attentions.run(attention, "reference", inputs, grad, heads)
    assert len(attentions.tf32_faults(in_fp32, exact)) == nonzero
    with Products(lambda x: cut_off(x, bits=16)):
        in_bf16 = attentions.run(attention, "reference", inputs, grad, heads)
    assert len(attentions.tf32_faults(in_bf16, exact)) == nonzero


def test_a_result_that_is_zero_must_be_zero() -> None:
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert attentions.tf32_faults([zero, one * (1 + 1e-3)], [zero, one]) == []
    assert attentions.tf32_faults([zero + 1e-3], [zero]) == ["result 0 is 1.0e-03 instead of zero"]
    assert attentions.tf32_faults([one], [one]) == ["result 0 has the error 0.0e+00"]
