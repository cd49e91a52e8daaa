"""GSA in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.gsa`, its gradient `torch.ops.twins_trt.gsa_backward`. CUDA tensors go to the
Triton kernels. CPU tensors go to plain torch with the same arithmetic, which is fp32 inside for 16-bit tensors. Their
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
from twins_trt.kernels.gsa.launch import HEAD_DIMS, gsa_backward, gsa_forward
from twins_trt.kernels.gsa.reference import gsa_reference


def gsa(q: Tensor, kv: Tensor, *, num_heads: int, backend: str = "auto") -> Tensor:
    """Attention of every position to the sub-sampled keys and values.

    q: float [B, N, C], one query per position, bias included, heads inside C. May be strided.
    kv: float [B, M, 2C], keys then values of the M = floor(H/sr)·floor(W/sr) summaries, bias included. May be strided.
    backend: `triton`, `sdpa`, `reference`, or `auto`: Triton on a GPU that can, `sdpa` on one that cannot, the
    reference on a CPU. While a graph is exported every name means the reference, whose operators are plain.
    Returns float [B, N, C], before the output projection.
    Raises UsageError for an unknown name and for shapes that do not fit each other.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's EfficientMultiheadAttention.
    """
    fits = q.ndim == kv.ndim == 3 and kv.shape[0] == q.shape[0] and kv.shape[2] == 2 * q.shape[2]
    if not fits or q.shape[2] % num_heads:
        raise UsageError(
            f"queries {list(q.shape)} and packed keys and values {list(kv.shape)} do not hold {num_heads} heads",
            "pass q [B, N, C] and kv [B, M, 2C], with C a multiple of num_heads",
        )
    head_dim = q.shape[2] // num_heads
    unsupported = None if head_dim in HEAD_DIMS else f"there is no kernel for head dim {head_dim}"
    form = choose_backend(backend, q, op="gsa", unsupported=unsupported)
    if form == "triton":
        return gsa_op(q, kv, num_heads)[0]
    return (gsa_sdpa if form == "sdpa" else gsa_reference)(q, kv, num_heads=num_heads)


def gsa_sdpa(q: Tensor, kv: Tensor, *, num_heads: int) -> Tensor:
    """GSA through torch's scaled_dot_product_attention. Arguments and result as `gsa_reference`."""
    q = q.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, heads, N, D]
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, M, D], not copied
    out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, D]
    return out.transpose(1, 2).flatten(2)  # [B, N, C]


@torch.library.custom_op(
    "twins_trt::gsa",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor q, Tensor kv, int num_heads) -> (Tensor, Tensor)",
)
def gsa_op(q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """GSA with a registered gradient. Arguments as `gsa_reference`.

    Returns its result and log-sum-exp of the scaled scores, [B, heads, N], fp32 or wider; that has no gradient.
    """
    return gsa_forward(q, kv, num_heads=num_heads)


@torch.library.custom_op(
    "twins_trt::gsa_backward",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor grad, Tensor q, Tensor kv, Tensor out, Tensor lse, int num_heads) -> (Tensor, Tensor)",
)
def gsa_backward_op(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of GSA with respect to `q` and `kv`."""
    return gsa_backward(grad, q, kv, out, lse, num_heads=num_heads)


@gsa_op.register_kernel("cpu")
def _(q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    if runs_interpreted("gsa", q.dtype):
        return gsa_forward(q, kv, num_heads=num_heads)
    (queries,), (keys, values) = _heads(q, 1, num_heads), _heads(kv, 2, num_heads)
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5  # [B, heads, N, M]
    lse = scores.logsumexp(-1)  # [B, heads, N]
    out = (scores - lse[..., None]).exp() @ values  # [B, heads, N, D]
    return out.transpose(1, 2).flatten(2).to(q.dtype).contiguous(), lse  # [B, N, C]


@gsa_backward_op.register_kernel("cpu")
def _(grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    if runs_interpreted("gsa", q.dtype):
        return gsa_backward(grad, q, kv, out, lse, num_heads=num_heads)
    (queries,), (keys, values) = _heads(q, 1, num_heads), _heads(kv, 2, num_heads)
    (g,), (result,) = _heads(grad, 1, num_heads), _heads(out, 1, num_heads)
    scale = queries.shape[-1] ** -0.5
    p = (queries @ keys.mT * scale - lse[..., None]).exp()  # [B, heads, N, M]
    ds = p * (g @ values.mT - (g * result).sum(-1, keepdim=True)) * scale
    dq = (ds @ keys).transpose(1, 2).flatten(2)  # [B, N, C]
    dkv = torch.stack((ds.mT @ queries, p.mT @ g)).permute(1, 3, 0, 2, 4).flatten(2)  # [B, M, 2C]
    return dq.to(q.dtype).contiguous(), dkv.to(kv.dtype).contiguous()


def _heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """`parts` tensors packed in the channels -> [parts, B, heads, rows, D], fp32 or wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [parts, B, heads, rows, D]


@gsa_op.register_fake
def _(q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[0], num_heads, q.shape[1], dtype=wide)


@gsa_backward_op.register_fake
def _(grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, kv, ctx.num_heads = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, kv, out, lse)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dkv = gsa_backward_op(grad, *ctx.saved_tensors, ctx.num_heads)
    return dq, dkv, None


gsa_op.register_autograd(_differentiate, setup_context=_keep)
register_autocast("gsa")
