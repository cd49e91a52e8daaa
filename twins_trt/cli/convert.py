"""`twins-trt convert`: weights between the official repository's names and mmsegmentation's."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console
from twins_trt.verbs.convert import FLAGS

EXAMPLE = "twins-trt convert alt_gvt_small.pth twins_svt-s_mmseg.pth"


def configure(parser: argparse.ArgumentParser) -> None:
    """SRC, DST, --family, --direction, --overwrite."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Convert one file."""
    from twins_trt.models.convert import convert_file

    request = FLAGS.read(arguments)
    converted = convert_file(
        request.src, request.dst, family=request.family, direction=request.direction, overwrite=request.overwrite
    )
    what = f"{converted.family}-{converted.variant}" if converted.variant else f"{converted.family} (of no zoo size)"
    lines = [f"{request.dst}: {what}, {len(converted.state_dict)} tensors, {converted.direction}"]
    lines += [f"  dropped {key}: {reason}" for key, reason in converted.dropped.items()]
    value = {
        "src": request.src,
        "dst": request.dst,
        "family": converted.family,
        "variant": converted.variant,
        "direction": converted.direction,
        "tensors": len(converted.state_dict),
        "dropped": converted.dropped,
    }
    console.result(value, "\n".join(lines))
    return 0
