"""Twins-PCPVT and Twins-SVT backbones, with mmsegmentation's arithmetic and state-dict keys.

A stage is, top to bottom: patch embedding, blocks (attention, FFN) with a positional convolution after the first, norm.
Tokens are [B, N, C] with N = H·W; `size` is the map's (H, W).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twins_trt.errors import UsageError
from twins_trt.kernels.gsa import gsa
from twins_trt.kernels.lsa import lsa
from twins_trt.models.zoo import MIN_SIDE, ModelSpec

Size = tuple[int, int]


class DropPath(nn.Module):
    """Stochastic depth: drops a sample's whole branch with probability `rate` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (x.new_empty(shape).bernoulli_(keep) / keep)


class PatchEmbed(nn.Module):
    """Non-overlapping convolution and LayerNorm. Pads bottom and right with zeros ('corner') to a multiple."""

    def __init__(self, in_channels: int, channels: int, patch: int, *, eps: float) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(in_channels, channels, patch, patch)
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        x = self.projection(self.padded(x))  # [B, C, H, W]
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
        return self.norm(tokens), size

    def padded(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] with sides that are multiples of the patch."""
        height, width = x.shape[-2:]
        if height % self.patch or width % self.patch:
            x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        return x


class FFN(nn.Module):
    """fc1 → GELU (erf) → fc2. The nesting of `layers` gives mmcv's keys `layers.0.0` and `layers.1`."""

    def __init__(self, channels: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(channels, hidden), nn.GELU()), nn.Linear(hidden, channels))
        self.dropout_layer = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout_layer(self.layers(x))


class LSA(nn.Module):
    """Locally-grouped self-attention."""

    def __init__(
        self, channels: int, num_heads: int, window_size: int, *, padding: str = "parity", attention: str = "auto"
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.padding = padding
        self.attention = attention
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, *size, 3 * channels)  # [B, H, W, 3C]
        out = lsa(
            qkv,
            self.qkv.bias,
            num_heads=self.num_heads,
            window_size=self.window_size,
            padding=self.padding,
            backend=self.attention,
        )
        return self.proj(out.reshape(batch, tokens, channels))  # [B, N, C]


