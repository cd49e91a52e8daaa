"""Launches through Triton's real binder for a GPU that is not there: nothing fails, spills or loses its wide loads."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import binder
import pytest

from twins_trt.kernels.case import Case
from twins_trt.kernels.crosscompile import Resources, all_cases

pytest.importorskip("triton", reason="Triton is not installed")


def bound(launches: str, target: str) -> tuple[list[binder.Bound], dict[str, list[str]]]:
    """`binder.check` in a process of its own, which keeps the target."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(checked, launches, target).result()


def checked(launches: str, target: str) -> tuple[list[binder.Bound], dict[str, list[str]]]:
    """There: by the name of a function, since generators cannot be sent."""
    return binder.check(target, getattr(binder, launches)())


def test_inference_in_float16_binds() -> None:
    found, faults = bound("quick_launches", "sm_90")
    assert faults == {}
    assert {each.case.name for each in found if each.case} == {
        "lsa_forward fp16 32",
        "lsa_forward fp16 32 pads attend",
        "gsa_forward fp16 32",
        "resize_argmax fp16 0 padded classes",
        "resize_argmax_cells fp16 0",
        "resize_normalize fp16 0",
        *(f"add_layer_norm fp16 0 64 channels{words}" for words in ("", " residual", " row", " residual, row after")),
        *(f"{kernel} fp16 0 64 channels, 256 hidden" for kernel in ("ffn", "fc1")),
        "fc1 fp16 0 64 channels, 256 hidden small",
        "patch_product fp16 0 8x8 of 64 channels to 64",
        "add_parts_norm fp16 0 64 channels",
        *(f"add_position fp16 0{words}" for words in ("", " sum", " strided weight", " strided weight sum")),
        *("bias_act fp16 0", "bias_act fp16 0 relu"),
        *(
            f"resize_add{twice} fp16 0 {mode}{add}"
            for twice in ("", "_twice")
            for mode in ("bilinear", "nearest")
            for add in ("", " add")
        ),
    }


@pytest.mark.slow
def test_every_launch_binds() -> None:
    """Forward and backward, all dtypes and layouts, fp32 in both precisions; other GPUs: see `binder.py`."""
    found, faults = bound("all_launches", "sm_90")
    assert faults == {}
    assert {each.case.name for each in found if each.case} == {case.name for case in all_cases("sm_90")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"wide_loads": 0}, ["has no 16-byte loads, 6 are recorded"]),
        ({"narrow_loads": 3}, ["has 3 narrow loads, 1 are recorded"]),
        ({"spills": 8}, ["spills 8 bytes per thread"]),
        ({"shared": 228 * 1024}, ["takes 233472 bytes of shared memory of 232448"]),
    ],
)
def test_what_is_wrong_with_a_launch_is_said(changes: dict[str, Any], said: list[str]) -> None:
    expected = Resources(registers=80, spills=0, shared=0, tmem=0, threads=128, wide_loads=6, narrow_loads=1)
    case: Case = all_cases("sm_90")[0]
    one = binder.Bound("a launch", "lsa_forward_kernel", case, replace(expected, **changes))
    assert one.faults(expected, "sm_90") == said
