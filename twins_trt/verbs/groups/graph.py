"""What a graph is to be: sizes, precision, opset, input and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twins_trt.builders.export.options import DynamicDim, ExportOptions
from twins_trt.builders.plan.levels import INT8_OPSET
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import BATCH, NAMES, SIZE, WHOLE


def graph_flags(group: str, *, precisions: Sequence[str] = ("fp32", "fp16")) -> tuple[Flag, ...]:
    """Every option of a graph. precisions: those that the help names."""
    precision_help = "default: fp16 for GPUs, fp32 for the CPU" if len(precisions) > 1 else f"always {precisions[0]}"
    return (
        Flag(
            "--size",
            "size",
            "pixels: 512x512, 512, or MIN:OPT:MAX for each side of a dynamic size; default: what it was trained at",
            SIZE,
            "HxW",
            group=group,
        ),
        Flag("--batch", "batch", "images at once: 8, or MIN:OPT:MAX; default: {default}", BATCH, "N", group=group),
        Flag(
            "--precision",
            "precision",
            precision_help,
            metavar=f"{{{','.join(precisions)}}}",
            group=group,
        ),
        Flag(
            "--opset",
            "opset",
            f"ONNX operator set; default: {ExportOptions.opset}, for INT8 and its calibration {INT8_OPSET}",
            WHOLE,
            "{17..20}",
            group=group,
        ),
        Flag(
            "--input",
            "input",
            "uint8 [N,H,W,3] RGB, normalized inside, or float32 [N,3,H,W]; default: {default}",
            metavar="{uint8,float32}",
            group=group,
        ),
        Flag(
            "--outputs",
            "outputs",
            "one or more, by commas; probability needs a head with one logit; default: {default}",
            NAMES,
            "{mask,logits,probability}",
            group=group,
        ),
        Flag(
            "--upernet-levels",
            "upernet_levels",
            "coarse levels that UPerNet convolves at their own size",
            WHOLE,
            "{0..3}",
            group=group,
        ),
    )


class GraphRequest(Protocol):
    """A request with the fields of `graph_flags`."""

    @property
    def size(self) -> tuple[int | DynamicDim, int | DynamicDim] | None: ...
    @property
    def batch(self) -> int | DynamicDim: ...
    @property
    def precision(self) -> str | None: ...
    @property
    def opset(self) -> int | None: ...
    @property
    def input(self) -> str: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def upernet_levels(self) -> int | None: ...


def export_options(
    request: GraphRequest, *, target: str, precision: str, crop_size: tuple[int, int], opset: int = ExportOptions.opset
) -> ExportOptions:
    """The options of the export that a request needs.

    target: `gpu` or `cpu`. precision, crop_size, opset: defaults for the fields that the request leaves at None.
    Raises `UsageError`.
    """
    height, width = request.size or crop_size
    return ExportOptions(
        height=height,
        width=width,
        batch=request.batch,
        precision=request.precision or precision,
        opset=request.opset or opset,
        input=request.input,
        outputs=request.outputs,
        target=target,
        upernet_levels=request.upernet_levels,
    )
