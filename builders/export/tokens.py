"""Tokens and maps, the two layouts in which the parts of a graph hand features on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from twins_trt.builders.export.dims import MapShape
from twins_trt.builders.export.writer import GraphWriter, Tensor

Weights = Mapping[str, NDArray]


@dataclass(frozen=True)
class StageMap:
    """Output of one stage: its tokens [B, H·W, C], and the shape of the map that they are."""

    tokens: Tensor
    shape: MapShape


def to_map(w: GraphWriter, tokens: Tensor, shape: MapShape) -> Tensor:
    """[B, N, C] -> [B, C, H, W]. Compilers that keep maps channels-last copy nothing for it."""
    rows = w.reshape(tokens, [shape.batch, *shape.size, shape.channels], "rows")  # [B, H, W, C]
    return w.transpose(rows, (0, 3, 1, 2), "map")  # [B, C, H, W]


def to_tokens(w: GraphWriter, x: Tensor, shape: MapShape) -> Tensor:
    """[B, C, H, W] -> [B, N, C]."""
    flat = w.reshape(x, [shape.batch, shape.channels, shape.tokens], "flat")  # [B, C, N]
    return w.transpose(flat, (0, 2, 1), "tokens")  # [B, N, C]


def layer_norm(w: GraphWriter, weights: Weights, key: str, x: Tensor, name: str, *, eps: float) -> Tensor:
    """LayerNorm over channels with the parameters `key.weight` and `key.bias`."""
    return w.layer_norm(x, weights[f"{key}.weight"], weights[f"{key}.bias"], eps, name)
