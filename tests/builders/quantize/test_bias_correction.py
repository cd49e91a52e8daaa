"""Bias correction takes out exactly the mean shift that rounding causes; SmoothQuant's strength is searched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from observed import session
from pictures import picture

pytest.importorskip("torch")

from twins_trt.builders.export import ExportOptions, export_graph
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.fallback.parts import alone, find_parts
from twins_trt.builders.plan.precision_plan import PrecisionPlan, uniform_plan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.builders.quantize.calibration import refine
from twins_trt.builders.quantize.graphs import relative_error
from twins_trt.builders.quantize.options import CalibrationImages, Int8Options
from twins_trt.calib import CalibrationOptions, calibrate
from twins_trt.errors import UsageError
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.weights import load_weights
from twins_trt.progress import silent

MODEL, SIZE = "twins_svt-demo_fpn", (96, 64)
IMAGES = [picture(seed, SIZE) for seed in range(4)]


@pytest.fixture(scope="module")
def model() -> Segmentor:
    return load_weights(MODEL, seeded=True, num_classes=5)[0]


@pytest.fixture(scope="module", params=["gpu", "cpu"])
def graphs(
    request: pytest.FixtureRequest, model: Segmentor, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedGraphs:
    options = ExportOptions(*SIZE, opset=20, target=request.param)
    path = tmp_path_factory.mktemp("fp32") / "graph.onnx"
    export_graph(model, path, options)
    ranges = calibrate(path, IMAGES, options=CalibrationOptions(minimum=4))
    graphs = QuantizedGraphs(model, options, ranges)
    graphs.correct_biases(uniform_plan(graphs.sites, "int8-linear+conv", model=MODEL), IMAGES)
    return graphs


def mean_output(graph: gs.Graph, name: str) -> np.ndarray:
    """The mean of a tensor over images and positions, by channel: the axis that is 1 for maps, the last for tokens."""
    (tensor,) = [tensor for key, tensor in graph.tensors().items() if key == name]
    graph.outputs = [tensor]
    running = session(graph)
    values = np.concatenate([running.run(None, {"image": image[None]})[0] for image in IMAGES])
    return values.mean(axis=(0, 2, 3) if values.ndim == 4 else tuple(range(values.ndim - 1)), dtype=np.float64)


@pytest.mark.parametrize(
    ("part", "output"),
    [
        ("stages.1.blocks.1.ffn", "stages.1.blocks.1.ffn/fc1.add"),
        ("stages.0.blocks.0.attn", "stages.0.blocks.0.attn/qkv.add"),
        ("stages.2.patch_embed/projection", "stages.2.patch_embed/projection"),
        ("neck/lateral.1", "neck/lateral.1"),
        ("head/scale.3.0", "head/scale.3.0"),
    ],
)
def test_the_mean_of_every_kind_of_product_is_the_float32_graphs(
    graphs: QuantizedGraphs, model: Segmentor, part: str, output: str
) -> None:
    plan = uniform_plan(graphs.sites, "int8-linear+conv", model=MODEL)
    parts = find_parts(plan, graphs.sites)
    (chosen,) = [each for each in parts if each.name == part]
    only = alone(plan, chosen, parts)
    exact = build_graph(model, graphs.options)[0]
    wanted = mean_output(exact, output)
    shifts = {}
    for correction in (False, True):
        graph = graphs.build(replace(only, bias_correction=correction), in_float32=True)[0]
        shifts[correction] = np.abs(mean_output(graph, output) - wanted).max() / np.abs(wanted).max()
    assert shifts[True] < 3e-5 < shifts[False]  # what is left is how float32 sums are rounded


def int8_options(ranges: CalibrationImages | str, smooth: CalibrationImages | None = None) -> Int8Options:
    images = ranges if isinstance(ranges, CalibrationImages) else None
    return Int8Options(
        level="int8-linear+conv",
        plan=None,
        ranges=ranges,
        images=images,
        calibration=CalibrationOptions(),
        smooth=smooth,
        bias_correction=False,
    )


def test_a_strength_is_chosen_by_the_error_of_the_logits(graphs: QuantizedGraphs, tmp_path: Path) -> None:
    from PIL import Image

    for index, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    plan = uniform_plan(graphs.sites, "int8-linear+conv", model=MODEL)
    images = CalibrationImages(f"folder:{tmp_path}", "train", 64)
    refined = refine(int8_options(images, smooth=images), graphs, plan, threads=None, progress=silent)
    wanted = graphs.logits(None, IMAGES)
    errors = {
        strength: relative_error(graphs.logits(replace(plan, smooth=strength), IMAGES), wanted)
        for strength in (None, 0.25, 0.5, 0.75)
    }
    assert errors[refined.smooth] == min(errors.values())
    assert len(set(errors.values())) == 4


def test_correcting_biases_needs_images(graphs: QuantizedGraphs) -> None:
    plan: PrecisionPlan = replace(uniform_plan(graphs.sites, "int8-linear", model=MODEL), bias_correction=True)
    with pytest.raises(UsageError, match="corrects biases on images"):
        refine(int8_options("x.json"), graphs, plan, threads=None, progress=silent)
