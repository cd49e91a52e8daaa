"""What the compiler made of a graph: kernels, fused attentions, FP32 left-overs, copies and memory traffic.

    python -m twins_trt.builders.audit graph.onnx --target sm_89
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.builders.layers import Layer
from twins_trt.errors import UnfusedAttentionError


@dataclass(frozen=True)
class Audit:
    """The audit of one engine."""

    kernels: int
    by_type: dict[str, int]
    attentions: int
    expected_attentions: int | None
    unfused: tuple[str, ...]
    pointwise: int
    bytes_moved: int
    largest: tuple[tuple[str, str, int], ...]
    float32: tuple[str, ...]

    def table(self) -> str:
        rows = [
            ("kernels", f"{self.kernels} (" + ", ".join(f"{n} {t}" for t, n in self.by_type.items()) + ")"),
            ("fused attentions", f"{self.attentions} of {'?' if self.expected_attentions is None else self.expected_attentions}"),
            ("softmax unfused", ", ".join(self.unfused) or "none"),
            ("copies, point-wise", str(self.pointwise)),
            ("moved", f"{self.bytes_moved / 1e6:.1f} MB"),
            ("FP32 kernels", str(len(self.float32))),
        ]
        rows += [("largest tensor", f"{size / 1e6:.1f} MB {dtype} written by {name}") for name, dtype, size in self.largest]
        return "\n".join(f"{key:<20} {value}" for key, value in rows)


def _is_fused(layer: Layer) -> bool:
    return "_gemm_mha" in layer.name or "_gemm_mha" in layer.tactic


def audit_layers(layers: Sequence[Layer], *, expected_attentions: int | None) -> Audit:
    fused = [layer for layer in layers if _is_fused(layer)]
    unfused = [
        layer.name
        for layer in layers
        if not _is_fused(layer) and any("softmax" in node.lower() for node in layer.nodes)
    ]
    pointwise = [layer for layer in layers if layer.type == "kgen" and not _is_fused(layer)]
    tensors = [(layer.name, t.dtype, t.nbytes) for layer in layers for t in layer.outputs]
    return Audit(
        kernels=len(layers),
        by_type=dict(Counter(layer.type for layer in layers).most_common()),
        attentions=len(fused),
        expected_attentions=expected_attentions,
        unfused=tuple(unfused),
        pointwise=len(pointwise),
        bytes_moved=sum(t.nbytes for layer in layers for t in (*layer.inputs, *layer.outputs)),
        largest=tuple(sorted(tensors, key=lambda each: -each[2])[:5]),
        float32=tuple(l.name for l in layers if any(t.dtype == "float32" for t in (*l.inputs, *l.outputs))),
    )


def check_fused(audit: Audit) -> None:
    if audit.expected_attentions is not None and audit.attentions < audit.expected_attentions:
        raise UnfusedAttentionError(f"{audit.attentions} of {audit.expected_attentions} attentions fused", "--allow-unfused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--target", default="sm_86,sm_89,sm_120")
    parser.add_argument("--attentions", type=int)
    parser.add_argument("--layers", action="store_true")
    arguments = parser.parse_args()
    from twins_trt.builders.engine import EngineOptions, build_engine

    built = build_engine(arguments.graph, EngineOptions(targets=tuple(arguments.target.split(","))))
    if arguments.layers:
        for layer in built.layers:
            def show(tensors: Any) -> str:
                return " ".join(f"{'x'.join(map(str, t.shape))}:{t.dtype}" for t in tensors)
            print(f"{layer.type:<16} {layer.name}\n    {show(layer.inputs)} -> {show(layer.outputs)}\n    {', '.join(layer.nodes)}")
    print(audit_layers(built.layers, expected_attentions=arguments.attentions).table())
    print(f"{'plan':<20} {len(built.plan) / 1e6:.1f} MB in {built.seconds:.1f} s, {built.flavour} {built.version}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
