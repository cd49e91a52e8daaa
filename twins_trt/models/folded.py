"""A model folded for inference: BatchNorm in the convolutions, classes padded for wide loads, weights channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twins_trt.models.fused import FusedModel
from twins_trt.models.heads import ConvModule
from twins_trt.models.segmentor import Segmentor

CLASS_MULTIPLE = 16
"""Classes of one position are then a multiple of 32 bytes apart in float16, which kernels read 16 bytes at a time."""


class FoldedModel(nn.Module):
    """`model` for inference alone. It is changed in place, and cannot be trained, saved or loaded into any more.

    x: `dtype` [N, 3, H, W], normalized RGB -> logits `dtype` [N, num_classes, ceil(H/4), ceil(W/4)], a view in which
    classes lie side by side, under autocast too. device, dtype: where weights go and what they become.
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
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        if hasattr(model, "auxiliary_head"):
            del model.auxiliary_head  # only training looks at it
        for module in model.modules():
            if isinstance(module, ConvModule) and module.norm:
                fold_norm(module)
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


def pad_classes(classifier: nn.Conv2d) -> nn.Conv2d:
    """The 1×1 classifier, with zero classes added up to a multiple of `CLASS_MULTIPLE`."""
    classes, channels = classifier.weight.shape[:2]
    padded = nn.Conv2d(channels, -(-classes // CLASS_MULTIPLE) * CLASS_MULTIPLE, 1)
    assert classifier.bias is not None and padded.bias is not None  # every classifier here has one
    with torch.no_grad():
        for new, old in ((padded.weight, classifier.weight), (padded.bias, classifier.bias)):
            new.zero_()[:classes] = old
    return padded.requires_grad_(False)
