"""What a bundle says of its graph to whoever compiles it, read without onnx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twins_trt.builders.compile.for_gpu import INFO, refuse_cpu_graph
from twins_trt.builders.engine import read_header
from twins_trt.builders.engine.options import Profile
from twins_trt.builders.quantize.check import KeptPlaces
from twins_trt.errors import BundleError
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.manifest import AUDIT, GRAPH


@dataclass(frozen=True)
class GraphFacts:
    """attentions: how many a perfect engine fuses; None if the graph does not say. places: what of an INT8 graph should
    run in INT8; None if the bundle does not say. nbytes: of the file, nearly all of them weights; 0 if it did not
    travel."""

    attentions: int | None
    places: KeptPlaces | None
    profile: Profile | None
    nbytes: int


def graph_facts(bundle: Bundle) -> GraphFacts:
    """What is known of the bundle's graph. Raises BundleError for a graph that was written for CPUs, and for files that
    cannot be read; BuildError for a graph that is none."""
    if GRAPH not in bundle.files:  # an engine that fits may be there, and then nothing is compiled
        return GraphFacts(None, None, _profile(bundle), 0)
    path = bundle.graph
    refuse_cpu_graph(bundle, tool="twins-trt compile")
    info = _info(read_header(path).metadata.get(INFO))
    attentions = info.get("attentions")
    return GraphFacts(
        attentions if isinstance(attentions, int) else None, _places(bundle), _profile(bundle), path.stat().st_size
    )


def audits(bundle: Bundle) -> dict[str, Any]:
    """The content of `audit.json`, which may be absent. Raises BundleError if it is not what `build` writes."""
    content = bundle.read_json(AUDIT)
    if content is None:
        return {"engines": []}
    if not isinstance(content, dict) or not isinstance(content.get("engines"), list):
        raise BundleError(f"{bundle.path}: {AUDIT} has no list of engines", bundle.rebuild)
    return content


def _info(text: str | None) -> Mapping[str, Any]:
    try:
        info = json.loads(text or "{}")
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _places(bundle: Bundle) -> KeptPlaces | None:
    places = audits(bundle).get("int8")
    if places is None:
        return None
    try:
        return KeptPlaces(tuple(places["nodes"]), tuple(places["attentions"]))
    except (KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path}: {AUDIT} cannot be read: int8 is {places!r}", bundle.rebuild) from error


def _profile(bundle: Bundle) -> Profile | None:
    """The optimization profile: min, opt and max shape of each dynamic input."""
    return {
        spec.name: (spec.min, spec.opt, spec.max)
        for spec in bundle.interface.inputs
        if spec.min is not None and spec.opt is not None and spec.max is not None
    } or None
