"""The Python side of a launch: what is decided once is not decided again, and a batch is cut only where it must be."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from twins_trt.kernels.bias import launch as bias_launch
from twins_trt.kernels.case import Tiling
from twins_trt.kernels.crosscompile import all_cases
from twins_trt.kernels.device import batch_parts
from twins_trt.kernels.ffn import launch as ffn
from twins_trt.kernels.gsa import launch as gsa
from twins_trt.kernels.layer_norm import launch as layer_norm
from twins_trt.kernels.lsa import launch as lsa
from twins_trt.kernels.patch import launch as patch
from twins_trt.kernels.position import launch as position
from twins_trt.kernels.postprocess import launch as postprocess
from twins_trt.kernels.preprocess import launch as preprocess
from twins_trt.kernels.resize import launch as resize

HALF = torch.float16
OPERATORS = (*("lsa", "gsa", "layer_norm", "ffn", "patch", "position", "bias", "resize", "postprocess", "preprocess"),)
STRIDES = ("s_", "g_", "q_", "kv", "o_")  # how their names begin


def calls() -> dict[str, Callable[[], object]]:
    """Every launch. 300 keys do not fit one program: backward then takes two kernels."""
    qkv, bias, grad = (torch.empty(shape, dtype=HALF) for shape in ((2, 9, 14, 192), (192,), (2, 9, 14, 64)))
    q, kv, many = (torch.empty(shape, dtype=HALF) for shape in ((2, 2048, 64), (2, 100, 128), (2, 300, 128)))
    lse = torch.empty(2, 2, 2048)
    logits = torch.empty(1, 6, 5, 32, dtype=HALF).permute(0, 3, 1, 2)[:, :20]
    image = torch.zeros(1, 24, 20, 3, dtype=torch.uint8)
    wanted = preprocess.InputFormat(24, 20, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), HALF, True)
    tokens, vector, weight = (torch.empty(shape, dtype=HALF) for shape in ((2, 126, 64), (64,), (64, 1, 3, 3)))
    feature_map = torch.empty(2, 9, 14, 64, dtype=HALF).permute(0, 3, 1, 2)
    weights = torch.empty(128, 64, dtype=HALF), torch.empty(128, dtype=HALF), torch.empty(64, 128, dtype=HALF)
    patches = torch.empty(128, 2, 2, 64, dtype=HALF).permute(0, 3, 1, 2)
    return {
        "lsa": lambda: lsa.lsa_forward(qkv, bias, num_heads=2),
        "lsa backward": lambda: lsa.lsa_backward(grad, qkv, bias, num_heads=2),
        "gsa": lambda: gsa.gsa_forward(q, kv, num_heads=2),
        "gsa backward": lambda: gsa.gsa_backward(q, q, kv, q, lse, num_heads=2),
        "gsa backward, two kernels": lambda: gsa.gsa_backward(q, q, many, q, lse, num_heads=2),
        "cells": lambda: postprocess.resize_argmax_forward(logits, 24, 20, probability=False),
        "pixels": lambda: postprocess.resize_argmax_forward(logits, 25, 20, probability=True),
        "normalize": lambda: preprocess.resize_normalize_forward(image, wanted),
        "layer norm": lambda: layer_norm.add_layer_norm_forward(
            tokens, tokens, vector, vector, eps=1e-5, row=None, keep_sum=True
        ),
        "ffn": lambda: ffn.add_norm_ffn_forward(tokens, tokens, vector, vector, *weights, vector, eps=1e-5),
        "ffn apart": lambda: ffn.add_norm_ffn_forward(
            tokens[:1, :9], tokens[:1, :9], vector, vector, *weights, vector, eps=1e-5
        ),
        "patch": lambda: patch.patch_norm_forward(feature_map, patches, *(weights[1],) * 3, eps=1e-5),
        "position": lambda: position.add_position_forward(tokens, tokens, weight, vector, 9, 14),
        "bias": lambda: bias_launch.bias_act_forward_(feature_map, vector, relu=True),
        "resize to twice": lambda: resize.resize_add_forward(feature_map, 18, 28, "bilinear", None),
        "resize": lambda: resize.resize_add_forward(feature_map, 20, 30, "nearest", None),
    }


class Recorder:
    """A kernel that keeps what it was launched with."""

    def __init__(self, launched: list[dict[str, Any]]) -> None:
        self._launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launched.append({"args": args, "grid": grid, "options": options})


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the launches of this test hand to Triton, in order. No kernel runs."""
    pytest.importorskip("triton", reason="Triton is not installed")
    found: list[dict[str, Any]] = []
    for operator in OPERATORS:
        module = importlib.import_module(f"twins_trt.kernels.{operator}.kernel")
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(found))
    return found


