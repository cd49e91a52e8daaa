"""Real builds with TensorRT-RTX, which compiles for GPUs that are not there."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from engine_graphs import BLOCK, attention, linear, single
from onnx import TensorProto

from twins_trt.bindings import process_logger
from twins_trt.builders.engine import BuiltEngine, EngineOptions, build, build_engine, open_compiler
from twins_trt.builders.engine.audit import audit_layers, check_fused
from twins_trt.errors import BuildError, UnfusedAttentionError, UsageError

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt-rtx-cu13)")

AMPERE_ON = EngineOptions(targets=("sm_86", "sm_89", "sm_120"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    return build_engine(attention(tmp_path_factory.mktemp("graphs") / "graph.onnx"), AMPERE_ON)


def test_one_engine_serves_three_targets(fused: BuiltEngine) -> None:
    assert fused.targets == ("sm_86", "sm_89", "sm_120")
    assert fused.flavour == "tensorrt_rtx" and fused.version == open_compiler("tensorrt_rtx").version
    assert len(fused.serialized) > 10_000 and 0 < fused.seconds < 60
    assert fused.peak_host_mib is not None and fused.peak_host_mib > 50


def test_fp16_attention_is_one_kernel(fused: BuiltEngine) -> None:
    audit = audit_layers(fused.layers, expected_attentions=1)
    assert (audit.attentions, audit.unfused_attentions, audit.float32) == (1, (), ())
    (kernel,) = [layer for layer in fused.layers if "_gemm_mha" in layer.name]
    assert {f"{BLOCK}/scores", f"{BLOCK}/softmax", f"{BLOCK}/values"} <= set(kernel.nodes)
    assert [tensor.dtype for tensor in kernel.inputs] == ["float16"] * 3
    # The three operands are laid out anew, and the result once more: q, k, v and out are 2*64*32 values each.
    assert all(tensor.nbytes == 2 * 64 * 32 * 2 for layer in fused.layers for tensor in layer.outputs)
    assert audit.bytes_moved == sum(len(layer.inputs) + len(layer.outputs) for layer in fused.layers) * 8192
    check_fused(audit)


def test_fp32_attention_is_not(tmp_path: Path) -> None:
    built = build_engine(attention(tmp_path / "graph.onnx", dtype=TensorProto.FLOAT), AMPERE_ON)
    audit = audit_layers(built.layers, expected_attentions=1)
    assert (audit.attentions, audit.unfused_attentions) == (0, (BLOCK,))
    assert audit.float32_attentions == (BLOCK,) and len(audit.float32) == audit.kernels
    with pytest.raises(UnfusedAttentionError, match=f"1 of 1 attentions are not fused: {BLOCK}"):
        check_fused(audit)


def test_builds_are_repeatable(fused: BuiltEngine, tmp_path: Path) -> None:
    again = build_engine(attention(tmp_path / "graph.onnx"), AMPERE_ON)
    assert again.serialized == fused.serialized and again.layers == fused.layers


def test_every_listed_target_builds(tmp_path: Path) -> None:
    compiler = open_compiler("tensorrt_rtx")
    graph = attention(tmp_path / "graph.onnx")
    for target in compiler.targets:
        assert build_engine(graph, EngineOptions(targets=(target,))).serialized, target


def test_a_dynamic_batch_needs_a_profile_and_stays_fused(tmp_path: Path) -> None:
    graph = attention(tmp_path / "graph.onnx", batch="n")
    with pytest.raises(UsageError, match="has no profile"):
        build_engine(graph, AMPERE_ON)
    shapes = ((1, 2, 64, 32), (4, 2, 64, 32), (8, 2, 64, 32))
    options = EngineOptions(targets=("sm_86",), profile={name: shapes for name in "qkv"})
    audit = audit_layers(build_engine(graph, options).layers, expected_attentions=1)
    assert audit.dynamic and audit.attentions == 1
    assert "shape_call" not in audit.by_type  # shape arithmetic on the host is no kernel


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"no graph at all" * 40, "is not an ONNX file"), (None, "there is no graph at")],
)
def test_files_that_are_no_graph(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=words):
        build_engine(path, AMPERE_ON)


def test_an_operator_it_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"node stages\.0\.x/bogus \(Bogus\)"):
        build_engine(single(tmp_path / "graph.onnx", "Bogus", name="stages.0.x/bogus"), AMPERE_ON)


def test_turing_refuses_fp32_products(tmp_path: Path) -> None:
    graph = linear(tmp_path / "graph.onnx", dtype=TensorProto.FLOAT)
    with pytest.raises(BuildError, match="sm_75 has no FP32 matrix product") as caught:
        build_engine(graph, EngineOptions(targets=("sm_75",)))
    assert "head/classifier" in caught.value.cause and "leave sm_75 out" in str(caught.value.fix)
    assert build_engine(graph, EngineOptions(targets=("sm_80",))).serialized


def test_the_attention_operator_fails_with_the_way_out(tmp_path: Path) -> None:
    graph = single(tmp_path / "graph.onnx", "Attention", heads=1, opset=23)
    with pytest.raises(BuildError, match="Attention operator has no kernel") as caught:
        build_engine(graph, AMPERE_ON)
    assert "opset 17 to 20" in str(caught.value.fix)


def test_a_target_it_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no target sm_87") as caught:
        build_engine(attention(tmp_path / "graph.onnx"), EngineOptions(targets=("sm_87",)))
    assert "sm_86" in str(caught.value.fix)


def test_options_it_takes_and_a_timing_cache_it_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "timing.cache"
    options = EngineOptions(targets=("sm_86",), workspace_mib=64, optimization_level=1, timing_cache=str(cache))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        build_engine(attention(tmp_path / "graph.onnx"), options)
    assert "never times kernels" in caplog.text and not cache.exists()
    with pytest.raises(BuildError, match="has no hardware compatibility"):
        build_engine(
            attention(tmp_path / "graph.onnx"), EngineOptions(targets=("sm_86",), hardware_compatibility="ampere_plus")
        )


def test_builders_of_others_do_not_take_the_layer_list(tmp_path: Path) -> None:
    module = open_compiler("tensorrt_rtx").module
    graph = attention(tmp_path / "graph.onnx")
    for logger in (process_logger(module), module.Logger(module.Logger.ERROR)):
        builder = module.Builder(logger)
        assert len(build_engine(graph, AMPERE_ON).layers) == 5
        del builder


class SlowState(build.BuildState):
    """A build that takes its time over every step, so that there is something to watch and to stop."""

    steps: ClassVar[list[str]] = []

    def step(self, name: str, step: int) -> None:
        self.steps.append(name)
        time.sleep(0.03)
        super().step(name, step)


def test_progress_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BuildState", SlowState)
    told: list[tuple[str, float | None]] = []
    graph = attention(tmp_path / "graph.onnx")
    build_engine(graph, AMPERE_ON, progress=lambda step, phase, share: told.append((phase, share)))
    assert told[0] == ("Reading the graph", None)
    shares = [share for _, share in told[1:] if share is not None]
    assert len(shares) > 3 and shares == sorted(shares) and shares[-1] > 0.5
    assert len({phase for phase, _ in told}) > 2


def test_ctrl_c_stops_a_build_and_leaves_the_process_fit(
    fused: BuiltEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = SlowState.steps
    steps.clear()
    graph = attention(tmp_path / "graph.onnx")
    monkeypatch.setattr(build, "BuildState", SlowState)
    assert build_engine(graph, AMPERE_ON).serialized == fused.serialized
    whole = len(steps)
    steps.clear()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, AMPERE_ON)
    timer.join()
    assert 0 < len(steps) < whole
    monkeypatch.undo()
    assert build_engine(graph, AMPERE_ON).serialized == fused.serialized
