"""A whole Twins segmentation model: backbone, neck and heads under mmsegmentation's state-dict keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import BACKENDS
from twins_trt.models.backbone import Backbone
from twins_trt.models.conventions import Conventions
from twins_trt.models.heads import FPN, FCNHead, FPNHead, UPerHead
from twins_trt.models.telling import named
from twins_trt.models.zoo import ModelSpec, check_num_classes, check_padding, check_threshold, get_spec

if TYPE_CHECKING:
    from twins_trt.models.checkpoint import CheckpointMeta


class Segmentor(nn.Module):
    """A Twins model for segmentation: the zoo's, or one of other widths.

    num_classes: how many values a mask has. padding: how LSA treats padded keys. threshold: of a head with one logit,
    whose classes are background and foreground; None for a head with softmax. Raises `UsageError` for a threshold
    outside 0 to 1, or with another number of classes than 2.
    `conventions` and `meta` are those of the checkpoint that was loaded; without one, the defaults and None.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_classes: int,
        *,
        padding: str = "parity",
        attention: str = "auto",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        if threshold is not None:
            check_threshold(threshold, num_classes)
        self.spec = spec
        self.num_classes = num_classes
        self.num_logits = num_classes if threshold is None else 1
        self.padding = padding
        self.threshold = threshold
        self.meta: CheckpointMeta | None = None
        self.conventions = Conventions(padding=padding, threshold=threshold)
        self.backbone = Backbone(spec, padding=padding, attention=attention)
        if spec.head == "fpn":
            neck, head = spec.fpn_channels
            self.neck = FPN(spec.embed_dims, neck)
            self.decode_head: FPNHead | UPerHead = FPNHead(self.num_logits, in_channels=neck, channels=head)
        else:
            self.decode_head = UPerHead(spec.embed_dims, self.num_logits, channels=spec.uper_channels)
            self.auxiliary_head = FCNHead(spec.embed_dims[2], self.num_logits, channels=spec.auxiliary_channels)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The backbone's four maps, float [N, C_i, H_i, W_i], of a normalized RGB batch, float [N, 3, H, W].

        Raises `UsageError` for another shape, or an image smaller than 29 × 29.
        """
        return self.backbone(x)

    def forward_head(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits at the size of the first of the backbone's four maps, as `forward` returns them."""
        return self.decode_head(self.neck(stages) if self.spec.head == "fpn" else stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float [N, num_logits, ceil(H/4), ceil(W/4)], of a normalized batch, float [N, 3, H, W].

        Raises `UsageError` for another shape, or an image smaller than 29 × 29.
        """
        return self.forward_head(self.backbone(x))

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logits with one channel per class, so that their argmax is the mask. logits: float [N, num_logits, h, w].

        They are `logits` itself, save for a head with one logit: then channel 0, the background, is the logit of the
        threshold, and channel 1 is the head's.
        """
        if self.threshold is None:
            return logits
        return torch.cat([torch.full_like(logits, threshold_logit(self.threshold)), logits], dim=1)


def threshold_logit(threshold: float) -> float:
    """The logit whose sigmoid is `threshold`."""
    return math.log(threshold / (1 - threshold))


def build_model(
    name: str | None = None,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    *,
    padding: str | None = None,
    attention: str = "auto",
    threshold: float | None = None,
    weights: str = "auto",
    conventions: Mapping[str, str] | None = None,
) -> Segmentor:
    """A Twins model in eval mode, with random weights or those of a checkpoint.

    name: one of `list_models()`, or the demo's; None takes the checkpoint's own. num_classes: 1 to 255 (masks are uint8
    and 255 is "ignore"); None takes the checkpoint's, or without one the zoo's.
    padding: `parity` computes LSA as mmsegmentation does, quirk included; `masked` always excludes padded keys;
    `unmasked` never does, as timm. None takes that of the project which wrote the checkpoint, without one `parity`.
    attention: the form of LSA and GSA, forward and backward: `triton`, `sdpa`, `reference`, or `auto`. That is the
    Triton kernels on a GPU that can run them, `sdpa` on one that cannot, and the reference on a CPU.
    threshold: of a head with one logit (`Segmentor`), for a model without a checkpoint; a checkpoint tells its own.
    weights, conventions: as `examine` takes them.
    Raises `UsageError` for an unknown name, padding, attention or class count, `CheckpointError` for a checkpoint that
    does not fit (nothing is loaded then).
    """
    if attention not in BACKENDS:
        raise UsageError(f"attention must be one of {', '.join(BACKENDS)}, not {attention!r}", "use attention='auto'")
    name, path = named(name, None if checkpoint is None else str(checkpoint))
    if padding is not None:
        check_padding(padding)
    if path is None:
        spec = get_spec(str(name))
        if num_classes is None:
            num_classes = spec.num_classes if threshold is None else 2
        check_num_classes(num_classes)
        return Segmentor(
            spec, int(num_classes), padding=padding or "parity", attention=attention, threshold=threshold
        ).eval()
    if threshold is not None:
        raise UsageError("a checkpoint tells its own threshold", "leave threshold out")
    from twins_trt.models.examine import examine

    found = examine(
        path, model=name, num_classes=num_classes, padding=padding, weights=weights, conventions=conventions or {}
    )
    return found.build(attention=attention)
