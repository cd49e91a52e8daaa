"""Graphs that are written for CPUs are refused by whatever runs them on a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from twins_trt.builders.engine import GraphHeader, read_header
from twins_trt.device import current_device
from twins_trt.errors import BundleError
from twins_trt.runtime.advice import gpu_build_command
from twins_trt.runtime.manifest import GRAPH

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

INFO = "twins_trt.info"
"""The key of `GraphInfo` in a graph's metadata."""

ANY_JETSON = "jetson-orin"
"""What the command names that builds the graph anew where no GPU is there to be named: it takes no compiler."""


def is_for_cpus(header: GraphHeader) -> bool:
    """Whether a graph was written in the forms for CPUs: exact, but of more kernels on a GPU, and attention unfused."""
    try:
        return bool(json.loads(header.metadata.get(INFO, "null"))["options"]["forms"] == "cpu")
    except (ValueError, KeyError, TypeError):
        return False  # of another exporter, which has no such forms


def refuse_cpu_graph(bundle: Bundle, *, tool: str) -> None:
    """Raises BundleError for a bundle whose graph was written for CPUs, with the command that builds one for GPUs.

    tool: what would run it on a GPU. A bundle that travelled without its graph has nothing to refuse. Raises BuildError
    for a graph that cannot be read.
    """
    if GRAPH not in bundle.files or not is_for_cpus(read_header(bundle.graph)):
        return
    device = current_device()
    command = gpu_build_command(bundle.rebuild, ANY_JETSON if device is None else device.target)
    raise BundleError(f"the graph of {bundle.path} is written for CPUs, and {tool} runs it on a GPU", command)
