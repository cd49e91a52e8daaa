"""The FPN and UPerNet decode heads and UPerNet's auxiliary head, with mmsegmentation's arithmetic and keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL_SCALES = (1, 2, 3, 6)
DROPOUT = 0.1  # of the features before the classifier, while training


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=False. x: float [B, C, H, W] -> [B, C, *size]."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ConvModule(nn.Module):
    """Convolution, BatchNorm and ReLU under mmcv's names `conv` and `bn`; without norm, the bare convolution."""

    def __init__(self, in_channels: int, channels: int, kernel: int, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(channels)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.bn(x)) if self.norm else x


class Classifier(nn.Module):
    """Base of the heads: dropout and the 1×1 convolution `conv_seg` to logits."""

    def __init__(self, channels: int, num_logits: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = nn.Conv2d(channels, num_logits, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class FPN(nn.Module):
    """mmseg's FPN neck: lateral 1×1, nearest top-down sums, 3×3, without norm or activation. Four maps to four maps."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1, norm=False) for c in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, norm=False) for _ in in_channels)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        maps = [conv(x) for conv, x in zip(self.lateral_convs, stages, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]


class Upsample(nn.Module):
    """Bilinear ×2."""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, (2 * x.shape[2], 2 * x.shape[3]))


class FPNHead(Classifier):
    """Semantic FPN (arXiv 1901.02446): each level to stride 4 by (3×3, ×2) steps, summed, classified."""

    def __init__(self, num_logits: int, *, in_channels: int, channels: int, levels: int = 4) -> None:
        super().__init__(channels, num_logits)
        self.scale_heads = nn.ModuleList()
        for level in range(levels):
            steps: list[nn.Module] = []
            for i in range(max(1, level)):
                steps.append(ConvModule(in_channels if i == 0 else channels, channels, 3))
                if level:
                    steps.append(Upsample())
            self.scale_heads.append(nn.Sequential(*steps))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        out = self.scale_heads[0](maps[0])
        for head, x in zip(self.scale_heads[1:], maps[1:], strict=True):
            out = out + resize(head(x), out.shape[2:])
        return self.classify(out)


class UPerHead(Classifier):
    """UPerNet (arXiv 1807.10221): pyramid pooling on the last stage, bilinear top-down sums, fused at stride 4."""

    def __init__(self, in_channels: Sequence[int], num_logits: int, *, channels: int = 512) -> None:
        super().__init__(channels, num_logits)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(in_channels[-1], channels, 1))
            for scale in POOL_SCALES
        )
        self.bottleneck = ConvModule(in_channels[-1] + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1) for c in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        last = stages[-1]
        pooled = [resize(module(last), last.shape[2:]) for module in self.psp_modules]  # each [B, 512, H, W]
        maps = [conv(x) for conv, x in zip(self.lateral_convs, stages[:-1], strict=True)]
        maps.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + resize(maps[i], maps[i - 1].shape[2:])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, maps[:-1], strict=True)] + [maps[-1]]
        outs = [outs[0]] + [resize(x, outs[0].shape[2:]) for x in outs[1:]]
        return self.classify(self.fpn_bottleneck(torch.cat(outs, dim=1)))


class FCNHead(Classifier):
    """mmseg's auxiliary head: one 3×3 ConvModule on stage 3 and a classifier. Only training uses it."""

    def __init__(self, in_channels: int, num_logits: int, *, channels: int = 256) -> None:
        super().__init__(channels, num_logits)
        self.convs = nn.ModuleList([ConvModule(in_channels, channels, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.convs[0](x))
