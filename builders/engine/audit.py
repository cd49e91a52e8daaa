"""Audits the engine of a graph: its kernels, fused attentions, FP32 kernels, copies and memory traffic.

The audit reads the layer list of a finished build (`builders.engine.layers`) and needs no GPU.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from twins_trt.builders.engine.layers import Layer
from twins_trt.errors import UnfusedAttentionError
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.builders.engine.build import BuiltEngine

log = logging.getLogger("twins_trt")

# A fused attention is one kernel. Its name is in the layer's name or in its tactic.
_FUSED = re.compile(r"_gemm_mha_v\d|fmha_v\d")
# Softmax outside of a fused attention, in primitive operations: maximum, subtract, exponential, sum.
_SOFTMAX = re.compile(r"MaxrSubExp|Softmax", re.IGNORECASE)
# A subgraph that the compiler's back end (Myelin) has compiled, in one layer. TensorRT 8.6 does not list the kernels in
# it (NVIDIA/TensorRT#4157, #4236); later versions do.
_OPAQUE = re.compile(r"\{ForeignNode\[")
# Entries of a layer list that are not kernels: shape arithmetic of dynamic sizes, and stream synchronization.
_NO_KERNELS = frozenset({"shape_call", "shapehosttodevice", "noop", "no-op", "signal", "wait"})
_SIZES = 16  # values; shape arithmetic has no larger tensors
# Kernels without a matrix product, convolution, pooling or resize. "kgen" is the generator of the compiler's back end.
_GENERATED = frozenset(
    {"kgen", "reformat", "pointwise", "pointwisev2", "elementwise", "shuffle", "slice", "copy", "cast", "concatenation"}
)
# A generated kernel's name lists its operations in words of up to four letters. These only move bytes.
_LAYOUT = frozenset({"Move", "Tran", "Resh", "Slic", "Conc", "Repl", "Cast", "Gath", "Scat", "Iota", "Padd", "Pad"})
_LARGEST = 5


@dataclass(frozen=True)
class LargeTensor:
    """A tensor in memory: the kernel that writes it, its shape, data type and bytes."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Audit:
    """The audit of one engine's layer list.

    `kernels`: GPU launches of one inference. `by_type`: the same by the compiler's kinds, most frequent first.
    `attentions`: kernels that are a whole fused attention. `expected_attentions`: how many attentions the graph has,
        None if that is not known.
    `unfused_attentions`: blocks whose softmax is a kernel outside of a fused attention. `float32_attentions`: those of
        them whose softmax reads or writes float32.
    `copies`: generated kernels that only move bytes (transposes, slices, casts). `pointwise`: the other generated
        kernels, such as normalizations.
    `bytes_moved`: bytes of all tensors that kernels read and write, without weights and other constants. A tensor that
        is written once and read by two kernels counts three times, as in memory traffic without caches. Dynamic extents
        count as 1; then `dynamic` is true and the sum means nothing.
    `float32`: kernels that read or write float32 activations.
    `largest`: the largest tensors written.
    `opaque`: layers that hold kernels which the compiler does not list. Each counts as one kernel, and whether an
        attention in them is fused is not known.
    """

    kernels: int
    by_type: dict[str, int]
    attentions: int
    expected_attentions: int | None
    unfused_attentions: tuple[str, ...]
    float32_attentions: tuple[str, ...]
    copies: int
    pointwise: int
    bytes_moved: int
    dynamic: bool
    float32: tuple[str, ...]
    largest: tuple[LargeTensor, ...]
    opaque: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Audit:
        """The audit that `to_json` wrote."""
        lists = ("unfused_attentions", "float32_attentions", "float32")
        largest = tuple(LargeTensor(**{**each, "shape": tuple(each["shape"])}) for each in data["largest"])
        opaque = tuple(data.get("opaque", ()))  # audits of earlier releases do not say
        return cls(**{**data, **{key: tuple(data[key]) for key in lists}, "largest": largest, "opaque": opaque})

    def table(self) -> str:
        """The audit as a short table for a terminal."""
        expected = "?" if self.expected_attentions is None else str(self.expected_attentions)
        rows = [
            ("kernels", f"{self.kernels}: " + ", ".join(f"{count} {kind}" for kind, count in self.by_type.items())),
            ("attentions fused", f"{self.attentions} of {expected}"),
        ]
        if self.opaque:
            layers = "1 layer holds" if len(self.opaque) == 1 else f"{len(self.opaque)} layers hold"
            rows.append(("  not known", f"what {layers}: this compiler does not list it"))
        if self.unfused_attentions:
            rows.append(("  unfused", ", ".join(self.unfused_attentions)))
        if self.float32_attentions:
            rows.append(("  in float32", ", ".join(self.float32_attentions)))
        moved = f"{self.bytes_moved / 1e6:.1f} MB" + (" (dynamic extents counted as 1)" if self.dynamic else "")
        rows += [
            ("copies", str(self.copies)),
            ("point-wise", str(self.pointwise)),
            ("with float32", str(len(self.float32))),
            ("moved", moved),
        ]
        for index, tensor in enumerate(self.largest):
            shape = "x".join(map(str, tensor.shape))
            words = f"{tensor.nbytes / 1e6:6.2f} MB  {shape} {tensor.dtype}, {tensor.kernel}"
            rows.append(("" if index else "largest tensors", words))
        return "\n".join(f"{name:<17} {value}" for name, value in rows)


