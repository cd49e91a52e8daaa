"""LSA in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.lsa`, its gradient `torch.ops.twins_trt.lsa_backward`. CUDA tensors go to the
Triton kernels. CPU tensors go to plain torch with the same arithmetic, which is fp32 inside for 16-bit maps. Their
gradient is written out, because an operator's implementation cannot call autograd. Gradients are of first order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.autocast import register_autocast
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.lsa.launch import HEAD_DIMS, MAX_WINDOW, lsa_backward, lsa_forward
from twins_trt.kernels.lsa.reference import (
    PADDINGS,
    lsa_reference,
    masks_padding,
    pad_with_bias,
    score_mask,
    split_heads,
    to_map,
    to_windows,
    window_padding,
)


def lsa(
    qkv: Tensor,
    qkv_bias: Tensor,
    *,
    num_heads: int,
    window_size: int = 7,
    padding: str = "parity",
    backend: str = "auto",
) -> Tensor:
    """Attention inside windows of a packed qkv map.

    qkv: float [B, H, W, 3C], queries, keys and values of every position, bias included, heads inside C. May be strided.
    qkv_bias: float [3C], what a padded position projects to (its input is zero).
    padding: `parity`, `masked` or `unmasked`, see `masks_padding`.
    backend: `triton`, `sdpa`, `reference`, or `auto`: Triton on a GPU that can, `sdpa` on one that cannot, the
    reference on a CPU. While a graph is exported every name means the reference, whose operators are plain.
    Returns float [B, H, W, C], before the output projection.
    Raises UsageError for an unknown name and for shapes that do not fit each other.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's models/backbones/twins.py.
    """
    channels3 = qkv.shape[-1]
    if qkv.ndim != 4 or qkv_bias.shape != (channels3,) or channels3 % (3 * num_heads):
        raise UsageError(
            f"a qkv map {list(qkv.shape)} with a bias {list(qkv_bias.shape)} does not hold {num_heads} heads",
            "pass qkv [B, H, W, 3C] and qkv_bias [3C], with C a multiple of num_heads",
        )
    if padding not in PADDINGS:
        raise UsageError(f"padding '{padding}' is unknown", f"choose one of {', '.join(PADDINGS)}")
    qkv_bias = qkv_bias.to(qkv.dtype)
    form = choose_backend(backend, qkv, op="lsa", unsupported=_unsupported(channels3 // (3 * num_heads), window_size))
    if form == "triton":
        return lsa_op(qkv, qkv_bias, num_heads, window_size, padding)
    plain = lsa_sdpa if form == "sdpa" else lsa_reference
    return plain(qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)


def lsa_sdpa(qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity") -> Tensor:
    """LSA through torch's scaled_dot_product_attention, windows copied out. Arguments and result as `lsa_reference`."""
    _, height, width, _ = qkv.shape
    padded, inside = pad_with_bias(qkv, qkv_bias, window_size)
    windows = to_windows(padded, window_size)  # [B, windows, tokens, 3C]
    q, k, v = split_heads(windows, num_heads).flatten(1, 2)  # each [B · windows, heads, tokens, D]
    mask = None
    if masks_padding(*window_padding(height, width, window_size), padding=padding):
        mask = score_mask(inside, window_size, q.dtype)[0].repeat(qkv.shape[0], 1, 1, 1)  # [B · windows, 1, 1, tokens]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [B · windows, heads, tokens, D]
    out = out.transpose(1, 2).flatten(2).unflatten(0, (qkv.shape[0], -1))  # [B, windows, tokens, C]
    return to_map(out, padded.shape[1], padded.shape[2], window_size)[:, :height, :width]  # [B, H, W, C]


def _unsupported(head_dim: int, window_size: int) -> str | None:
    if head_dim not in HEAD_DIMS:
        return f"there is no kernel for head dim {head_dim}"
    return f"there is no kernel for window size {window_size}" if window_size > MAX_WINDOW else None


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
    if runs_interpreted("lsa", qkv.dtype):
        return lsa_forward(qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    out = lsa_reference(qkv.to(wide), qkv_bias.to(wide), num_heads=num_heads, window_size=window_size, padding=padding)
    return out.to(qkv.dtype).contiguous()


@lsa_backward_op.register_kernel("cpu")
def _(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor, num_heads: int, window_size: int, padding: str
) -> tuple[Tensor, Tensor]:
    if runs_interpreted("lsa", qkv.dtype):
        return lsa_backward(grad, qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    height, width = qkv.shape[1:3]
    pads = window_padding(height, width, window_size)
    padded, inside = pad_with_bias(qkv.to(wide), qkv_bias.to(wide), window_size)
    q, k, v = split_heads(to_windows(padded, window_size), num_heads)  # each [B, windows, heads, tokens, D]
    g = F.pad(grad.to(wide), (0, 0, 0, pads[1], 0, pads[0]))  # [B, rows · w, columns · w, C]
    g = to_windows(g, window_size).unflatten(-1, (num_heads, -1)).transpose(2, 3)  # [B, windows, heads, tokens, D]
    scale = q.shape[-1] ** -0.5
    scores = q @ k.mT * scale  # [B, windows, heads, tokens, tokens]
    if masks_padding(*pads, padding=padding):
        scores = scores + score_mask(inside, window_size, wide)
    p = scores.softmax(-1)
    dv = p.mT @ g
    dp = g @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack((ds @ k, ds.mT @ q, dv))  # [3, B, windows, heads, tokens, D]
    dqkv = dqkv.permute(1, 2, 4, 0, 3, 5).flatten(3)  # [B, windows, tokens, 3C]
    dqkv = to_map(dqkv, padded.shape[1], padded.shape[2], window_size)  # [B, rows · w, columns · w, 3C]
    dbias = dqkv.masked_fill(inside, 0.0).sum((0, 1, 2))  # [3C]
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
    qkv, qkv_bias, *ctx.options = inputs
    ctx.save_for_backward(qkv, qkv_bias)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dqkv, dbias = lsa_backward_op(grad, *ctx.saved_tensors, *ctx.options)
    return dqkv, dbias, None, None, None


lsa_op.register_autograd(_differentiate, setup_context=_keep)
register_autocast("lsa")
