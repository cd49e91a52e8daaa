"""A whole Twins segmentation model: backbone, neck and heads under mmsegmentation's state-dict keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import BACKENDS
from twins_trt.models.backbone import Backbone
from twins_trt.models.heads import FPN, FCNHead, FPNHead, UPerHead
from twins_trt.models.telling import tell_classes, tell_model
from twins_trt.models.zoo import ModelSpec, check_num_classes, check_padding, get_spec

if TYPE_CHECKING:
    from twins_trt.models.checkpoint import CheckpointMeta


class Segmentor(nn.Module):
    """A model of the zoo, with the given number of classes and LSA's treatment of padding.

    `meta` is that of the checkpoint that was loaded; None without one.
    """

    def __init__(self, spec: ModelSpec, num_classes: int, *, padding: str = "parity", attention: str = "auto") -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.padding = padding
        self.meta: CheckpointMeta | None = None
        self.backbone = Backbone(spec, padding=padding, attention=attention)
        if spec.head == "fpn":
            neck, head = spec.fpn_channels
            self.neck = FPN(spec.embed_dims, neck)
            self.decode_head: FPNHead | UPerHead = FPNHead(num_classes, in_channels=neck, channels=head)
        else:
            self.decode_head = UPerHead(spec.embed_dims, num_classes)
            self.auxiliary_head = FCNHead(spec.embed_dims[2], num_classes)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The backbone's four maps, float [N, C_i, H_i, W_i], of a normalized RGB batch, float [N, 3, H, W].

        Raises `UsageError` for another shape, or an image smaller than 29 × 29.
        """
        return self.backbone(x)

    def forward_head(self, stages: Sequence[Tensor]) -> Tensor:
        """Logits at the size of the first of the backbone's four maps, as `forward` returns them."""
        return self.decode_head(self.neck(stages) if self.spec.head == "fpn" else stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float [N, num_classes, ceil(H/4), ceil(W/4)], of a normalized RGB batch, float [N, 3, H, W].

        Raises `UsageError` for another shape, or an image smaller than 29 × 29.
        """
        return self.forward_head(self.backbone(x))


def build_model(
    name: str | None = None,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    *,
    padding: str = "parity",
    attention: str = "auto",
) -> Segmentor:
    """A zoo model in eval mode, with random weights or those of an mmsegmentation checkpoint.

    name: one of `list_models()`, or the demo's; None takes the checkpoint's own. num_classes: 1 to 255 (masks are uint8
    and 255 is "ignore"); None takes the checkpoint's, or without one the zoo's.
    padding: `parity` computes LSA as mmsegmentation does, quirk included; `masked` always excludes padded keys.
    attention: the form of LSA and GSA, forward and backward: `triton`, `sdpa`, `reference`, or `auto`. That is the
    Triton kernels on a GPU that can run them, `sdpa` on one that cannot, and the reference on a CPU.
    Raises `UsageError` for an unknown name, padding, attention or class count, `CheckpointError` for a checkpoint that
    does not fit (nothing is loaded then).
    """
    name, path = tell_model(name, None if checkpoint is None else str(checkpoint))
    spec = get_spec(name)
    check_padding(padding)
    if attention not in BACKENDS:
        raise UsageError(f"attention must be one of {', '.join(BACKENDS)}, not {attention!r}", "use attention='auto'")
    if num_classes is None:
        num_classes = tell_classes(spec, path)
    check_num_classes(num_classes)
    model = Segmentor(spec, int(num_classes), padding=padding, attention=attention).eval()
    if path is not None:
        from twins_trt.models.checkpoint import load_checkpoint

        model.meta = load_checkpoint(model, path).meta
    return model
