"""Ways to compute an attention: ours and those it is compared with. Each starts from the Linear layers' results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from twins_trt.kernels.gsa import gsa, gsa_sdpa
from twins_trt.kernels.lsa import lsa, lsa_sdpa
from twins_trt.kernels.lsa.reference import (
    masks_padding,
    pad_with_bias,
    split_heads,
    to_map,
    to_windows,
    window_padding,
)

Form = Callable[[Tensor, Tensor, int], Tensor]
"""(qkv, bias, heads) or (q, kv, heads) -> the attention's result."""

WINDOW = 7
FLEX_ROWS = 64  # a window's 49 tokens, padded, so that blocks of 128 hold whole windows
_SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}


def forms(attention: str, *, kernels: str, compiler: str) -> dict[str, Form]:
    """The forms by name, ours first. kernels: the backend that is ours. compiler: torch.compile's backend.

    A form that a device or a shape does not have raises when it is called.
    """
    ours: Form
    plain: Callable[..., Tensor]
    eager: Form
    flex: Callable[..., Tensor]
    if attention == "lsa":
        ours = lambda x, y, heads: lsa(x, y, num_heads=heads, backend=kernels)  # noqa: E731
        plain, eager, flex = lsa_sdpa, mmseg_lsa, flex_lsa
    else:
        ours = lambda x, y, heads: gsa(x, y, num_heads=heads, backend=kernels)  # noqa: E731
        plain, eager, flex = gsa_sdpa, mmseg_gsa, flex_gsa
    by_name: dict[str, Form] = {"ours": ours, "mmseg eager": eager}
    for name, backend in _SDPA.items():
        by_name[name] = functools.partial(_through_sdpa, plain, backend)
    by_name["mmseg compiled"] = torch.compile(eager, dynamic=False, backend=compiler)
    by_name["flex"] = functools.partial(flex, compiler=compiler)
    return by_name


def mmseg_lsa(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """mmsegmentation's LocallyGroupedSelfAttention after its Linear: padding, partition and a mask made every time.

    There padded tokens go through the Linear; here they are filled with its result, the bias.
    """
    _, height, width, channels3 = qkv.shape
    pad_bottom, pad_right = window_padding(height, width, WINDOW)
    padded, _ = pad_with_bias(qkv, bias.to(qkv.dtype), WINDOW)
    rows, columns = height + pad_bottom, width + pad_right
    mask = qkv.new_zeros(1, rows, columns, dtype=torch.float32)
    mask[:, -pad_bottom:, :].fill_(1)
    mask[:, :, -pad_right:].fill_(1)
    tokens = to_windows(mask[..., None], WINDOW)[..., 0]  # [1, windows, 49]
    difference = tokens.unsqueeze(2) - tokens.unsqueeze(3)
    difference = difference.masked_fill(difference != 0, -1000.0)
    q, k, v = split_heads(to_windows(padded, WINDOW), heads)  # [B, windows, heads, 49, D]
    scores = (q @ k.transpose(-2, -1)) * (channels3 // 3 // heads) ** -0.5 + difference.unsqueeze(2)
    out = scores.softmax(dim=-1).to(v.dtype) @ v  # [B, windows, heads, 49, D]
    out = out.transpose(2, 3).flatten(3)  # [B, windows, 49, C]
    return to_map(out, rows, columns, WINDOW)[:, :height, :width].contiguous()  # [B, H, W, C]


def mmseg_gsa(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """`nn.MultiheadAttention` between its projections, as mmcv calls it: sequence first, with averaged weights."""
    batch, queries, channels = q.shape
    dim = channels // heads
    k, v = kv.split(channels, dim=2)
    # each [B, rows, C] -> [rows, B · heads, D] -> [B · heads, rows, D]
    q, k, v = (x.transpose(0, 1).contiguous().view(x.shape[1], batch * heads, dim).transpose(0, 1) for x in (q, k, v))
    weights = torch.bmm(q * dim**-0.5, k.transpose(1, 2)).softmax(dim=-1).to(v.dtype)
    out = torch.bmm(weights, v).transpose(0, 1).contiguous().view(queries, batch, channels)  # [N, B, C]
    weights.view(batch, heads, queries, -1).mean(dim=1)  # [B, N, M]; mmcv leaves need_weights True
    return out.transpose(0, 1).contiguous()  # [B, N, C]


def flex_lsa(qkv: Tensor, bias: Tensor, heads: int, *, compiler: str) -> Tensor:
    """FlexAttention over all windows as one sequence, each padded to 64 tokens, with a block mask."""
    _, height, width, _ = qkv.shape
    padded, _ = pad_with_bias(qkv, bias, WINDOW)
    windows = to_windows(padded, WINDOW)  # [B, windows, 49, 3C]
    count = windows.shape[1]
    windows = F.pad(windows, (0, 0, 0, FLEX_ROWS - WINDOW * WINDOW)).flatten(1, 2)  # [B, windows · 64, 3C]
    q, k, v = windows.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, windows · 64, D]
    out = _flex(compiler)(q, k, v, block_mask=_window_mask(height, width, count, qkv.device))
    out = out.transpose(1, 2).flatten(2).unflatten(1, (count, FLEX_ROWS))  # [B, windows, 64, C]
    out = to_map(out[:, :, : WINDOW * WINDOW], padded.shape[1], padded.shape[2], WINDOW)
    return out[:, :height, :width].contiguous()  # [B, H, W, C]


def flex_gsa(q: Tensor, kv: Tensor, heads: int, *, compiler: str) -> Tensor:
    """FlexAttention without a mask."""
    queries = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, heads, N, D]
    keys, values = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, M, D]
    return _flex(compiler)(queries, keys, values).transpose(1, 2).flatten(2)  # [B, N, C]


@functools.cache
def _flex(compiler: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, backend=compiler)


@functools.lru_cache(maxsize=4)
def _window_mask(height: int, width: int, windows: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    inside = torch.ones(1, height, width, 1, device=device)
    if masks_padding(*window_padding(height, width, WINDOW), padding="parity"):
        inside, _ = pad_with_bias(inside, inside.new_zeros(1), WINDOW)
    else:
        rows, columns = (side + -side % WINDOW for side in (height, width))
        inside = torch.ones(1, rows, columns, 1, device=device)
    valid = F.pad(to_windows(inside, WINDOW)[0, :, :, 0], (0, FLEX_ROWS - WINDOW * WINDOW)).flatten() > 0

    def same_window(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query // FLEX_ROWS == key // FLEX_ROWS) & valid[key]

    length = windows * FLEX_ROWS
    return create_block_mask(same_window, None, None, length, length, device=str(device))


def _through_sdpa(plain: Callable[..., Tensor], backend: SDPBackend, x: Tensor, y: Tensor, heads: int) -> Tensor:
    with sdpa_kernel(backend):
        return plain(x, y, num_heads=heads)
