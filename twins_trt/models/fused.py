"""The forward pass of a folded model, with one kernel for what torch runs several for between the products.

Residual sums go into the LayerNorm that follows, biases of convolutions into what follows them, and a resized map is
added to another while it is made. A product by a 1×1 convolution is a matrix product, whose library adds the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twins_trt.kernels.bias import bias_act_
from twins_trt.kernels.layer_norm import add_layer_norm
from twins_trt.kernels.position import add_position
from twins_trt.kernels.resize import resize_add
from twins_trt.models.backbone import GSA, LSA, Backbone, Block, PatchEmbed, PositionEncoding, Size, check_images
from twins_trt.models.heads import FPN, ConvModule, FPNHead, UPerHead, Upsample
from twins_trt.models.segmentor import Segmentor

FEW_CHANNELS = 8
"""With fewer, cuDNN's convolutions do not use the tensor cores well: patches are then copied out for a product."""


class FusedModel(nn.Module):
    """`model`, whose weights it shares and whose BatchNorm must be folded, for inference alone.

    backend: of the kernels between the attentions, `auto`, `triton` or `reference`.
    x: float [N, 3, H, W], normalized RGB, of the weights' dtype -> logits [N, classes, ceil(H/4), ceil(W/4)], channels
    last. Raises UsageError for another shape, or a side below `MIN_SIDE`.
    """

    def __init__(self, model: Segmentor, *, backend: str = "auto") -> None:
        super().__init__()
        self.model = model
        self.backend = backend
        for encoding in model.backbone.position_encodings:
            weight = cast(PositionEncoding, encoding).proj.weight  # [C, 1, 3, 3], here with channels side by side
            weight.data = weight.data.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        stages = self._stages(self.model.backbone, x)
        head = self.model.decode_head
        if isinstance(head, UPerHead):
            return self._uper_head(head, stages)
        return self._fpn_head(head, self._neck(self.model.neck, stages))

    def _stages(self, backbone: Backbone, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(4):
            tokens, size = self._embed(cast(PatchEmbed, backbone.patch_embeds[i]), x)
            branch: Tensor | None = None  # what a block has still to add to the tokens
            for j, module in enumerate(cast(nn.ModuleList, backbone.layers[i])):
                block = cast(Block, module)
                tokens, y = self._norm(tokens, branch, block.norm1)
                tokens, y = self._norm(tokens, self._attention(block.attn, y, size), block.norm2)
                branch = block.ffn(y)
                if j == 0:
                    position = cast(PositionEncoding, backbone.position_encodings[i]).proj
                    assert position.bias is not None
                    tokens = add_position(
                        tokens, branch, position.weight, position.bias, size=size, backend=self.backend
                    )
                    branch = None
            if backbone.norm_after_stage:
                tokens = self._norm(tokens, branch, cast(nn.LayerNorm, backbone.norm_list[i]), keep_sum=False)[1]
            elif branch is not None:
                tokens = tokens + branch
            x = as_map(tokens, size)  # [B, C, H, W]
            maps.append(x)
        return maps

    def _embed(self, embed: PatchEmbed, x: Tensor) -> tuple[Tensor, Size]:
        x = embed.padded(x)
        if x.shape[1] >= FEW_CHANNELS:
            return self._conv_norm(embed.projection, embed.norm, x)
        x = patchwise(embed.projection, x)  # [B, H, W, C]
        return self._norm(x.flatten(1, 2), None, embed.norm, keep_sum=False)[1], (x.shape[1], x.shape[2])

    def _attention(self, attention: LSA | GSA, x: Tensor, size: Size) -> Tensor:
        if isinstance(attention, LSA):
            return attention(x, size)
        summary = x
        if attention.sr_ratio > 1:
            summary, _ = self._conv_norm(attention.sr, attention.norm, as_map(x, size))
        return attention.attend(x, summary)

    def _conv_norm(self, conv: nn.Conv2d, norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Size]:
        """LayerNorm of a convolution's result, as tokens [B, N, C], and the map's size."""
        x = F.conv2d(x, conv.weight, None, conv.stride)  # [B, C, H, W]
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
        return self._norm(tokens, None, norm, row=conv.bias, keep_sum=False)[1], (x.shape[2], x.shape[3])

    def _norm(
        self, x: Tensor, y: Tensor | None, norm: nn.LayerNorm, *, row: Tensor | None = None, keep_sum: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The sum of x and y, and its LayerNorm."""
        return add_layer_norm(
            x, y, norm.weight, norm.bias, eps=norm.eps, row=row, keep_sum=keep_sum, backend=self.backend
        )

    def _neck(self, neck: FPN, stages: Sequence[Tensor]) -> list[Tensor]:
        maps = [self._conv(cast(ConvModule, conv), x) for conv, x in zip(neck.lateral_convs, stages, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = self._resize(maps[i], maps[i - 1].shape[2:], add=maps[i - 1], mode="nearest")
        return [self._conv(cast(ConvModule, conv), x) for conv, x in zip(neck.fpn_convs, maps, strict=True)]

    def _fpn_head(self, head: FPNHead, maps: Sequence[Tensor]) -> Tensor:
        levels = [list(cast(nn.Sequential, steps)) for steps in head.scale_heads]
        out = self._steps(levels[0], maps[0])
        for steps, x in zip(levels[1:], maps[1:], strict=True):
            last = steps.pop()  # ×2, which mostly gives the size of the sum
            x = self._steps(steps, x)
            if (2 * x.shape[2], 2 * x.shape[3]) != tuple(out.shape[2:]):
                x = self._steps([last], x)
            out = self._resize(x, out.shape[2:], add=out)
        return pointwise(head.conv_seg, out)

    def _uper_head(self, head: UPerHead, stages: Sequence[Tensor]) -> Tensor:
        last = stages[-1]
        pooled = []
        for module in head.psp_modules:
            pool, conv = cast(nn.Sequential, module)
            pooled.append(self._resize(self._conv(cast(ConvModule, conv), pool(last)), last.shape[2:]))
        maps = [self._conv(cast(ConvModule, conv), x) for conv, x in zip(head.lateral_convs, stages[:-1], strict=True)]
        maps.append(self._conv(head.bottleneck, torch.cat([last, *pooled], dim=1)))
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = self._resize(maps[i], maps[i - 1].shape[2:], add=maps[i - 1])
        outs = [self._conv(cast(ConvModule, conv), x) for conv, x in zip(head.fpn_convs, maps[:-1], strict=True)]
        outs.append(maps[-1])
        outs = [outs[0], *(self._resize(x, outs[0].shape[2:]) for x in outs[1:])]
        return pointwise(head.conv_seg, self._conv(head.fpn_bottleneck, torch.cat(outs, dim=1)))

    def _steps(self, steps: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Convolutions and doublings of a head, one after another."""
        for step in steps:
            if isinstance(step, Upsample):
                x = self._resize(x, (2 * x.shape[2], 2 * x.shape[3]))
            else:
                x = self._conv(cast(ConvModule, step), x)
        return x

    def _conv(self, module: ConvModule, x: Tensor) -> Tensor:
        """Convolution, bias and, where there was a BatchNorm, ReLU."""
        conv = module.conv
        assert conv.bias is not None  # BatchNorm is folded into it
        if conv.kernel_size == (1, 1):
            x = pointwise(conv, x)
            return F.relu(x) if module.norm else x
        x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        return bias_act_(x, conv.bias, relu=module.norm, backend=self.backend)

    def _resize(self, x: Tensor, size: Sequence[int], *, add: Tensor | None = None, mode: str = "bilinear") -> Tensor:
        height, width = size
        return resize_add(x, (height, width), mode=mode, add=add, backend=self.backend)


def as_map(tokens: Tensor, size: Size) -> Tensor:
    """[B, N, C] -> [B, C, H, W], channels last."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution as a matrix product over the channels, which lie side by side. [B, C, H, W] -> [B, D, H, W]."""
    out = F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias)  # [B, H, W, D]
    return out.permute(0, 3, 1, 2)


def patchwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution whose kernel is its stride, as a matrix product. [B, C, H, W] -> [B, H / kernel, W / kernel, D]."""
    rows, columns = conv.kernel_size
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # [B, h, rows, w, columns, C]
    patches = x.transpose(2, 3).flatten(3)  # [B, h, w, rows · columns · C]
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
