"""`twins-trt convert`: weights between the official repository's names and mmsegmentation's."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console

EXAMPLE = "twins-trt convert alt_gvt_small.pth twins_svt-s_mmseg.pth"


def configure(parser: argparse.ArgumentParser) -> None:
    """SRC, DST, --family, --direction, --overwrite."""
    parser.add_argument("src", metavar="SRC", help="a checkpoint, of classification or of segmentation")
    parser.add_argument("dst", metavar="DST", help="the file to write")
    parser.add_argument("--family", metavar="{pcpvt,svt}", help="default: told by the weights")
    parser.add_argument("--direction", metavar="{to_mmseg,to_official}", help="default: told by the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is there")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Convert one file."""
    from twins_trt.models.convert import convert_file

    converted = convert_file(
        arguments.src,
        arguments.dst,
        family=arguments.family,
        direction=arguments.direction,
        overwrite=arguments.overwrite,
    )
    what = f"{converted.family}-{converted.variant}" if converted.variant else f"{converted.family} (of no zoo size)"
    lines = [f"{arguments.dst}: {what}, {len(converted.state_dict)} tensors, {converted.direction}"]
    lines += [f"  dropped {key}: {reason}" for key, reason in converted.dropped.items()]
    value = {
        "src": arguments.src,
        "dst": arguments.dst,
        "family": converted.family,
        "variant": converted.variant,
        "direction": converted.direction,
        "tensors": len(converted.state_dict),
        "dropped": converted.dropped,
    }
    console.result(value, "\n".join(lines))
    return 0
