"""Bundles for devices, and for other programs: Triton Inference Server, DeepStream and Isaac ROS, one module each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from twins_trt.errors import UsageError
from twins_trt.handoff.folder import Handoff, HandoffOptions, write_handoff

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

__all__ = ["TARGETS", "Handoff", "HandoffOptions", "resolve_handoff", "write_handoff"]

TARGETS = {
    "device": "twins_trt.handoff.device",
    "triton-server": "twins_trt.handoff.triton_server",
    "deepstream": "twins_trt.handoff.deepstream",
    "isaac-ros": "twins_trt.handoff.isaac_ros",
}


def resolve_handoff(bundle: Bundle, target: str, *, options: HandoffOptions | None = None) -> Handoff:
    """The files that `target` needs to run `bundle`; nothing is written.

        >>> from twins_trt.runtime import open_bundle                                    # doctest: +SKIP
        >>> write_handoff(resolve_handoff(open_bundle("x.bundle"), "triton-server"), "models")  # doctest: +SKIP

    target: one of `TARGETS`. Raises UsageError for an unknown target, BundleError if the target cannot run the bundle's
    graph or engine, with the command that builds a bundle that it can run.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", f"use one of: {', '.join(TARGETS)}")
    options = options or HandoffOptions()
    if target != "device":
        options.refuse("pack", tool=target)
    handoff: Handoff = importlib.import_module(TARGETS[target]).resolve(bundle, options)
    return handoff
