"""The kernels between the attentions, beside the operators of torch that they replace, at the sizes of one model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.workload import STAGES_OF, Workload
from twins_trt.kernels.bias import bias_act_
from twins_trt.kernels.ffn import add_norm_ffn
from twins_trt.kernels.layer_norm import add_layer_norm
from twins_trt.kernels.patch import patch_norm
from twins_trt.kernels.position import add_position
from twins_trt.kernels.resize import resize_add

PART = "between"
"""What figures with these kernels rest on."""

Pair = tuple[Callable[[], object], Callable[[], object], int]
"""Ours, torch's own, and the bytes that must be moved."""


def jobs(workload: Workload) -> Iterator[Job]:
    """Each figure, and the function that measures it."""
    spec = workload.spec(STAGES_OF[0])
    neck, head = spec.fpn_channels
    for batch in workload.batches:
        made: dict[str, Callable[[], Pair]] = {}
        for stage in workload.stages:
            side = [-(-length // (4 << stage)) for length in workload.size]
            shape = (batch, spec.embed_dims[stage], *side)
            made[f"add_layer_norm stage {stage + 1}"] = functools.partial(_norm, shape, workload)
            hidden = shape[1] * spec.mlp_ratios[stage]
            made[f"add_norm_ffn stage {stage + 1}"] = functools.partial(_ffn, shape, hidden, workload)
            made[f"add_position stage {stage + 1}"] = functools.partial(_position, shape, workload)
            if (ratio := spec.sr_ratios[stage]) > 1:
                made[f"patch_norm stage {stage + 1}"] = functools.partial(_patch, shape, ratio, workload)
        half = [-(-length // 8) for length in workload.size]
        made["resize_add bilinear"] = functools.partial(_resize, (batch, head, *half), "bilinear", workload)
        made["resize_add nearest"] = functools.partial(_resize, (batch, neck, *half), "nearest", workload)
        whole = [-(-length // 4) for length in workload.size]
        made["bias_act_"] = functools.partial(_bias, (batch, head, *whole), workload)
        for what, make in made.items():
            for form in ("ours", "torch"):
                yield Job(
                    f"{what} batch {batch} {form}",
                    functools.partial(_measure, what, make, form, batch, workload),
                    form=form,
                    batch=batch,
                    rests_on=(PART,) if form == "ours" else (),
                )


def _measure(what: str, make: Callable[[], Pair], form: str, batch: int, workload: Workload) -> Row:
    with torch.inference_mode():
        ours, torchs, traffic = make()
        times = time_call(ours if form == "ours" else torchs, workload.pace(), graph=True, in_row=True)
    return {"what": what, "batch": batch, "form": form, "bytes": traffic, **times.to_json()}


def _map(shape: tuple[int, ...], workload: Workload) -> Tensor:
    """[B, C, H, W], channels last."""
    x = torch.randn(shape, device=workload.device).to(workload.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _vector(length: int, workload: Workload) -> Tensor:
    return torch.randn(length, device=workload.device).to(workload.dtype)


def _matrix(rows: int, columns: int, workload: Workload) -> Tensor:
    """A weight that keeps the size of what it is multiplied with."""
    return (torch.randn(rows, columns, device=workload.device) * columns**-0.5).to(workload.dtype)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # [B, N, C]


def _norm(shape: tuple[int, ...], workload: Workload) -> Pair:
    x, y = (_tokens(_map(shape, workload)) for _ in range(2))
    weight, bias = (_vector(shape[1], workload) for _ in range(2))

    def plain() -> tuple[Tensor, Tensor]:
        total = x + y
        return total, F.layer_norm(total, (shape[1],), weight, bias)

    ours = functools.partial(add_layer_norm, x, y, weight, bias, eps=1e-5, backend=workload.kernels)
    return ours, plain, 4 * x.numel() * x.element_size()


def _ffn(shape: tuple[int, ...], hidden: int, workload: Workload) -> Pair:
    channels = shape[1]
    x, y = (_tokens(_map(shape, workload)) for _ in range(2))
    norm_weight, norm_bias, bias2 = (_vector(channels, workload) for _ in range(3))
    weight1, bias1 = _matrix(hidden, channels, workload), _vector(hidden, workload)
    weight2 = _matrix(channels, hidden, workload)

    def plain() -> Tensor:
        total = x + y
        inner = F.gelu(F.linear(F.layer_norm(total, (channels,), norm_weight, norm_bias), weight1, bias1))
        return total + F.linear(inner, weight2, bias2)

    tensors = (x, y, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    ours = functools.partial(add_norm_ffn, *tensors, eps=1e-5, backend=workload.kernels)
    return ours, plain, (x.numel() + sum(tensor.numel() for tensor in tensors)) * x.element_size()


def _position(shape: tuple[int, ...], workload: Workload) -> Pair:
    channels, size = shape[1], (shape[2], shape[3])
    x, y = (_tokens(_map(shape, workload)) for _ in range(2))
    bias = _vector(channels, workload)
    weight = torch.randn(3, 3, 1, channels, device=workload.device).to(workload.dtype).permute(3, 2, 0, 1)

    def plain() -> Tensor:
        total = (x + y).transpose(1, 2).unflatten(2, size)  # [B, C, H, W]
        return _tokens(F.conv2d(total, weight, bias, padding=1, groups=channels) + total)

    ours = functools.partial(add_position, x, y, weight, bias, size=size, backend=workload.kernels)
    return ours, plain, 3 * x.numel() * x.element_size()


def _patch(shape: tuple[int, ...], side: int, workload: Workload) -> Pair:
    channels = shape[1]
    x = _map(shape, workload)
    bias, norm_weight, norm_bias = (_vector(channels, workload) for _ in range(3))
    weight = _map((channels, channels, side, side), workload) * (side * side * channels) ** -0.5

    def plain() -> Tensor:
        return F.layer_norm(_tokens(F.conv2d(x, weight, bias, side)), (channels,), norm_weight, norm_bias)

    parameters = (weight, bias, norm_weight, norm_bias)
    ours = functools.partial(patch_norm, x, *parameters, eps=1e-5, backend=workload.kernels)
    return ours, plain, (x.numel() + weight.numel() + x.numel() // (side * side)) * x.element_size()


def _resize(shape: tuple[int, ...], mode: str, workload: Workload) -> Pair:
    size = (2 * shape[2], 2 * shape[3])
    x, add = _map(shape, workload), _map((*shape[:2], *size), workload)
    options: dict[str, Any] = {"align_corners": False} if mode == "bilinear" else {}
    ours = functools.partial(resize_add, x, size, mode=mode, add=add, backend=workload.kernels)
    traffic = (x.numel() + 2 * add.numel()) * x.element_size()
    return ours, lambda: add + F.interpolate(x, size=size, mode=mode, **options), traffic


def _bias(shape: tuple[int, ...], workload: Workload) -> Pair:
    # no bias to speak of: added in place again and again, it would grow beyond what the dtype holds
    x, bias = _map(shape, workload), torch.zeros(shape[1], device=workload.device, dtype=workload.dtype)
    ours = functools.partial(bias_act_, x, bias, relu=True, backend=workload.kernels)
    return ours, lambda: x.add_(bias[:, None, None]).relu_(), 2 * x.numel() * x.element_size()
