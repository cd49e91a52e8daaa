"""From a compiler's messages to errors with a cause and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twins_trt.builders.engine.header import GraphHeader
from twins_trt.builders.engine.versions import Compiler
from twins_trt.errors import BuildError
from twins_trt.spelling import spelled

_ATTENTION = "export at opset 17 to 20, where attention is MatMul, Softmax, MatMul and is fused automatically"


@dataclass(frozen=True)
class Symptom:
    """A message of a compiler, its cause in our words, and its fix, whose spelling depends on the caller."""

    pattern: str
    cause: str
    fix: Callable[[], str]


_SYMPTOMS = (
    Symptom(
        r"Cannot compile operation '(?P<what>[^']*)' for Turing.*FP32 GEMM is not supported",
        "sm_75 has no FP32 matrix product, and the graph asks for one at {what}",
        lambda: f"export with {spelled('precision', 'fp16')}, or leave sm_75 out of {spelled('targets')}",
    ),
    Symptom(
        r"Attention operation was not supported by a dedicated kernel",
        "the graph's Attention operator has no kernel for its shape and type",
        lambda: _ATTENTION,
    ),
    Symptom(
        r"must have (?:the )?(?:same|identical)(?: input)? types|But they are of types",
        "the graph mixes data types where strong typing allows one: {message}",
        lambda: "run the precision pass over it: every cast has to be in the graph",
    ),
    Symptom(
        r"[Oo]ut ?[Oo]f ?[Mm]emory|insufficient memory|Requested amount of GPU memory|failed to allocate|ALLOC_FAILED",
        "not enough memory: {message}",
        lambda: (
            f"lower {spelled('workspace')}, close other programs, or on a Jetson add swap and lower "
            f"{spelled('optimization_level')}"
        ),
    ),
    Symptom(
        r"[Cc]ould not find any implementation for node (?P<what>\S+)",
        "no kernel fits {what} within the limits given",
        # Where GPU and host share memory, a compilation without a limit gets one that follows from what is free.
        lambda: f"raise {spelled('workspace')}, or free memory",
    ),
    Symptom(
        r"CUDA driver version is insufficient|no CUDA-capable device|cudaError",
        "the CUDA driver does not serve this build: {message}",
        lambda: (
            f"check nvidia-smi (tegrastats on a Jetson), or choose {spelled('flavour', 'tensorrt_rtx')} and name "
            f"{spelled('targets')}, which needs no GPU"
        ),
    ),
)


def _essence(message: str, limit: int = 400) -> str:
    """A compiler message without its source file and function, cut to a readable length."""
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"^I?\w+::\w+: Error Code \d+: ", "", text)
    text = re.sub(r"\s*\(?In \w+ at \S+:\d+\)?\)*$", "", text)
    return text if len(text) <= limit else text[:limit] + " ..."


def _explain(compiler: Compiler, graph: Path, messages: Sequence[str]) -> BuildError | None:
    for message in messages:
        for symptom in _SYMPTOMS:
            match = re.search(symptom.pattern, message, re.DOTALL)
            if match:
                what = match.groupdict().get("what", "")
                cause = symptom.cause.format(what=what, message=_essence(message))
                return BuildError(f"{compiler.name} cannot build {graph.name}: {cause}", symptom.fix())
    return None


def refuse_beforehand(compiler: Compiler, graph: Path, header: GraphHeader) -> None:
    """Raises BuildError for a graph that this version is known to refuse, instead of after minutes of compiling."""
    if "Attention" in header.operators and not compiler.attention:
        raise BuildError(f"{compiler.name} does not know the Attention operator in {graph.name}", _ATTENTION)


def parser_failure(
    compiler: Compiler, graph: Path, header: GraphHeader, errors: Sequence[object], messages: Sequence[str]
) -> BuildError:
    """The error for a graph that the ONNX parser refused. `errors`: its ParserErrors. `messages`: the logged errors."""
    causes = []
    for error in errors:
        words = _essence(str(error.desc()))  # type: ignore[attr-defined]
        # Node names came with 10.0. Before that a node has a number, and -1 means no node.
        name = _call(error, "node_name") or (f"number {error.node()}" if error.node() >= 0 else "")  # type: ignore[attr-defined]
        operator = _call(error, "node_operator")
        where = f"node {name}{f' ({operator})' if operator else ''}: " if name else ""
        causes.append(where + words)
    cause = "; ".join(causes[:3]) or "; ".join(_essence(message) for message in messages[-2:]) or "no reason given"
    if compiler.opset is not None and header.opset > compiler.opset:
        return BuildError(
            f"{compiler.name} reads ONNX up to opset {compiler.opset}, "
            f"and {graph.name} has opset {header.opset}: {cause}",
            f"export again with {spelled('opset', min(compiler.opset, 20))}",
        )
    explained = _explain(compiler, graph, messages)
    return explained or BuildError(
        f"{compiler.name} cannot read {graph.name}: {cause}", "export the graph again at opset 17"
    )


def _call(error: object, method: str) -> str:
    value = getattr(error, method, None)
    return str(value()) if callable(value) else ""


def build_failure(compiler: Compiler, graph: Path, messages: Sequence[str]) -> BuildError:
    """The error for a build that returned no engine. `messages`: the errors that it logged, oldest first."""
    explained = _explain(compiler, graph, messages)
    cause = "; ".join(_essence(message) for message in messages[-2:]) or "it gave no reason"
    return explained or BuildError(f"{compiler.name} cannot build {graph.name}: {cause}")
