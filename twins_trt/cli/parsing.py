"""Command lines: one parser class, the options that commands share, and texts such as sizes turned into values."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from twins_trt.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from twins_trt.builders.export import ExportOptions, Range
    from twins_trt.calib import CalibrationSettings
    from twins_trt.data import Dataset
    from twins_trt.evaluation.tiling import Tiles

Shape = tuple[int, ...]

DATA_KINDS = "camvid:PATH, ade20k:PATH or folder:PATH"

LARGEST_SIDE = 8192  # pixels; beyond it a typing error is likelier than a wish, and memory ends before the export does


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are this package's, so that they print and exit as all the others do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} -h")


def new_parser(prog: str, *, summary: str, example: str) -> Parser:
    """The parser of one command, with the options that every command has."""
    parser = Parser(
        prog=prog,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else there")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more on stderr; -vv: everything")
    return parser


def unknown_options(parser: Parser, extra: list[str]) -> UsageError:
    """The error for arguments that a command does not have, with the options that are spelled alike."""
    known = [text for action in parser._actions for text in action.option_strings]
    near = nearest(extra[0].partition("=")[0].lstrip("-"), [text.lstrip("-") for text in known])
    what = "option" if extra[0].startswith("-") else "argument"
    hint = f"did you mean --{near[0]}? " if near and what == "option" else ""
    return UsageError(f"{parser.prog} has no {what} {extra[0]!r}", f"{hint}{parser.prog} -h lists them")


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """At most three of `words` that are spelled like `word`, the nearest first."""
    return difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which labelled images: --data, --split, --limit."""
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help=DATA_KINDS)
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")


