"""Two bundles, and profiles of them whose times are written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.profiling.results_of import measurement
from tests.profiling.results_of import profile as profile_of
from tests.tiny_graphs import FOR_CPUS, MakeBundle
from twins_trt.builders.gate.speed import Pair, pair_of
from twins_trt.profiling.results import Latency, Measurement, Profile, Settling
from twins_trt.runtime import Bundle, write_bundle


def renamed(bundle: Bundle, name: str, **changes: Any) -> Bundle:
    """A copy of the bundle with another name, and with other fields of its manifest."""
    files: dict[str, bytes | Path] = {each: bundle.file(each) for each in bundle.files}
    return write_bundle(bundle.path.parent / name, replace(bundle.manifest, files=(), **changes), files)


def int8_and_fp16(make_bundle: MakeBundle, *, gates: tuple[str, str] = ("passed", "passed"), **more: Any) -> Pair:
    """`int8.bundle` against `fp16.bundle`, both for CPUs. gates: the status of each."""
    names = ("int8", "fp16")
    pair = [
        renamed(make_bundle(rebuild=FOR_CPUS, **more), f"{precision}.bundle", precision=precision, gate=gate)
        for precision, gate in zip(names, gates, strict=True)
    ]
    return pair_of(*pair)


def timed(pair: Pair, ours: Sequence[float], theirs: Sequence[float], *, settled: bool = True) -> Profile:
    """A profile of the two. ours, theirs: of every round the milliseconds of its one call."""
    found = [_calls(name, times) for name, times in zip(pair.names, (ours, theirs), strict=True)]
    return replace(profile_of(*found), settled=Settling(3.2, 3, True) if settled else None, warnings=())


def _calls(label: str, times: Sequence[float]) -> Measurement:
    call = Latency.of([each / 1e3 for each in times])
    return replace(measurement(label, [each + 2 for each in times]), call=call)


def around(middle: float, *, rounds: int = 20, spread: float = 0.01) -> list[float]:
    """Times that lie evenly within `spread` around the middle, in an order that means nothing."""
    order = np.random.default_rng(7).permutation(rounds)
    return [float(middle * (1 + spread * (2 * each / (rounds - 1) - 1))) for each in order]


def heavy_graph(graph: bytes, *, width: int = 512) -> bytes:
    """The graph with some hundred MFLOP more in front of its classifier, which change nothing: weights of 0."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    first = next(node for node in model.graph.node if "pixels" in node.input)
    shapes = {"up": (3, width), "square": (width, width), "down": (width, 3)}
    chain = [
        helper.make_node("MatMul", ["pixels", "up"], ["wide"]),
        helper.make_node("MatMul", ["wide", "square"], ["wider"]),
        helper.make_node("MatMul", ["wider", "down"], ["nothing"]),
        helper.make_node("Add", ["pixels", "nothing"], ["same"]),
    ]
    at = list(model.graph.node).index(first)
    first.input[list(first.input).index("pixels")] = "same"
    for offset, node in enumerate(chain):
        model.graph.node.insert(at + offset, node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_graph(bundle: Bundle, graph: bytes, name: str) -> Bundle:
    """A copy of the bundle, without engines, with another graph and name."""
    return write_bundle(bundle.path.with_name(name), replace(bundle.manifest, files=()), {"graph.onnx": graph})
