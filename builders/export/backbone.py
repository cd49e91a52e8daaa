"""The backbone as a graph: tokens are [B, N, C] from block to block, maps are [B, C, H, W]."""

from __future__ import annotations

from twins_trt.builders.export.attention import Attention, write_gsa, write_lsa
from twins_trt.builders.export.dims import Dim, ceil_div
from twins_trt.builders.export.tokens import Size, StageMap, Weights, layer_norm, to_map, to_tokens
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.models.zoo import ModelSpec

MAP_FFN_CHANNELS = 128


def write_backbone(
    w: GraphWriter, weights: Weights, spec: ModelSpec, image: Tensor, batch: Dim, size: Size, padding: str
) -> list[StageMap]:
    """image: float [B, 3, H, W], normalized. Returns the four stages' maps."""
    stages: list[StageMap] = []
    x = image
    for i, channels in enumerate(spec.embed_dims):
        patch = 4 if i == 0 else 2
        with w.scope(f"stages.{i}.patch_embed"):
            if i > 0:
                x = to_map(w, stages[-1].tokens, batch, size, spec.embed_dims[i - 1])
            # patch-1 of zero padding at the bottom and right makes the output ceil(H / patch), as mmseg's 'corner'
            # padding does, whatever the size; where the size is a known multiple there is nothing to pad
            pads = [0 if isinstance(side, int) and side % patch == 0 else patch - 1 for side in size]
            prefix = f"backbone.patch_embeds.{i}"
            x = w.conv(
                x,
                weights[f"{prefix}.projection.weight"],
                weights[f"{prefix}.projection.bias"],
                "projection",
                stride=patch,
                pads=(0, 0, pads[0], pads[1]),
            )
            size = (ceil_div(size[0], patch), ceil_div(size[1], patch))
            tokens = to_tokens(w, x, batch, size, channels)
            tokens = layer_norm(w, weights, f"{prefix}.norm", tokens, "norm")
        for j in range(spec.depths[i]):
            tokens = _block(w, weights, spec, i, j, tokens, batch, size, padding)
        if spec.norm_after_stage:
            with w.scope(f"stages.{i}.norm"):
                # As a map, so that ONNX Runtime does not fuse it with the sum before: ten times as slow as both.
                rows = w.reshape(tokens, [batch, *size, channels], "rows") if w.target == "cpu" else tokens
                rows = layer_norm(w, weights, f"backbone.norm_list.{i}", rows, "norm")
                tokens = w.reshape(rows, [batch, size[0] * size[1], channels]) if w.target == "cpu" else rows
        stages.append(StageMap(tokens, size, channels))
    return stages


def _block(
    w: GraphWriter,
    weights: Weights,
    spec: ModelSpec,
    stage: int,
    block: int,
    x: Tensor,
    batch: Dim,
    size: Size,
    padding: str,
) -> Tensor:
    prefix, name = f"backbone.layers.{stage}.{block}", f"stages.{stage}.blocks.{block}"
    channels, heads = spec.embed_dims[stage], spec.num_heads[stage]
    with w.scope(f"{name}.attn"):
        normed = layer_norm(w, weights, f"{prefix}.norm1", x, "norm1")
        attention = Attention(weights, f"{prefix}.attn", batch, size, channels, heads)
        if spec.has_lsa(block):
            out = write_lsa(w, normed, attention, window=spec.window_size, padding=padding)
        else:
            out = write_gsa(w, normed, attention, sr_ratio=spec.sr_ratios[stage])
        x = w.add(x, out, "residual")
    # A block that ends in the positional convolution can run its FFN as 1×1 convolutions in the map's layout. The
    # compiler keeps those as convolutions, and so saves a copy, up to 128 channels and behind LSA only (counted).
    in_map = block == 0 and spec.family == "svt" and channels <= MAP_FFN_CHANNELS
    with w.scope(f"{name}.ffn"):
        normed = layer_norm(w, weights, f"{prefix}.norm2", x, "norm2")
        x = (
            _ffn_map(w, weights, f"{prefix}.ffn", x, normed, batch, size, channels)
            if in_map
            else _ffn(w, weights, f"{prefix}.ffn", x, normed)
        )
    if block == 0:
        with w.scope(f"stages.{stage}.pos"):
            x = _position(w, weights, f"backbone.position_encodings.{stage}.proj", x, batch, size, channels, in_map)
    return x


def _ffn(w: GraphWriter, weights: Weights, key: str, x: Tensor, normed: Tensor) -> Tensor:
    hidden = w.linear(normed, weights[f"{key}.layers.0.0.weight"], weights[f"{key}.layers.0.0.bias"], "fc1")
    out = w.linear(w.gelu(hidden), weights[f"{key}.layers.1.weight"], weights[f"{key}.layers.1.bias"], "fc2")
    return w.add(x, out, "residual")


def _ffn_map(
    w: GraphWriter, weights: Weights, key: str, x: Tensor, normed: Tensor, batch: Dim, size: Size, channels: int
) -> Tensor:
    """The FFN as 1×1 convolutions. Returns a map [B, C, H, W]."""
    fc1, fc2 = weights[f"{key}.layers.0.0.weight"], weights[f"{key}.layers.1.weight"]
    hidden = w.conv(
        to_map(w, normed, batch, size, channels), fc1[:, :, None, None], weights[f"{key}.layers.0.0.bias"], "fc1"
    )
    out = w.conv(w.gelu(hidden), fc2[:, :, None, None], weights[f"{key}.layers.1.bias"], "fc2")
    return w.add(to_map(w, x, batch, size, channels), out, "residual")


def _position(
    w: GraphWriter, weights: Weights, key: str, x: Tensor, batch: Dim, size: Size, channels: int, in_map: bool
) -> Tensor:
    kernel = weights[f"{key}.weight"].copy()  # [C, 1, 3, 3]
    kernel[:, :, 1, 1] += 1.0  # the residual around the convolution
    x = x if in_map else to_map(w, x, batch, size, channels)
    x = w.conv(x, kernel, weights[f"{key}.bias"], "proj", pads=(1, 1, 1, 1), group=channels)
    return to_tokens(w, x, batch, size, channels)