def is_fused_attention(layer: Layer) -> bool:
    """Whether the layer is a whole attention in one kernel."""
    return bool(_FUSED.search(layer.name) or _FUSED.search(layer.tactic))


def is_opaque(layer: Layer) -> bool:
    """Whether the layer holds kernels that the compiler does not list."""
    return layer.type == "myelin" or (layer.type != "reformat" and _OPAQUE.match(layer.name) is not None)


def is_kernel(layer: Layer) -> bool:
    """Whether the layer is a kernel on the GPU, and not just a computation of a dynamic graph's sizes."""
    if layer.type in _NO_KERNELS:
        return False
    tensors = (*layer.inputs, *layer.outputs)
    sizes = all(tensor.dtype in ("int64", "int32") and prod(tensor.shape) in range(_SIZES + 1) for tensor in tensors)
    return bool(layer.tactic or layer.nodes or not tensors or not sizes)


def is_copy(layer: Layer) -> bool:
    """Whether the layer is a generated kernel that computes nothing."""
    if layer.type not in _GENERATED or is_fused_attention(layer):
        return False
    match = re.match(r"__myl_([A-Za-z]+)", layer.name)
    if match is None:
        return layer.type not in ("kgen", "pointwise", "pointwisev2", "elementwise")
    return all(word in _LAYOUT for word in re.findall(r"[A-Z][a-z]*", match[1]))


def describe_layer(layer: Layer) -> str:
    """The layer's first graph node and how many more it computes; the compiler's own name if it has no nodes."""
    if not layer.nodes:
        return layer.name
    more = len(layer.nodes) - 1
    return f"{layer.nodes[0]} +{more}" if more else layer.nodes[0]


def _attention_blocks(layer: Layer) -> list[str]:
    """The blocks whose softmax the layer computes: `stages.0.blocks.1.attn` for `stages.0.blocks.1.attn/softmax`."""
    if layer.type == "reformat" or is_opaque(layer):
        return []  # they have the names of what they stand beside, or hold
    softmaxes = [node for node in layer.nodes if "softmax" in node.rsplit("/", 1)[-1].lower()]
    if softmaxes:
        return [node.rsplit("/", 1)[0] if "/" in node else node for node in softmaxes]
    # Without metadata only the name tells. Argmax heads and losses have no softmax, so any softmax is an attention's.
    return [layer.name] if _SOFTMAX.search(layer.name) or layer.type == "softmax" else []


