"""A model folded for inference: BatchNorm in the convolutions, classes padded for wide loads, weights channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from twins_trt.models.backbone import PatchEmbed
from twins_trt.models.fused import FusedModel
from twins_trt.models.heads import ConvModule
from twins_trt.models.segmentor import Segmentor, threshold_logit

CLASS_MULTIPLE = 16
"""Classes of one position are then a multiple of 32 bytes apart in float16, which kernels read 16 bytes at a time."""


class FoldedModel(nn.Module):
    """`model` for inference alone. It is changed in place, and cannot be trained, saved or loaded into any more.

    x: `dtype` [N, 3, H, W], normalized -> logits `dtype` [N, num_classes, ceil(H/4), ceil(W/4)], a view in which
    classes lie side by side, under autocast too. With a head of one logit, class 0 is its threshold's
    (`Segmentor.class_logits`). device, dtype: where weights go and what they become. takes_rgb: x is RGB also for a
    model that was trained on BGR.
    kernels: backend of the kernels between the attentions, `auto`, `triton` or `reference`; None for torch's own
    operators. compiler: let torch.compile, with this backend, fuse these instead; the first call of every shape then
    takes a minute.
    """

    def __init__(
        self,
        model: Segmentor,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        kernels: str | None = "auto",
        compiler: str | None = None,
        takes_rgb: bool = False,
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        if hasattr(model, "auxiliary_head"):
            del model.auxiliary_head  # only training looks at it
        for module in model.modules():
            if isinstance(module, ConvModule) and module.norm:
                fold_norm(module)
        if takes_rgb and model.conventions.preprocessing.channels == "bgr":
            projection = cast(PatchEmbed, model.backbone.patch_embeds[0]).projection
            projection.weight.data = projection.weight.data.flip(1)
        if model.threshold is not None:
            model.decode_head.conv_seg = with_background(model.decode_head.conv_seg, model.threshold)
        model.decode_head.conv_seg = pad_classes(model.decode_head.conv_seg)
        self.num_classes = model.num_classes
        self.model = model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward: Callable[[Tensor], Tensor] = self.model
        if compiler is not None:
            self._forward = torch.compile(self.model, fullgraph=True, dynamic=False, backend=compiler)
        elif kernels is not None:
            self._forward = FusedModel(self.model, backend=kernels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # kernels take tensors of one dtype
            logits = self._forward(x).contiguous(memory_format=torch.channels_last)
        return logits[:, : self.num_classes]


def fold_norm(module: ConvModule) -> None:
    """Folds BatchNorm's running statistics into the convolution before it, in place."""
    module.conv = torch.nn.utils.fuse_conv_bn_eval(module.conv, module.bn)
    module.bn = nn.Identity()  # type: ignore[assignment]


def with_background(classifier: nn.Conv2d, threshold: float) -> nn.Conv2d:
    """The 1×1 classifier of one logit, with a background before it whose logit is the threshold's everywhere."""
    both = nn.Conv2d(classifier.in_channels, 2, 1)
    assert classifier.bias is not None and both.bias is not None  # every classifier here has one
    with torch.no_grad():
        both.weight.zero_()[1:] = classifier.weight
        both.bias[0], both.bias[1:] = threshold_logit(threshold), classifier.bias
    return both.requires_grad_(False)


def pad_classes(classifier: nn.Conv2d) -> nn.Conv2d:
    """The 1×1 classifier, with zero classes added up to a multiple of `CLASS_MULTIPLE`."""
    classes, channels = classifier.weight.shape[:2]
    padded = nn.Conv2d(channels, -(-classes // CLASS_MULTIPLE) * CLASS_MULTIPLE, 1)
    assert classifier.bias is not None and padded.bias is not None  # every classifier here has one
    with torch.no_grad():
        for new, old in ((padded.weight, classifier.weight), (padded.bias, classifier.bias)):
            new.zero_()[:classes] = old
    return padded.requires_grad_(False)