@pytest.mark.parametrize("name", calls())
def test_options_are_made_once(monkeypatch: pytest.MonkeyPatch, launched: list[dict[str, Any]], name: str) -> None:
    made: list[str] = []
    init, options = Tiling.__init__, Tiling.compile_options

    def count_tiling(self: Tiling, *args: Any, **kwargs: Any) -> None:
        made.append("tiling")
        init(self, *args, **kwargs)

    def count_options(self: Tiling) -> dict[str, Any]:
        made.append("options")
        return options(self)

    monkeypatch.setattr(Tiling, "__init__", count_tiling)
    monkeypatch.setattr(Tiling, "compile_options", count_options)
    call = calls()[name]
    call()
    first = [each["options"] for each in launched]
    assert all({"num_warps", "num_stages", "enable_fp_fusion"} <= set(each) for each in first)
    made.clear()
    call()
    assert made == []
    assert [each["options"] for each in launched[len(first) :]] == first


def test_a_batch_that_fits_is_not_sliced(launched: list[dict[str, Any]]) -> None:
    qkv, bias = torch.empty(3, 7, 7, 96, dtype=HALF), torch.empty(96, dtype=HALF)
    out = lsa.lsa_forward(qkv, bias, num_heads=1)
    assert launched[0]["args"][0] is qkv and launched[0]["args"][2] is out
    x, y = torch.arange(5), torch.arange(10).reshape(5, 2)
    assert [tuple(part) for part in batch_parts(5, x, y)] == [(x, y)]
    parts = list(batch_parts(2, x, y))
    assert [len(part) for part, _ in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part for _, part in parts]), y)
    assert parts[1][1].data_ptr() == y[2:].data_ptr()  # views: what a kernel writes there is written


def test_logits_in_whole_blocks_are_read_16_bytes_at_a_time(launched: list[dict[str, Any]]) -> None:
    """In cells where the mask is four times as large, in tiles where it is not, or where that is asked for."""
    padded = torch.empty(2, 6, 5, 32, dtype=HALF).permute(0, 3, 1, 2)[:, :20]
    postprocess.resize_argmax_forward(padded, 24, 20, probability=False)
    assert "CELLS" in launched[-1]["options"]
    assert launched[-1]["grid"] == (2 * 2,)  # 7 · 6 cells an image, 32 a program
    for size, probability, cells in (((24, 20), False, False), ((24, 20), True, None), ((25, 20), False, None)):
        postprocess.resize_argmax_forward(padded, *size, probability=probability, cells=cells)
        assert launched[-1]["options"]["WHOLE_BLOCKS"] and launched[-1]["options"]["BC"] == postprocess.BLOCK
    dense = padded.contiguous(memory_format=torch.channels_last)  # ends with the last class
    postprocess.resize_argmax_forward(dense, 24, 20, probability=False)
    assert not launched[-1]["options"]["WHOLE_BLOCKS"] and launched[-1]["options"]["CLASSES_LAST"]


def test_a_size_is_no_reason_to_compile_again() -> None:
    """Only what a case says is a multiple of 16, and strides, may make another kernel of one."""
    pytest.importorskip("triton", reason="Triton is not installed")
    sizes = {}
    for case in all_cases("sm_90"):
        specialized = {parameter.name for parameter in case.function().params if not parameter.do_not_specialize}
        whole = {name for name, kind in case.arguments().items() if kind == "i32"}
        strides = {name for name in whole if name[:2] in STRIDES}
        if left := whole & specialized - strides - set(case.aligned) - {"channels", "depth", "size"}:
            sizes[case.name] = left
    assert sizes == {}
