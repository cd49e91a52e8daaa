"""Tokens and maps, the two layouts that every part of a graph passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from twins_trt.builders.export.dims import Dim
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.models.backbone import LAYER_NORM_EPS

Weights = Mapping[str, NDArray]
Size = tuple[Dim, Dim]


@dataclass(frozen=True)
class StageMap:
    """Output of one stage: tokens [B, H·W, C] and the map's size."""

    tokens: Tensor
    size: Size
    channels: int


def to_map(w: GraphWriter, tokens: Tensor, batch: Dim, size: Size, channels: int) -> Tensor:
    """[B, N, C] -> [B, C, H, W]: a view for compilers that keep maps channels-last."""
    return w.transpose(w.reshape(tokens, [batch, *size, channels], "rows"), (0, 3, 1, 2), "map")


def to_tokens(w: GraphWriter, x: Tensor, batch: Dim, size: Size, channels: int) -> Tensor:
    """[B, C, H, W] -> [B, N, C]."""
    return w.transpose(w.reshape(x, [batch, channels, size[0] * size[1]], "flat"), (0, 2, 1), "tokens")


def layer_norm(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str) -> Tensor:
    """LayerNorm over channels with the parameters `key.weight` and `key.bias`."""
    return w.layer_norm(x, weights[f"{key}.weight"], weights[f"{key}.bias"], LAYER_NORM_EPS, name)
