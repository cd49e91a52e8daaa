"""Groups of flags that several verbs have; a group means the same wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence

from twins_trt.builders.export.options import ExportOptions
from twins_trt.builders.plan.levels import INT8_OPSET
from twins_trt.runtime.engines import KINDS
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import BATCH, FIXED_SIZE, NAMES, NUMBER, SIZE, SWITCH, TEST_SCALE, WHOLE

DATA_KINDS = "camvid:PATH, ade20k:PATH or folder:PATH"
WEIGHTS_GROUP = {"weights": "by default the published ones, if they were fetched before"}
MODES_GROUP = {"large images": "other modes than whole need --outputs logits in the bundle"}

TEST_SCALE_FLAG = Flag(
    "--test-scale",
    "test_scale",
    "fit images into this before a graph of dynamic size, as 2048x512",
    TEST_SCALE,
    "LONGxSHORT",
)
THREADS_FLAG = Flag("--threads", "threads", "CPU threads; default: every core", WHOLE, "N")
WORKERS_FLAG = Flag("--workers", "workers", "processes that read images ahead; default: {default}", WHOLE, "N")
ENGINE_FLAG = Flag(
    "--engine",
    "engine",
    "what runs the bundle; default: {default}, the fastest that can run here",
    metavar=f"{{auto,{','.join(KINDS)}}}",
)


def data_flags() -> tuple[Flag, ...]:
    """Which labelled images."""
    return (
        Flag("--data", "data", DATA_KINDS, metavar="KIND:PATH", required=True),
        Flag("--split", "split", "default: {default}"),
        Flag("--limit", "limit", "only the first N images", WHOLE, "N"),
    )


def mode_flags(group: str) -> tuple[Flag, ...]:
    """How an image is run: whole, or in parts."""
    return (
        Flag(
            "--mode",
            "mode",
            "as mmsegmentation evaluates, or in tiles at the image's own size, however large; default: whole",
            metavar="{whole,slide,ms_flip,slide_ms_flip,tile}",
            group=group,
        ),
        Flag(
            "--tile",
            "tile",
            "--mode tile with tiles of this size; default: the graph's",
            FIXED_SIZE,
            "HxW",
            group=group,
        ),
        Flag("--overlap", "overlap", "pixels that tiles share; default: a third of them", WHOLE, "N", group=group),
    )


def checkpoint_flags(group: str) -> tuple[Flag, ...]:
    """Where weights come from."""
    return (
        Flag("--checkpoint", "checkpoint", "an mmsegmentation checkpoint of this model", metavar="FILE", group=group),
        Flag(
            "--seeded",
            "seeded",
            "random weights, the same on every machine; marked so",
            SWITCH,
            sets=True,
            group=group,
        ),
    )


def weights_flags(group: str) -> tuple[Flag, ...]:
    """Which weights, and of which model."""
    return (
        *checkpoint_flags(group),
        Flag("--num-classes", "num_classes", "default: what the checkpoint has", WHOLE, "N", group=group),
        Flag(
            "--padding",
            "padding",
            "parity: mmsegmentation's own treatment of padded keys; masked: they never take part; default: {default}",
            metavar="{parity,masked}",
            group=group,
        ),
    )


def graph_flags(group: str, *, precisions: Sequence[str] = ("fp32", "fp16")) -> tuple[Flag, ...]:
    """What graph. precisions: those that the help names."""
    usual = "default: fp16 for GPUs, fp32 for the CPU" if len(precisions) > 1 else f"always {precisions[0]}"
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
            usual,
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
            "mask, logits, or mask,logits; default: {default}",
            NAMES,
            "{mask,logits}",
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


def range_flags(group: str) -> tuple[Flag, ...]:
    """How ranges are chosen."""
    return (
        Flag(
            "--observer",
            "observers",
            "which are stored, the one to use first; default: {default}",
            NAMES,
            "A,B",
            group=group,
        ),
        Flag("--percentile", "percentile", "default: {default}", NUMBER, "P", group=group),
        Flag("--bins", "bins", "of each histogram; default: {default}", WHOLE, "N", group=group),
        Flag("--minimum", "minimum", "refuse fewer different images; default: {default}", WHOLE, "N", group=group),
        Flag(
            "--fit",
            "fit",
            "into a graph of fixed size; default: {default}",
            metavar="{stretch,letterbox}",
            group=group,
        ),
    )
