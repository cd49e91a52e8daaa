"""GSA as an operator of torch: `torch.ops.twins_trt.gsa`, with its gradient `torch.ops.twins_trt.gsa_backward`.

CUDA tensors go to the Triton kernels, CPU tensors to plain torch with the same arithmetic (fp32 inside for 16-bit
tensors) and an analytic gradient: an operator's implementation cannot call autograd. Gradients are of first order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twins_trt.kernels.autocast import register_autocast
from twins_trt.kernels.device import interpreting
from twins_trt.kernels.gsa.launch import gsa_backward, gsa_forward


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
    if interpreting():
        return gsa_forward(q, kv, num_heads=num_heads)
    (queries,), (keys, values) = _heads(q, 1, num_heads), _heads(kv, 2, num_heads)
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5  # [B, heads, N, M]
    lse = scores.logsumexp(-1)
    out = (scores - lse[..., None]).exp() @ values
    return out.transpose(1, 2).flatten(2).to(q.dtype).contiguous(), lse


@gsa_backward_op.register_kernel("cpu")
def _(grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    if interpreting():
        return gsa_backward(grad, q, kv, out, lse, num_heads=num_heads)
    (queries,), (keys, values) = _heads(q, 1, num_heads), _heads(kv, 2, num_heads)
    (g,), (result,) = _heads(grad, 1, num_heads), _heads(out, 1, num_heads)
    scale = queries.shape[-1] ** -0.5
    p = (queries @ keys.mT * scale - lse[..., None]).exp()  # [B, heads, N, M]
    ds = p * (g @ values.mT - (g * result).sum(-1, keepdim=True)) * scale
    dq = (ds @ keys).transpose(1, 2).flatten(2)
    dkv = torch.stack((ds.mT @ queries, p.mT @ g)).permute(1, 3, 0, 2, 4).flatten(2)  # [B, M, 2C]
    return dq.to(q.dtype).contiguous(), dkv.to(kv.dtype).contiguous()


def _heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """`parts` tensors packed in the channels -> [parts, B, heads, rows, head_dim], fp32 or wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


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
