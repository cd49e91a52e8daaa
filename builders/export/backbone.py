"""The backbone as a graph: tokens are [B, N, C] from block to block, maps are [B, C, H, W]."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.builders.export.attention import Attention, write_gsa, write_lsa
from twins_trt.builders.export.dims import MapShape, ceil_div
from twins_trt.builders.export.tokens import StageMap, Weights, layer_norm, to_map, to_tokens
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.models.zoo import ModelSpec

MAP_FFN_CHANNELS = 128


@dataclass(frozen=True)
class BackboneSource:
    """A backbone to write: its model and weights, and what becomes of padded keys in LSA (`PADDINGS`)."""

    spec: ModelSpec
    weights: Weights
    padding: str


@dataclass(frozen=True)
class Block:
    """Block number `index` of a stage of a backbone, and the map whose tokens it takes and returns."""

    backbone: BackboneSource
    stage: int
    index: int
    shape: MapShape

    @property
    def key(self) -> str:
        """How the names of its weights begin."""
        return f"backbone.layers.{self.stage}.{self.index}"

    @property
    def name(self) -> str:
        """The scope of its nodes."""
        return f"stages.{self.stage}.blocks.{self.index}"

    @property
    def ffn_in_map(self) -> bool:
        """Whether the FFN runs as 1×1 convolutions in the map's layout, which the block then ends in.

        A block that ends in the positional convolution needs that layout anyway. The compiler keeps the 1×1
        convolutions, and so saves a copy, up to 128 channels and behind LSA only (counted).
        """
        return self.index == 0 and self.backbone.spec.family == "svt" and self.shape.channels <= MAP_FFN_CHANNELS


def write_backbone(w: GraphWriter, backbone: BackboneSource, image: Tensor, shape: MapShape) -> list[StageMap]:
    """image: float [B, 3, H, W], normalized, of the given shape. Returns the four stages' maps."""
    spec, weights = backbone.spec, backbone.weights
    stages: list[StageMap] = []
    x = image
    for i, channels in enumerate(spec.embed_dims):
        with w.scope(f"stages.{i}.patch_embed"):
            if i > 0:
                x = to_map(w, stages[-1].tokens, shape)
            tokens, shape = _patch_embed(w, backbone, x, stage=i, shape=shape)
        for j in range(spec.depths[i]):
            tokens = _write_block(w, Block(backbone, i, j, shape), tokens)
        if spec.norm_after_stage:
            with w.scope(f"stages.{i}.norm"):
                # As a map, so that ONNX Runtime does not fuse it with the sum before: ten times as slow as both.
                rows = [shape.batch, *shape.size, channels]
                x = w.reshape(tokens, rows, "rows") if w.target == "cpu" else tokens  # [B, H, W, C]
                x = layer_norm(w, weights, f"backbone.norm_list.{i}", x, "norm", eps=spec.stage_norm_eps)
                tokens = w.reshape(x, [shape.batch, shape.tokens, channels]) if w.target == "cpu" else x  # [B, N, C]
        stages.append(StageMap(tokens, shape))
    return stages


def _patch_embed(
    w: GraphWriter, backbone: BackboneSource, x: Tensor, *, stage: int, shape: MapShape
) -> tuple[Tensor, MapShape]:
    """x: [B, C, H, W] of the given shape. Returns the stage's tokens, and their map's shape."""
    weights, channels = backbone.weights, backbone.spec.embed_dims[stage]
    patch = 4 if stage == 0 else 2
    # patch-1 of zero padding at the bottom and right makes the output ceil(H / patch), as mmseg's 'corner' padding
    # does, whatever the size; where the size is a known multiple there is nothing to pad
    pads = [0 if isinstance(side, int) and side % patch == 0 else patch - 1 for side in shape.size]
    key = f"backbone.patch_embeds.{stage}"
    x = w.conv(
        x,
        weights[f"{key}.projection.weight"],
        weights[f"{key}.projection.bias"],
        "projection",
        stride=patch,
        pads=(0, 0, pads[0], pads[1]),
    )
    embedded = MapShape(shape.batch, channels, (ceil_div(shape.size[0], patch), ceil_div(shape.size[1], patch)))
    tokens = layer_norm(w, weights, f"{key}.norm", to_tokens(w, x, embedded), "norm", eps=backbone.spec.patch_norm_eps)
    return tokens, embedded


def _write_block(w: GraphWriter, block: Block, x: Tensor) -> Tensor:
    """x: [B, N, C]. Returns [B, N, C], behind attention, FFN and, in a stage's first block, the position encoding."""
    spec, weights, shape = block.backbone.spec, block.backbone.weights, block.shape
    with w.scope(f"{block.name}.attn"):
        normed = layer_norm(w, weights, f"{block.key}.norm1", x, "norm1", eps=spec.block_norm_eps)
        attention = Attention(weights, f"{block.key}.attn", spec.num_heads[block.stage], shape, spec.norm_eps)
        if spec.has_lsa(block.index):
            out = write_lsa(w, normed, attention, window=spec.window_size, padding=block.backbone.padding)
        else:
            out = write_gsa(w, normed, attention, sr_ratio=spec.sr_ratios[block.stage])
        x = w.add(x, out, "residual")
    with w.scope(f"{block.name}.ffn"):
        normed = layer_norm(w, weights, f"{block.key}.norm2", x, "norm2", eps=spec.block_norm_eps)
        x = _ffn_in_map(w, block, x, normed) if block.ffn_in_map else _ffn(w, block, x, normed)
    if block.index == 0:
        with w.scope(f"stages.{block.stage}.pos"):
            x = _position(w, weights, block.stage, x if block.ffn_in_map else to_map(w, x, shape), shape)
    return x


def _ffn(w: GraphWriter, block: Block, x: Tensor, normed: Tensor) -> Tensor:
    """[B, N, C] -> [B, N, C]."""
    weights, key = block.backbone.weights, f"{block.key}.ffn.layers"
    hidden = w.linear(normed, weights[f"{key}.0.0.weight"], weights[f"{key}.0.0.bias"], "fc1")
    out = w.linear(w.gelu(hidden), weights[f"{key}.1.weight"], weights[f"{key}.1.bias"], "fc2")
    return w.add(x, out, "residual")


def _ffn_in_map(w: GraphWriter, block: Block, x: Tensor, normed: Tensor) -> Tensor:
    """[B, N, C] -> [B, C, H, W], by 1×1 convolutions."""
    weights, key = block.backbone.weights, f"{block.key}.ffn.layers"
    fc1, fc2 = weights[f"{key}.0.0.weight"][:, :, None, None], weights[f"{key}.1.weight"][:, :, None, None]
    hidden = w.conv(to_map(w, normed, block.shape), fc1, weights[f"{key}.0.0.bias"], "fc1")
    out = w.conv(w.gelu(hidden), fc2, weights[f"{key}.1.bias"], "fc2")
    return w.add(to_map(w, x, block.shape), out, "residual")


def _position(w: GraphWriter, weights: Weights, stage: int, x: Tensor, shape: MapShape) -> Tensor:
    """[B, C, H, W] -> [B, N, C]."""
    key = f"backbone.position_encodings.{stage}.proj"
    kernel = weights[f"{key}.weight"].copy()  # [C, 1, 3, 3]
    kernel[:, :, 1, 1] += 1.0  # the residual around the convolution
    x = w.conv(x, kernel, weights[f"{key}.bias"], "proj", pads=(1, 1, 1, 1), group=shape.channels)
    return to_tokens(w, x, shape)
