"""LSA as an operator of torch: `torch.ops.twins_trt.lsa`, with its gradient `torch.ops.twins_trt.lsa_backward`.

CUDA tensors go to the Triton kernels, CPU tensors to plain torch with the same arithmetic (fp32 inside for 16-bit
maps) and an analytic gradient: an operator's implementation cannot call autograd. Gradients are of first order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twins_trt.kernels.autocast import register_autocast
from twins_trt.kernels.device import interpreting
from twins_trt.kernels.lsa.launch import lsa_backward, lsa_forward
from twins_trt.kernels.lsa.reference import (
    lsa_reference,
    masks_padding,
    pad_with_bias,
    score_mask,
    split_heads,
    to_map,
    to_windows,
    window_padding,
)


@torch.library.custom_op(
    "twins_trt::lsa",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor qkv, Tensor qkv_bias, int num_heads, int window_size, str padding) -> Tensor",
)
def lsa_op(qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str) -> Tensor:
    """LSA with a registered gradient. Arguments and result as `lsa_reference`; bias in the map's dtype."""
    return lsa_forward(qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)


@torch.library.custom_op(
    "twins_trt::lsa_backward",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor grad, Tensor qkv, Tensor qkv_bias, int num_heads, int window_size, str padding)"
    " -> (Tensor, Tensor)",
)
def lsa_backward_op(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str
) -> tuple[Tensor, Tensor]:
    """Gradients of LSA with respect to `qkv` and, for padded tokens, `qkv_bias`."""
    return lsa_backward(grad, qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)


@lsa_op.register_kernel("cpu")
def _(qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str) -> Tensor:
    if interpreting():
        return lsa_forward(qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    out = lsa_reference(qkv.to(wide), qkv_bias.to(wide), num_heads=num_heads, window_size=window_size, padding=padding)
    return out.to(qkv.dtype).contiguous()


@lsa_backward_op.register_kernel("cpu")
def _(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str
) -> tuple[Tensor, Tensor]:
    if interpreting():
        return lsa_backward(grad, qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    height, width = qkv.shape[1:3]
    pads = window_padding(height, width, window_size)
    padded, inside = pad_with_bias(qkv.to(wide), qkv_bias.to(wide), window_size)
    q, k, v = split_heads(to_windows(padded, window_size), num_heads)  # each [B, windows, heads, tokens, head_dim]
    g = torch.nn.functional.pad(grad.to(wide), (0, 0, 0, pads[1], 0, pads[0]))
    g = to_windows(g, window_size).unflatten(-1, (num_heads, -1)).transpose(2, 3)
    scale = q.shape[-1] ** -0.5
    scores = q @ k.mT * scale
    if masks_padding(*pads, padding=padding):
        scores = scores + score_mask(inside, window_size, wide)
    p = scores.softmax(-1)
    dv = p.mT @ g
    dp = g @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack((ds @ k, ds.mT @ q, dv))  # [3, B, windows, heads, tokens, head_dim]
    dqkv = dqkv.permute(1, 2, 4, 0, 3, 5).flatten(3)  # [B, windows, tokens, 3C]
    dqkv = to_map(dqkv, padded.shape[1], padded.shape[2], window_size)
    dbias = dqkv.masked_fill(inside, 0.0).sum((0, 1, 2))
    return dqkv[:, :height, :width].to(qkv.dtype).contiguous(), dbias.to(qkv_bias.dtype)


@lsa_op.register_fake
def _(qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@lsa_backward_op.register_fake
def _(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), torch.empty_like(qkv_bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, qkv_bias, *ctx.settings = inputs
    ctx.save_for_backward(qkv, qkv_bias)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dqkv, dbias = lsa_backward_op(grad, *ctx.saved_tensors, *ctx.settings)
    return dqkv, dbias, None, None, None


lsa_op.register_autograd(_differentiate, setup_context=_keep)
register_autocast("lsa")