def audit_layers(layers: Sequence[Layer], *, expected_attentions: int | None = None) -> Audit:
    """The audit of a finished engine's layers.

    `layers`: as `build_engine` returns them. `expected_attentions`: the graph's own count (`GraphInfo`), None if it is
    not known.
    """
    launched = [layer for layer in layers if is_kernel(layer)]
    unfused: dict[str, bool] = {}
    for layer in launched:
        if is_fused_attention(layer):
            continue
        for block in _attention_blocks(layer):
            unfused[block] = unfused.get(block, False) or _touches_float32(layer)
    generated = [layer for layer in launched if layer.type in _GENERATED and not is_fused_attention(layer)]
    copies = sum(is_copy(layer) for layer in generated)
    written = {
        (tensor.name, tensor.shape): LargeTensor(describe_layer(layer), tensor.shape, tensor.dtype, tensor.nbytes)
        for layer in launched
        for tensor in layer.outputs
    }
    tensors = [tensor for layer in launched for tensor in (*layer.inputs, *layer.outputs)]
    return Audit(
        kernels=len(launched),
        by_type=dict(Counter(layer.type for layer in launched).most_common()),
        attentions=sum(is_fused_attention(layer) for layer in launched),
        expected_attentions=expected_attentions,
        unfused_attentions=tuple(unfused),
        float32_attentions=tuple(block for block, float32 in unfused.items() if float32),
        copies=copies,
        pointwise=len(generated) - copies,
        bytes_moved=sum(tensor.nbytes for tensor in tensors),
        dynamic=any(extent < 0 for tensor in tensors for extent in tensor.shape),
        float32=tuple(describe_layer(layer) for layer in launched if _touches_float32(layer)),
        largest=tuple(sorted(written.values(), key=lambda tensor: -tensor.nbytes)[:_LARGEST]),
        opaque=tuple(layer.name for layer in launched if is_opaque(layer) and not is_fused_attention(layer)),
    )


def _touches_float32(layer: Layer) -> bool:
    return any(tensor.dtype == "float32" for tensor in (*layer.inputs, *layer.outputs))


def check_fused(audit: Audit) -> None:
    """Raises UnfusedAttentionError when an attention of an FP16 or INT8 engine runs outside of a fused kernel.

    An attention that may be in an opaque layer refuses nothing.
    """
    lacking = 0 if audit.opaque else (audit.expected_attentions or 0) - audit.attentions
    if lacking <= 0 and not audit.unfused_attentions:
        return
    total = audit.expected_attentions or audit.attentions + len(audit.unfused_attentions)
    names = ", ".join(audit.unfused_attentions) or "which ones, the compiler does not say"
    raise UnfusedAttentionError(
        f"{max(lacking, len(audit.unfused_attentions))} of {total} attentions are not fused: {names}",
        f"look at the audit, or take the slower engine as it is: {spelled('allow_unfused', True)}",
    )


def audit_engine(engine: BuiltEngine, *, precision: str, attentions: int | None, allow_unfused: bool) -> Audit:
    """The audit of an engine that is about to ship.

    precision: of its graph. attentions: how many the graph has; None if that is not known. allow_unfused: warn of an
    unfused attention instead of raising UnfusedAttentionError.
    """
    audit = audit_layers(engine.layers, expected_attentions=attentions)
    if precision == "fp32":
        return audit  # no compiler fuses float32 attention, so none can be demanded
    try:
        check_fused(audit)
    except UnfusedAttentionError as error:
        if not allow_unfused:
            log.warning("audit of the engine that is refused:\n%s", audit.table())  # no bundle will hold it
            raise
        log.warning("%s (allowed)", error.cause)
    return audit


def audit_entry(file: str, engine: BuiltEngine, audit: Audit, not_int8: Sequence[str]) -> dict[str, Any]:
    """What `audit.json` says of one engine.

    file: in the bundle. not_int8: places that should run in INT8 and do not.
    """
    return {
        "file": file,
        "flavour": engine.flavour,
        "version": engine.version,
        "targets": list(engine.targets),
        "audit": audit.to_json(),
        "not_int8": list(not_int8),
    }
