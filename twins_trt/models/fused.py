"""The forward pass of a folded model, with one kernel for what torch runs several for between the products.

All of a block after its attention is one operator. Biases of convolutions go into what follows them, and a resized map
is added to another while it is made. A product by a 1×1 convolution is a matrix product, whose library adds the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twins_trt.kernels.bias import bias_act_
from twins_trt.kernels.device import MAX_OFFSET
from twins_trt.kernels.ffn import add_norm_ffn
from twins_trt.kernels.layer_norm import add_layer_norm
from twins_trt.kernels.patch import patch_norm
from twins_trt.kernels.position import add_position
from twins_trt.kernels.resize import resize_add
from twins_trt.models.backbone import GSA, LSA, Backbone, Block, PatchEmbed, PositionEncoding, Size, check_images
from twins_trt.models.beside import Beside
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
        self._parts = Beside()
        for encoding in model.backbone.position_encodings:
            weight = cast(PositionEncoding, encoding).proj.weight  # [C, 1, 3, 3], here with channels side by side
            weight.data = weight.data.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        stages = self._stages(self.model.backbone, x)
        head = self.model.decode_head
        if isinstance(head, UPerHead):
            return self._uper_head(head, stages)
        size = (stages[0].shape[2], stages[0].shape[3])
        return self._fpn_head(head, self._neck(self.model.neck, stages), size)

    def _stages(self, backbone: Backbone, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(4):
            tokens, size = self._embed(cast(PatchEmbed, backbone.patch_embeds[i]), x)
            for j, module in enumerate(cast(nn.ModuleList, backbone.layers[i])):
                block = cast(Block, module)
                y = self._norm(tokens, block.norm1)
                tokens = self._ffn(tokens, self._attention(block.attn, y, size), block)
                if j == 0:
                    position = cast(PositionEncoding, backbone.position_encodings[i]).proj
                    assert position.bias is not None
                    tokens = add_position(tokens, None, position.weight, position.bias, size=size, backend=self.backend)
            if backbone.norm_after_stage:
                tokens = self._norm(tokens, cast(nn.LayerNorm, backbone.norm_list[i]))
            x = as_map(tokens, size)  # [B, C, H, W]
            maps.append(x)
        return maps

    def _embed(self, embed: PatchEmbed, x: Tensor) -> tuple[Tensor, Size]:
        x = embed.padded(x)
        if x.shape[1] >= FEW_CHANNELS:
            size = (x.shape[2] // embed.patch, x.shape[3] // embed.patch)
            return self._conv_norm(embed.projection, embed.norm, x), size
        x = patchwise(embed.projection, x)  # [B, H, W, C]
        return self._norm(x.flatten(1, 2), embed.norm), (x.shape[1], x.shape[2])

    def _attention(self, attention: LSA | GSA, x: Tensor, size: Size) -> Tensor:
        if isinstance(attention, LSA):
            return attention(x, size)
        if attention.sr_ratio == 1:  # keys are the tokens themselves: one product gives all
            both = F.linear(x, attention.attn.in_proj_weight, attention.attn.in_proj_bias)  # [B, N, 3C]
            return attention.attend(both[..., : x.shape[2]], both[..., x.shape[2] :])

        def keys_values() -> Tensor:
            return attention.keys_values(self._conv_norm(attention.sr, attention.norm, as_map(x, size)))

        return attention.attend(*self._beside(lambda: attention.queries(x), keys_values))

    def _conv_norm(self, conv: nn.Conv2d, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """LayerNorm of a convolution of patches, as tokens [B, N, C]."""
        assert conv.bias is not None
        return patch_norm(x, conv.weight, conv.bias, norm.weight, norm.bias, eps=norm.eps, backend=self.backend)

    def _norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return add_layer_norm(x, None, norm.weight, norm.bias, eps=norm.eps, keep_sum=False, backend=self.backend)[1]

    def _ffn(self, x: Tensor, y: Tensor, block: Block) -> Tensor:
        """What follows a block's attention, whose result is y."""
        norm, ffn = block.norm2, block.ffn.layers
        fc1, fc2 = cast(nn.Linear, cast(nn.Sequential, ffn[0])[0]), cast(nn.Linear, ffn[1])
        return add_norm_ffn(
            x,
            y,
            norm.weight,
            norm.bias,
            fc1.weight,
            fc1.bias,
            fc2.weight,
            fc2.bias,
            eps=norm.eps,
            backend=self.backend,
        )

    def _neck(self, neck: FPN, stages: Sequence[Tensor]) -> list[Callable[[], Tensor]]:
        """What makes each map of the neck."""
        convs = [cast(ConvModule, conv) for conv in neck.lateral_convs]
        maps = self._beside(*(partial(self._conv, conv, x) for conv, x in zip(convs, stages, strict=True)))
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = self._resize(maps[i], maps[i - 1].shape[2:], add=maps[i - 1], mode="nearest")
        convs = [cast(ConvModule, conv) for conv in neck.fpn_convs]
        return [partial(self._conv, conv, x) for conv, x in zip(convs, maps, strict=True)]

    def _fpn_head(self, head: FPNHead, maps: Sequence[Callable[[], Tensor]], size: Size) -> Tensor:
        """maps: what makes each level. size: of the first."""

        def level(i: int) -> Tensor:
            x = maps[i]()
            steps = list(cast(nn.Sequential, head.scale_heads[i]))
            if i == 0:
                return self._steps(steps, x)
            last = steps.pop()  # ×2, which mostly gives the size of the sum
            x = self._steps(steps, x)
            return x if (2 * x.shape[2], 2 * x.shape[3]) == size else self._steps([last], x)

        out, *others = self._beside(*(partial(level, i) for i in range(len(maps))))
        for x in others:
            out = self._resize(x, size, add=out)
        return pointwise(head.conv_seg, out)

    def _uper_head(self, head: UPerHead, stages: Sequence[Tensor]) -> Tensor:
        last = stages[-1]

        def pooled(module: nn.Module) -> Tensor:
            pool, conv = cast(nn.Sequential, module)
            return self._resize(self._conv(cast(ConvModule, conv), pool(last)), last.shape[2:])

        laterals = [cast(ConvModule, conv) for conv in head.lateral_convs]
        made = self._beside(
            *(partial(self._conv, conv, x) for conv, x in zip(laterals, stages[:-1], strict=True)),
            *(partial(pooled, module) for module in head.psp_modules),
        )
        maps, pools = made[: len(laterals)], made[len(laterals) :]
        maps.append(self._conv(head.bottleneck, torch.cat([last, *pools], dim=1)))
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = self._resize(maps[i], maps[i - 1].shape[2:], add=maps[i - 1])
        size = maps[0].shape[2:]

        def level(i: int) -> Tensor:
            x = self._conv(cast(ConvModule, head.fpn_convs[i]), maps[i]) if i < len(laterals) else maps[i]
            return x if i == 0 else self._resize(x, size)

        outs = self._beside(*(partial(level, i) for i in range(len(maps))))
        return pointwise(head.conv_seg, self._conv(head.fpn_bottleneck, torch.cat(outs, dim=1)))

    def _beside(self, *parts: Callable[[], Tensor]) -> list[Tensor]:
        """Results of parts that do not depend on each other."""
        return self._parts.run(parts)

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
        if module.norm and self.backend != "reference" and cudnn_adds_relu(x, conv.out_channels):
            padding = cast(tuple[int, int], conv.padding)
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, conv.stride, padding, (1, 1), 1)
        x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        return bias_act_(x, conv.bias, relu=module.norm, backend=self.backend)

    def _resize(self, x: Tensor, size: Sequence[int], *, add: Tensor | None = None, mode: str = "bilinear") -> Tensor:
        height, width = size
        return resize_add(x, (height, width), mode=mode, add=add, backend=self.backend)


def cudnn_adds_relu(x: Tensor, channels_out: int) -> bool:
    """Whether cuDNN may add bias and ReLU while it convolves x. It has no such form without a ReLU. torch does not ask
    it for a deterministic one, and has no other where cuDNN cannot count the elements."""
    cudnn = torch.backends.cudnn
    if not x.is_cuda or torch.version.hip is not None or not cudnn.is_available() or not cudnn.enabled:
        return False
    if cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
        return False
    return x.numel() // x.shape[1] * max(x.shape[1], channels_out) <= MAX_OFFSET


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
