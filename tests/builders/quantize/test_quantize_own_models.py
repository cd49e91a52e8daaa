"""INT8 graphs of models that are none of the zoo's: other widths, a head of one logit, blue first, pads that attend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from observed import observe, session
from small_models import OWN, SVT, binary_model, image, model_of, reference

from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import uniform_plan
from twins_trt.builders.plan.sites import find_sites
from twins_trt.builders.quantize import QuantizedGraphs, observed_tensors, quantize
from twins_trt.builders.quantize.rewrite import FLOAT_PRECISIONS
from twins_trt.calib import CalibrationOptions, Ranges
from twins_trt.calib.ranges import TensorRange
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.segmentor import Segmentor

SIZE = (64, 96)
FLOAT = np.dtype(np.float32)
MODELS = {
    "one logit": lambda: binary_model(0.3),
    "blue first": lambda: model_of(
        SVT, preprocessing=Preprocessing(mean=(0, 0, 0), std=(255, 255, 255), channels="bgr")
    ),
    "pads attend": lambda: model_of(SVT, padding="unmasked"),
    "odd neck and head": lambda: model_of(OWN["odd neck and head"]),
    "odd dims": lambda: model_of(OWN["odd dims"]),
    "odd upernet": lambda: model_of(OWN["odd upernet"]),
}


def quantized(model: Segmentor, target: str, *, classifier: bool = False) -> gs.Graph:
    options = ExportOptions(*SIZE, opset=20, target=target, outputs=("mask", "logits"))
    graph, info = build_graph(model, options)
    plan = uniform_plan(graph, "int8-linear+conv")
    if classifier:
        plan = plan.with_level("head/classifier", "int8-linear+conv")
    float_precision = FLOAT_PRECISIONS[target]
    pixels = [image(*SIZE), image(*SIZE)[:, :, ::-1].copy()]
    ranges, _ = observe(graph, observed_tensors(graph, plan, float_precision=float_precision), pixels)
    done = quantize(graph, plan, ranges, float_precision=float_precision, islands=info.islands)
    assert len(done.nodes) > 2 * sum(model.spec.depths)
    return graph


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_int8_stays_close(name: str, target: str) -> None:
    model = MODELS[name]()
    mask, logits = session(quantized(model, target)).run(None, {"image": image(*SIZE)})
    exact, wanted = reference(model, image(*SIZE))
    error = np.sqrt(np.mean((logits - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.15  # INT8 does not come for nothing, and no block is lost
    assert (mask == wanted["mask"]).mean() > 0.9


def test_a_row_without_weights_has_a_scale() -> None:
    """The background's, of a head with one logit: its largest weight is 0, and nothing is divided by that."""
    model = binary_model(0.3)
    graph = quantized(model, "gpu", classifier=True)
    scales = [node.inputs[1].values for node in graph.nodes if node.name == "head/classifier.weight.dequantize"]
    assert len(scales) == 1 and np.isfinite(scales[0]).all() and (scales[0] > 0).all()
    mask, logits = session(graph).run(None, {"image": image(*SIZE)})
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, 0], np.log(0.3 / 0.7), rtol=1e-3)  # in float16
    assert (mask == reference(model, image(*SIZE))[1]["mask"]).mean() > 0.9


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("name", ["one logit", "odd dims", "odd upernet"])
def test_smoothed_and_with_corrected_biases(name: str, target: str) -> None:
    """Rows of zeros, the background's and those of widened heads, have neither a shift nor a smallest input."""
    model = MODELS[name]()
    options = ExportOptions(*SIZE, opset=20, target=target, outputs=("mask", "logits"))
    graph = build_graph(model, options)[0]
    floats = [name for name, each in graph.tensors().items() if isinstance(each, gs.Variable) and each.dtype == FLOAT]
    largest, channels = observe(graph, floats, [image(*SIZE)])
    settings = CalibrationOptions()
    ranges = {
        tensor: TensorRange(-each, each, dict.fromkeys(settings.observers, each), tuple(map(float, channels[tensor])))
        for tensor, each in largest.items()
    }
    made_up = Ranges(graph_sha256="", data_key="", settings=settings, images=0, collected_with="", ranges=ranges)
    graphs = QuantizedGraphs(model, options, made_up)
    plan = replace(uniform_plan(graphs.sites, "int8-linear+conv", smooth=0.5, model="own"), bias_correction=True)
    if target == "gpu":
        plan = plan.with_level("head/classifier", "int8-linear+conv")
    graphs.correct_biases(plan, image(*SIZE), threads=1)
    (logits,) = graphs.logits(plan, image(*SIZE), threads=1)
    exact = reference(model, image(*SIZE))[0]
    assert np.sqrt(np.mean((logits - exact) ** 2)) < 0.15 * exact.std()
    if name == "one logit":
        np.testing.assert_allclose(logits[:, 0], np.log(0.3 / 0.7), rtol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_sites_count_the_flops_of_own_widths(name: str) -> None:
    """All products with weights of the backbone, by its widths alone."""
    spec = replace(OWN[name], head="fpn")
    model = model_of(spec)
    graph = build_graph(model, ExportOptions(64, 64))[0]
    sites = {site.node: site for site in find_sites(graph)}
    assert sum(site.kind == "attention" for site in sites.values()) == spec.attentions
    for stage, (channels, side) in enumerate(zip(spec.embed_dims, (16, 8, 4, 2), strict=True)):
        for block in range(spec.depths[stage]):
            fc1 = sites[f"stages.{stage}.blocks.{block}.ffn/fc1"]
            assert fc1.flops == 2 * side**2 * channels * channels * spec.mlp_ratios[stage]
    assert sites["neck/conv.0"].flops == 2 * 16 * 16 * 9 * spec.fpn_channels[0] ** 2