def open_data(arguments: argparse.Namespace) -> Dataset:
    """The images that the options of `add_data_options` describe. Raises `UsageError` and `DataError`."""
    from twins_trt.data import open_dataset

    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit is {arguments.limit}", "give at least 1")
    return open_dataset(arguments.data, split=arguments.split).first(arguments.limit)


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """What runs a bundle: --engine, --threads."""
    add_engine_option(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: every core")


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """--engine: what runs a bundle."""
    from twins_trt.runtime.engines import KINDS

    parser.add_argument(
        "--engine",
        default="auto",
        metavar=f"{{auto,{','.join(KINDS)}}}",
        help="what runs the bundle; default: the fastest that can run here",
    )


def add_checkpoint_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where weights come from: --checkpoint, --seeded. Returns the group, for more options about them."""
    group = parser.add_argument_group("weights", "by default the published ones, if they were fetched before")
    group.add_argument("--checkpoint", metavar="FILE", help="an mmsegmentation checkpoint of this model")
    group.add_argument("--seeded", action="store_true", help="random weights, the same on every machine; marked so")
    return group


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Which weights: --checkpoint, --seeded, --num-classes, --padding."""
    group = add_checkpoint_options(parser)
    group.add_argument("--num-classes", type=int, metavar="N", help="default: what the checkpoint has")
    group.add_argument(
        "--padding",
        default="parity",
        metavar="{parity,masked}",
        help="parity (default): mmsegmentation's own treatment of padded keys; masked: they never take part",
    )


def add_graph_options(parser: argparse.ArgumentParser, *, precisions: Sequence[str] = ("fp32", "fp16")) -> None:
    """What graph: --size, --batch, --precision, --opset, --input, --outputs, --upernet-levels.

    precisions: those that the help names.
    """
    group = parser.add_argument_group("graph")
    group.add_argument(
        "--size",
        metavar="HxW",
        help="pixels: 512x512, 512, or MIN:OPT:MAX for each side of a dynamic size; default: what it was trained at",
    )
    group.add_argument("--batch", default="1", metavar="N", help="images at once: 1 (default), 8, or MIN:OPT:MAX")
    group.add_argument(
        "--precision", metavar=f"{{{','.join(precisions)}}}", help="default: fp16 for GPUs, fp32 for the CPU"
    )
    group.add_argument(
        "--opset", type=int, metavar="{17..20}", help="ONNX operator set; default: 17, for INT8 and its calibration 20"
    )
    group.add_argument(
        "--input",
        default="uint8",
        metavar="{uint8,float32}",
        help="uint8 [N,H,W,3] RGB, normalised inside (default), or float32 [N,3,H,W]",
    )
    group.add_argument(
        "--outputs", default="mask", metavar="{mask,logits}", help="mask (default), logits, or mask,logits"
    )
    group.add_argument(
        "--upernet-levels", type=int, metavar="{0..3}", help="coarse levels that UPerNet convolves at their own size"
    )


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """How ranges are chosen: --observer and its options, --minimum, --fit."""
    group = parser.add_argument_group("ranges")
    group.add_argument(
        "--observer",
        default="mse,percentile,entropy,minmax",
        metavar="A,B",
        help="mse, percentile, entropy, minmax: which are stored, the one to use first; default: all in this order",
    )
    group.add_argument("--percentile", type=float, default=99.99, metavar="P", help="default: 99.99")
    group.add_argument("--bins", type=int, default=4096, metavar="N", help="of each histogram; default: 4096")
    group.add_argument("--minimum", type=int, default=8, metavar="N", help="refuse fewer different images; default: 8")
    group.add_argument("--fit", default="stretch", metavar="{stretch,letterbox}", help="into a graph of fixed size")


def calibration_settings(arguments: argparse.Namespace, *, test_scale: tuple[int, int] | None) -> CalibrationSettings:
    """The settings that the options of `add_calibration_options` describe; test_scale: what a graph of dynamic size
    follows. Raises `UsageError`."""
    from twins_trt.calib import CalibrationSettings
    from twins_trt.data import Preprocessing

    return CalibrationSettings(
        observers=split_list(arguments.observer),
        percentile=arguments.percentile,
        bins=arguments.bins,
        minimum=arguments.minimum,
        fit=arguments.fit,
        preprocessing=Preprocessing(test_scale=test_scale),
    )


def graph_options(
    arguments: argparse.Namespace, *, forms: str, precision: str, crop_size: tuple[int, int], opset: int = 17
) -> ExportOptions:
    """The export that the options of `add_graph_options` describe.

    forms, precision, crop_size, opset: used where the command line leaves them open. Raises `UsageError`.
    """
    from twins_trt.builders.export import ExportOptions

    height, width = crop_size if arguments.size is None else parse_size(arguments.size)
    return ExportOptions(
        height=height,
        width=width,
        batch=parse_batch(arguments.batch),
        precision=arguments.precision or precision,
        opset=arguments.opset or opset,
        input=arguments.input,
        outputs=split_list(arguments.outputs),
        forms=forms,
        upernet_levels=arguments.upernet_levels,
    )


def check_engine(name: str) -> None:
    """Raises `UsageError` for an engine that there is not, before anything is loaded for it."""
    from twins_trt.runtime.engines import check_kind

    check_kind(name)


def add_mode_options(parser: argparse.ArgumentParser) -> None:
    """--mode, --tile and --overlap: how an image is run."""
    group = parser.add_argument_group("large images", "other modes than whole need --outputs logits in the bundle")
    group.add_argument(
        "--mode",
        metavar="{whole,slide,ms_flip,slide_ms_flip,tile}",
        help="as mmsegmentation evaluates, or in tiles at the image's own size, however large; default: whole",
    )
    group.add_argument("--tile", metavar="HxW", help="--mode tile with tiles of this size; default: the graph's")
    group.add_argument("--overlap", type=int, metavar="N", help="pixels that tiles share; default: a third of them")


def parse_mode(arguments: argparse.Namespace) -> str | Tiles:
    """What the options of `add_mode_options` say. Raises `UsageError`."""
    from twins_trt.evaluation.tiling import Tiles
    from twins_trt.runtime.modes import resolve_mode

    if arguments.tile is None and arguments.overlap is None:
        mode: str = arguments.mode or "whole"
        resolve_mode(mode)
        return mode
    if arguments.mode not in (None, "tile"):
        raise UsageError(f"--tile and --overlap are of --mode tile, not {arguments.mode}", "leave --mode out")
    if arguments.tile is None:
        return Tiles(overlap=arguments.overlap)
    height, width = parse_size(arguments.tile)
    if not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(f"--tile {arguments.tile} is a range", "give one size, such as 512x512")
    return Tiles((height, width), arguments.overlap)


def parse_size(text: str) -> tuple[int | Range, int | Range]:
    """(height, width) of `512x384`, `512`, or with MIN:OPT:MAX in place of a number. Raises `UsageError`."""
    sides = [_dimension(part) for part in re.split("[x×]", text.strip().lower())]
    if len(sides) > 2 or None in sides:
        raise UsageError(
            f"{text!r} is not a size", "write HxW in pixels, such as 512x512, or 256:512:1024x256:512:2048"
        )
    height, width = (sides[0], sides[-1])
    assert height is not None and width is not None  # checked above
    for side in (height, width):
        if (side if isinstance(side, int) else side.max) > LARGEST_SIDE:
            raise UsageError(f"{text!r} has a side of more than {LARGEST_SIDE} pixels", "give a smaller --size HxW")
    return height, width


def parse_batch(text: str) -> int | Range:
    """`1`, `8` or `MIN:OPT:MAX`. Raises `UsageError`."""
    batch = _dimension(text.strip())
    if batch is None:
        raise UsageError(f"{text!r} is not a batch", "write how many images, such as 1, or 1:4:16")
    return batch


def parse_test_scale(text: str | None) -> tuple[int, int] | None:
    """(long, short) of `2048x512`; None for None and `none`. Raises `UsageError`."""
    if text is None or text.lower() == "none":
        return None
    parts = re.split("[x×]", text.strip().lower())
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is not a test scale", "write LONGxSHORT in pixels, such as 2048x512, or none")
    return max(map(int, parts)), min(map(int, parts))


def torch_device(name: str) -> str:
    """`cpu` or `cuda`, of the --device `name`. Raises `UsageError`, and `MissingDependencyError` without a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", "use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError("PyTorch sees no CUDA device", "use --device cpu; twins-trt doctor says more")
    return name


def parse_shapes(text: str) -> tuple[str, tuple[Shape, Shape, Shape]]:
    """The input and its three shapes of `image:1x512x512x3:4x512x512x3:8x512x512x3`. Raises `UsageError`."""
    name, *shapes = text.split(":")
    sizes = [shape.split("x") for shape in shapes]
    if not name or len(sizes) != 3 or not all(re.fullmatch(r"\d{1,9}", size) for shape in sizes for size in shape):
        raise UsageError(f"{text!r} is no profile", "write NAME:MIN:OPT:MAX, each shape as 1x512x512x3")
    low, usual, high = (tuple(map(int, shape)) for shape in sizes)
    return name, (low, usual, high)


def split_list(text: str) -> tuple[str, ...]:
    """The words of `a,b`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _dimension(text: str) -> int | Range | None:
    from twins_trt.builders.export import Range

    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
        return None
    values = [int(part) for part in parts]
    return values[0] if len(values) == 1 else Range(*values)