class PackedProjections(nn.Module):
    """The parameters of `nn.MultiheadAttention`, under its names, so that mmseg's keys load unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)


class GSA(nn.Module):
    """Global sub-sampled attention. With `sr_ratio` 1 (last stage) keys are the tokens themselves: no conv, no norm."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        sr_ratio: int,
        *,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.attn = PackedProjections(channels)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(channels, channels, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(channels, eps=eps)
        self.sr_ratio = sr_ratio
        self.dropout_layer = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, _, channels = x.shape
        summary = x
        if self.sr_ratio > 1:
            x_map = x.transpose(1, 2).reshape(batch, channels, *size)  # [B, C, H, W]
            summary = self.sr(x_map).flatten(2).transpose(1, 2)  # [B, M, C]
            summary = self.norm(summary)
        return self.attend(self.queries(x), self.keys_values(summary))

    def queries(self, x: Tensor) -> Tensor:
        """Queries [B, N, C] of all tokens [B, N, C]."""
        channels = x.shape[2]
        return F.linear(x, self.attn.in_proj_weight[:channels], self.attn.in_proj_bias[:channels])

    def keys_values(self, summary: Tensor) -> Tensor:
        """Keys and values [B, M, 2C] of the summary [B, M, C]."""
        channels = summary.shape[2]
        return F.linear(summary, self.attn.in_proj_weight[channels:], self.attn.in_proj_bias[channels:])

    def attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of queries [B, N, C] to keys and values [B, M, 2C]."""
        out = self.attn.out_proj(gsa(q, kv, num_heads=self.num_heads, backend=self.attention))
        return self.dropout_layer(out)


class Block(nn.Module):
    """One encoder layer: x + attention(norm1(x)), then x + FFN(norm2(x)).

    In mmseg the FFN and GSA drop paths themselves, and the block drops them again: while training, those branches are
    dropped twice and LSA once. That is kept, because published weights were trained that way.
    """

    def __init__(
        self, spec: ModelSpec, stage: int, block: int, *, drop_path: float, padding: str, attention: str
    ) -> None:
        super().__init__()
        channels, heads = spec.embed_dims[stage], spec.num_heads[stage]
        self.norm1 = nn.LayerNorm(channels, eps=spec.block_norm_eps)
        if spec.has_lsa(block):
            self.attn: LSA | GSA = LSA(channels, heads, spec.window_size, padding=padding, attention=attention)
        else:
            self.attn = GSA(
                channels,
                heads,
                spec.sr_ratios[stage],
                eps=spec.norm_eps,
                drop_path=drop_path,
                attention=attention,
            )
        self.norm2 = nn.LayerNorm(channels, eps=spec.block_norm_eps)
        self.ffn = FFN(channels, spec.mlp_ratios[stage] * channels, drop_path)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class PositionEncoding(nn.Module):
    """Conditional position encoding (arXiv 2102.10882): a residual depth-wise 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, _, channels = x.shape
        x = x.transpose(1, 2).reshape(batch, channels, *size)  # [B, C, H, W]
        return (self.proj(x) + x).flatten(2).transpose(1, 2)  # [B, N, C]


def check_images(x: Tensor) -> None:
    """Raises UsageError where a backbone does not take x: not [B, 3, H, W], or a side below `MIN_SIDE`."""
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < MIN_SIDE:
        raise UsageError(
            f"the network takes [N, 3, H, W] with H and W of {MIN_SIDE} or more, not {list(x.shape)}",
            "pass a normalized RGB batch, or enlarge the image",
        )


class Backbone(nn.Module):
    """The four stages of a Twins backbone.

    padding: how LSA treats padded keys, of `PADDINGS`. attention: which form of LSA and GSA runs, a name of
    `twins_trt.kernels.backend.BACKENDS`.
    x: float [B, 3, H, W] -> four maps float [B, C_i, H_i, W_i] at strides 4, 8, 16, 32 (sizes rounded up).
    Raises UsageError for another shape, or a side below `MIN_SIDE`, with which GSA would have no key.
    """

    def __init__(self, spec: ModelSpec, *, padding: str = "parity", attention: str = "auto") -> None:
        super().__init__()
        channels = (3, *spec.embed_dims)
        rates = [spec.drop_path_rate * i / max(1, sum(spec.depths) - 1) for i in range(sum(spec.depths))]
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(channels[i], channels[i + 1], 4 if i == 0 else 2, eps=spec.patch_norm_eps) for i in range(4)
        )
        self.position_encodings = nn.ModuleList(PositionEncoding(c) for c in spec.embed_dims)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                Block(
                    spec,
                    stage,
                    block,
                    drop_path=rates[sum(spec.depths[:stage]) + block],
                    padding=padding,
                    attention=attention,
                )
                for block in range(depth)
            )
            for stage, depth in enumerate(spec.depths)
        )
        if spec.norm_after_stage:
            self.norm_list = nn.ModuleList(nn.LayerNorm(c, eps=spec.stage_norm_eps) for c in spec.embed_dims)
        self.norm_after_stage = spec.norm_after_stage

    def forward(self, x: Tensor) -> list[Tensor]:
        check_images(x)
        stages = []
        for i in range(4):
            tokens, size = self.patch_embeds[i](x)
            blocks = cast(nn.ModuleList, self.layers[i])
            for j, block in enumerate(blocks):
                tokens = block(tokens, size)
                if j == 0:
                    tokens = self.position_encodings[i](tokens, size)
            if self.norm_after_stage:
                tokens = self.norm_list[i](tokens)
            x = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)  # [B, C, H, W]
            stages.append(x)
        return stages
