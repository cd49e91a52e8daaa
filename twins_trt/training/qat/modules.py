"""The model's layers with INT8 rounding where an exported graph has it. State-dict keys stay as they are.

These layers compute the graph's products, which differ from the model's own (`builders.export`): the query's weights
contain the scale of the scores; keys and values have no bias, and the output projection adds the value's; a convolution
contains the BatchNorm after it. BatchNorm therefore uses its running statistics in training too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twins_trt.kernels.gsa import gsa
from twins_trt.kernels.lsa import lsa
from twins_trt.kernels.lsa.reference import (
    masks_padding,
    pad_with_bias,
    score_mask,
    split_heads,
    to_map,
    to_windows,
    window_padding,
)
from twins_trt.models.backbone import FFN, GSA, LSA
from twins_trt.models.heads import ConvModule
from twins_trt.training.qat.fake import SOFTMAX_RANGE, Activation, quantized_activation, quantized_weight

Size = tuple[int, int]
Places = Mapping[str, Activation]
"""The tensors that a layer reads in INT8, by the graph node's name in its block: `fc1`, `qkv`, `attention.q`."""


class QuantizedFFN(FFN):
    places: Places

    def forward(self, x: Tensor) -> Tensor:
        (fc1, gelu), fc2 = cast(Any, self.layers[0]), cast(nn.Linear, self.layers[1])
        x = gelu(_linear(x, fc1.weight, fc1.bias, self.places.get("fc1")))
        return self.dropout_layer(_linear(x, fc2.weight, fc2.bias, self.places.get("fc2")))


class QuantizedLSA(LSA):
    places: Places

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, tokens, channels = x.shape
        scale = (channels // self.num_heads) ** -0.5
        weight, bias = self.qkv.weight, self.qkv.bias
        weight = torch.cat([weight[:channels] * scale, weight[channels:]])
        packed = _linear(x, weight, F.pad(bias[:channels] * scale, (0, 2 * channels)), self.places.get("qkv"))
        packed = packed.reshape(batch, *size, 3 * channels)
        if "attention.q" in self.places:
            out = self._attend(packed)
        else:
            q, kv = packed.split([channels, 2 * channels], dim=-1)
            out = lsa(
                torch.cat([q / scale, kv], dim=-1),
                torch.zeros_like(bias),
                num_heads=self.num_heads,
                window_size=self.window_size,
                padding=self.padding,
                backend=self.attention,
            )
        out = out.reshape(batch, tokens, channels)
        return _project(out, self.proj, bias[2 * channels :], self.places)

    def _attend(self, packed: Tensor) -> Tensor:
        """`lsa_reference` on queries that are already scaled."""
        height, width = packed.shape[1:3]
        padded, inside = pad_with_bias(packed, packed.new_zeros(packed.shape[-1]), self.window_size)
        q, k, v = split_heads(to_windows(padded, self.window_size), self.num_heads)
        mask = None
        if masks_padding(*window_padding(height, width, self.window_size), padding=self.padding):
            mask = score_mask(inside, self.window_size, q.dtype)
        out = _attention(q, k, v, self.places, mask)
        out = out.transpose(2, 3).flatten(3)
        return to_map(out, padded.shape[1], padded.shape[2], self.window_size)[:, :height, :width]


class QuantizedGSA(GSA):
    places: Places

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, tokens, channels = x.shape
        head_dim = channels // self.num_heads
        scale = head_dim**-0.5
        summary = x
        if self.sr_ratio > 1:
            summary = self.sr(x.transpose(1, 2).reshape(batch, channels, *size))
            summary = self.norm(summary.flatten(2).transpose(1, 2))
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        q = _linear(x, weight[:channels] * scale, bias[:channels] * scale, self.places.get("q"))
        kv = _linear(summary, weight[channels:], None, self.places.get("kv"))
        if "attention.q" in self.places:
            heads = q.reshape(batch, tokens, self.num_heads, head_dim).transpose(1, 2)
            k, v = kv.reshape(batch, kv.shape[1], 2, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
            out = _attention(heads, k, v, self.places, None).transpose(1, 2).reshape(batch, tokens, channels)
        else:
            out = gsa(q / scale, kv, num_heads=self.num_heads, backend=self.attention)
        return self.dropout_layer(_project(out, self.attn.out_proj, bias[2 * channels :], self.places))


class QuantizedConv2d(nn.Conv2d):
    place: Activation

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.place(x), _rounded(self.weight, self.place), self.bias)


class QuantizedConvModule(ConvModule):
    """A convolution with its BatchNorm folded in, and ReLU."""

    place: Activation

    def forward(self, x: Tensor) -> Tensor:
        bn, conv = self.bn, self.conv
        assert bn.running_var is not None and bn.running_mean is not None
        scale = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
        weight = (conv.weight * scale.view(-1, 1, 1, 1)).float()
        bias = (bn.bias - bn.running_mean * scale).float()
        return F.relu(F.conv2d(self.place(x), _rounded(weight, self.place), bias, padding=conv.padding))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, place: Activation | None) -> Tensor:
    if place is None:
        return F.linear(x, weight, bias)
    return F.linear(place(x), _rounded(weight, place), bias)


def _project(context: Tensor, proj: nn.Linear, value_bias: Tensor, places: Places) -> Tensor:
    """The output projection, with the bias of the values, which attention left out."""
    bias = proj.bias + proj.weight @ value_bias
    if "proj" not in places and "attention.context" in places:
        return F.linear(places["attention.context"](context), proj.weight, bias)
    return _linear(context, proj.weight, bias, places.get("proj"))


def _attention(q: Tensor, k: Tensor, v: Tensor, places: Places, mask: Tensor | None) -> Tensor:
    """q, scaled, k, v: float [..., heads, tokens, head_dim] -> the same."""
    place = places["attention.q"]
    scores = place(q) @ places["attention.k"](k).transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    probabilities = scores.softmax(dim=-1)
    if not place.observing:
        probabilities = quantized_activation(probabilities, SOFTMAX_RANGE)
    return probabilities @ places["attention.v"](v)


def _rounded(weight: Tensor, place: Activation) -> Tensor:
    return weight if place.observing else quantized_weight(weight)
