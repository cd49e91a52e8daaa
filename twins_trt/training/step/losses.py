"""The training loss: cross entropy of both heads at the size of the labels, as in mmsegmentation.

A head with one logit has a sigmoid, and the binary cross entropy of mmseg's `CrossEntropyLoss(use_sigmoid=True)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twins_trt.data.images import IGNORE_INDEX
from twins_trt.models.heads import resize
from twins_trt.models.segmentor import Segmentor


class SegmentationLoss(nn.Module):
    """A model with its losses, as one module that DistributedDataParallel can wrap."""

    def __init__(self, model: Segmentor, *, aux_weight: float) -> None:
        super().__init__()
        self.model = model
        self.aux_weight = aux_weight

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """images: float [N, 3, H, W], normalized; labels: int64 [N, H, W], 255 = ignore.

        Returns scalars: `loss`, the weighted sum of `decode` and, with an auxiliary head, `auxiliary`; `labelled`, the
        number of pixels with a label; `right`, the number of those whose class is predicted.
        """
        stages = self.model.forward_features(images)
        logits = _resized(self.model.forward_head(stages), labels)
        losses = {"decode": pixel_loss(logits, labels)}
        losses |= count_right(self.model.class_logits(logits), labels)
        losses["loss"] = losses["decode"]
        if self.model.spec.head == "upernet":
            auxiliary = pixel_loss(_resized(self.model.auxiliary_head(stages[2]), labels), labels)
            losses["auxiliary"] = auxiliary
            losses["loss"] = losses["loss"] + self.aux_weight * auxiliary
        return losses


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a head: `binary_cross_entropy` where it has one logit, else `cross_entropy`."""
    return binary_cross_entropy(logits, labels) if logits.shape[1] == 1 else cross_entropy(logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pixels; a pixel without a label counts as 0 (mmseg's `avg_non_ignore=False`).

    logits: float [N, C, H, W], labels: int64 [N, H, W], 255 = ignore.
    """
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX).mean()


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pixels; a pixel without a label counts as 0, as above.

    logits: float [N, 1, H, W], labels: int64 [N, H, W], 0 = background, 1 = foreground, 255 = ignore. Equals
    `binary_cross_entropy` of mmseg's models/losses/cross_entropy_loss.py with one logit.
    """
    labelled = labels != IGNORE_INDEX
    wanted = (labels.where(labelled, 0)).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits[:, 0], wanted, reduction="none")
    return (losses * labelled).mean()


@torch.no_grad()
def count_right(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`labelled`: pixels with a label. `right`: those whose class is predicted.

    logits: one channel per class (`Segmentor.class_logits`), so that a sigmoid counts with the model's threshold; mmseg
    takes the argmax of its one channel, which counts the background. Counts, because they add up over processes and
    means do not.
    """
    labelled = labels != IGNORE_INDEX
    return {"labelled": labelled.sum(), "right": ((logits.argmax(dim=1) == labels) & labelled).sum()}


def _resized(logits: Tensor, labels: Tensor) -> Tensor:
    # At least float32 from here on: bfloat16 would interpolate with 8 bits.
    return resize(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.shape[1:])
