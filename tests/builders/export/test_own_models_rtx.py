"""TensorRT-RTX compiles graphs of models that are none of the zoo's, with every attention fused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_models import OWN, SVT, binary_model, model_of

from twins_trt.builders.engine import EngineOptions, build_engine
from twins_trt.builders.engine.audit import audit_layers, check_fused
from twins_trt.builders.export import DynamicDim, ExportOptions, export_graph
from twins_trt.builders.export.shapes import profile
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.segmentor import Segmentor

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX missing: pip install 'twins-trt[rtx]'")

BLUE_FIRST = Preprocessing(mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), channels="bgr")
SIDES = DynamicDim(64, 96, 128)


def test_a_head_of_one_logit(tmp_path: Path) -> None:
    options = ExportOptions(64, 96, precision="fp16", outputs=("mask", "logits", "probability"))
    compiled(binary_model(0.3), options, tmp_path / "g.onnx")


def test_the_usual_model_and_its_variants_are_alike(tmp_path: Path) -> None:
    """Another order of channels is other weights, and pads that attend need no mask: neither costs a kernel."""
    options = ExportOptions(64, 96, precision="fp16")
    plain = compiled(model_of(SVT), options, tmp_path / "g.onnx")
    assert compiled(model_of(SVT, preprocessing=BLUE_FIRST), options, tmp_path / "g.onnx") == plain
    assert compiled(model_of(SVT, padding="unmasked"), options, tmp_path / "g.onnx") <= plain
    assert compiled(binary_model(0.3), options, tmp_path / "g.onnx") <= plain


@pytest.mark.parametrize("name", ["odd dims", "pcpvt", "odd neck and head", "depths", "odd upernet"])
def test_own_widths(name: str, tmp_path: Path) -> None:
    spec = OWN.get(name) or replace(SVT, depths=(1, 3, 2, 1), sr_ratios=(4, 4, 1, 2), num_heads=(2, 4, 6, 8))
    compiled(model_of(spec), ExportOptions(96, 96, precision="fp16"), tmp_path / "g.onnx")


def test_any_size(tmp_path: Path) -> None:
    """With two heads or more: behind a mask that is computed, the compiler does not fuse an LSA of one."""
    spec = replace(SVT, num_heads=(2, 2, 3, 4))
    unmasked = model_of(spec, 2, padding="unmasked", threshold=0.3)
    options = ExportOptions(SIDES, SIDES, batch=DynamicDim(1, 1, 2), precision="fp16", outputs=("mask", "probability"))
    compiled(unmasked, options, tmp_path / "g.onnx")
    compiled(model_of(spec, 2, threshold=0.3), options, tmp_path / "g.onnx")


def compiled(model: Segmentor, options: ExportOptions, path: Path) -> int:
    """How many kernels an engine of the model has. Every attention must be fused."""
    info = export_graph(model, path, options)
    built = build_engine(path, EngineOptions(targets=("sm_89",), profile=profile(options)))
    check_fused(audit_layers(built.layers, expected_attentions=info.attentions))
    return audit_layers(built.layers).kernels
