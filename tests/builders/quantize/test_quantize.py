"""Q/DQ graphs: where the pairs are, what they compute, and how ONNX Runtime fuses them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from observed import observe, session

from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan, uniform_plan
from twins_trt.builders.plan.sites import find_sites, source_of
from twins_trt.builders.quantize import observed_tensors, quantize, smoothed_tensors
from twins_trt.builders.quantize.insert import quantized_weight
from twins_trt.builders.quantize.smooth import smooth_norms, smoothing_scales
from twins_trt.calib import observed_tensors as calibrated_tensors
from twins_trt.errors import UsageError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor

SVT, PCPVT, UPERNET = "twins_svt-s_fpn", "twins_pcpvt-s_fpn", "twins_svt-s_upernet"
SIZE = (96, 64)


def fp32_graph(name: str, *, target: str = "gpu", opset: int = 20, precision: str = "fp32") -> gs.Graph:
    return exported(name, target=target, opset=opset, precision=precision)[0]


def exported(name: str, *, target: str = "gpu", opset: int = 20, precision: str = "fp32") -> tuple[gs.Graph, dict]:
    options = ExportOptions(*SIZE, opset=opset, target=target, precision=precision, outputs=("logits",))
    graph, info = build_graph(seeded(name), options)
    return graph, info.islands


@cache
def seeded(name: str) -> Segmentor:
    model = build_model(name, 19)
    seed_weights(model)
    return model


def pictures(count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 200, (count, 1, SIZE[0] // 16, SIZE[1] // 16, 3)).repeat(16, 2).repeat(16, 3)
    return list((coarse + rng.integers(0, 56, coarse.shape)).astype(np.uint8))


def logits(graph: gs.Graph, image: np.ndarray) -> np.ndarray:
    return session(graph).run(None, {"image": image})[0]


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The root mean square of the error, relative to the standard deviation of what is wanted."""
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


def flat_ranges(graph: gs.Graph) -> dict[str, float]:
    return dict.fromkeys(graph.tensors(), 4.0)


def of_op(graph: gs.Graph, op: str) -> list[gs.Node]:
    return [node for node in graph.nodes if node.op == op]


# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "float_precision"), [(SVT, "fp16"), (PCPVT, "fp16"), (PCPVT, "fp32"), (UPERNET, "fp32")]
)
def test_int8_stays_close_to_float32_on_calibrated_ranges(name: str, float_precision: str) -> None:
    target = "gpu" if float_precision == "fp16" else "cpu"
    graph = fp32_graph(name, target=target)
    plan = uniform_plan(graph, "int8-attention" if float_precision == "fp16" else "int8-linear+conv")
    images = pictures()
    ranges, _ = observe(graph, observed_tensors(graph, plan, float_precision=float_precision), images)
    wanted = logits(graph, images[0])
    islands = exported(name)[1] if float_precision == "fp16" else {}
    done = quantize(graph, plan, ranges, float_precision=float_precision, islands=islands)
    error = relative_error(logits(graph, images[0]), wanted)
    assert 1e-4 < error < 0.15  # INT8 does not come for nothing, and no block is lost
    float32 = fp32_graph(name, target=target)
    assert done.nodes == tuple(site.node for site in plan.int8_sites(float32) if site.kind != "attention")


def test_a_plan_of_fp16_only_is_the_fp16_graph() -> None:
    graph, islands = exported(SVT, precision="fp16")
    float16 = fp32_graph(SVT)
    done = quantize(float16, uniform_plan(float16, "fp16"), {}, islands=islands)
    assert done.nodes == () and not of_op(float16, "QuantizeLinear")
    image = pictures(1)[0]
    assert np.array_equal(logits(float16, image), logits(graph, image))


def test_a_range_too_small_shows(rng: np.random.Generator) -> None:
    errors = {}
    images = pictures()
    for factor in (1.0, 0.01):
        graph = fp32_graph(SVT)
        plan = uniform_plan(graph, "int8-linear")
        ranges, _ = observe(graph, observed_tensors(graph, plan), images)
        ranges["stages.2.blocks.4.ffn/gelu"] *= factor
        wanted = logits(graph, images[0])
        quantize(graph, plan, ranges, float_precision="fp32")
        errors[factor] = relative_error(logits(graph, images[0]), wanted)
    assert errors[0.01] > 1.5 * errors[1.0]


def test_reverted_blocks_carry_no_pairs() -> None:
    graph = fp32_graph(SVT)
    block = "stages.2.blocks.4.ffn"
    plan = uniform_plan(graph, "int8-linear+conv").with_level(block, "fp16").with_level("neck", "fp16")
    quantize(graph, plan, flat_ranges(graph))
    named = {node.name for node in of_op(graph, "DequantizeLinear")}
    assert not [name for name in named if name.startswith((f"{block}/", "neck/lateral", "neck/conv"))]
    assert f"{block.replace('4', '5')}/fc1.weight.dequantize" in named


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_within_half_a_step_of_each_channel(axis: int, rng: np.random.Generator) -> None:
    weight = rng.normal(size=(40, 30)) * 10 ** rng.uniform(-2, 1, (40, 1) if axis == 0 else (1, 30))
    scale = np.abs(weight).max(axis=1 - axis) / 127
    values = quantized_weight(weight, scale, axis)
    assert values.dtype == np.int8 and values.min() >= -127
    assert np.abs(values).max(axis=1 - axis).tolist() == [127] * weight.shape[axis]
    back = values * np.expand_dims(scale, 1 - axis)
    assert (np.abs(back - weight) <= np.expand_dims(scale, 1 - axis) * 0.5000001).all()


def test_every_weight_has_a_scale_for_each_output() -> None:
    graph = fp32_graph(UPERNET)
    outputs = {site.node: site.axis for site in find_sites(graph)}
    shapes = {node.name: node.inputs[1].shape for node in graph.nodes if node.name in outputs}
    done = quantize(graph, uniform_plan(graph, "int8-linear+conv"), flat_ranges(graph), float_precision="fp32")
    nodes = {node.name: node for node in graph.nodes}
    for name in done.nodes:
        weight = nodes[name].inputs[1].inputs[0]
        values, scale = weight.inputs
        assert weight.op == "DequantizeLinear" and values.values.dtype == np.int8, name
        assert scale.values.shape == (shapes[name][outputs[name]],) == (values.shape[weight.attrs["axis"]],), name
        assert np.abs(values.values).max() == 127


def test_scales_are_float16_numbers_above_its_smallest() -> None:
    graph = fp32_graph(SVT)
    ranges = {**flat_ranges(graph), "stages.0.blocks.0.ffn/gelu": 1e-12}
    quantize(graph, uniform_plan(graph, "int8-linear"), ranges)
    scales = [node.inputs[1].values for node in of_op(graph, "DequantizeLinear")]
    assert {scale.dtype for scale in scales} == {np.dtype(np.float16)}
    assert min(float(scale.min()) for scale in scales) == 2.0**-14


def test_upernet_taps_have_one_scale_an_output() -> None:
    graph = build_graph(seeded(UPERNET), ExportOptions(*SIZE, opset=20, upernet_levels=3, outputs=("logits",)))[0]
    fixed = {"head/psp/pooled", "head/psp/spread"}
    fixed |= {f"head/fuse.coarse.{i}/{matrix}_1" for i in (1, 2, 3) for matrix in ("rows", "columns")}
    assert fixed <= {node.name for node in graph.nodes}
    done = quantize(graph, uniform_plan(graph, "int8-linear+conv"), flat_ranges(graph), float_precision="fp32")
    assert not fixed & set(done.nodes)
    for i in (1, 2, 3):
        (node,) = [node for node in graph.nodes if node.name == f"head/fuse.coarse.{i}/taps_1"]
        assert node.inputs[1].inputs[0].inputs[1].shape == (3 * 512,)
    assert np.isfinite(logits(graph, pictures(1)[0])).all()


# --- activations ---------------------------------------------------------------------------------------------------


def test_one_pair_serves_all_readers_of_a_tensor() -> None:
    graph = fp32_graph(SVT)
    quantize(graph, uniform_plan(graph, "int8-linear+conv"), flat_ranges(graph))
    norm = "stages.2.blocks.1.attn/norm1"
    (quantizer,) = [node for node in of_op(graph, "QuantizeLinear") if node.inputs[0].name == norm]
    readers = {
        node.name for node in of_op(graph, "DequantizeLinear") if source_of(node.inputs[0]) is quantizer.outputs[0]
    }
    assert readers == {f"stages.2.blocks.1.attn/{name}.in0.dequantize" for name in ("q", "sr")}


def test_residual_sums_and_norms_read_floats() -> None:
    graph = fp32_graph(PCPVT)
    quantize(graph, uniform_plan(graph, "int8-attention"), flat_ranges(graph))
    checked = Counter()
    for node in graph.nodes:
        if node.op == "LayerNormalization" or node.name.endswith("/residual"):
            checked[node.op] += 1
            assert all(not t.inputs or t.inputs[0].op != "DequantizeLinear" for t in node.inputs), node.name
    assert checked["LayerNormalization"] >= 32 and checked["Add"] == 32


def test_a_positional_convolution_in_int8_leaves_the_residual_stream_alone() -> None:
    images = pictures()
    graph, islands = exported(SVT)
    plan = PrecisionPlan(SVT, "fp16", {**uniform_plan(graph, "fp16").blocks, "stages.2.pos": "int8-linear+conv"})
    # ONNX Runtime would quantize the stream behind it.
    assert observed_tensors(graph, plan, float_precision="fp32") == ()
    ranges, _ = observe(graph, observed_tensors(graph, plan), images)
    wanted = logits(graph, images[0])
    done = quantize(graph, plan, ranges, islands=islands)
    assert done.nodes == ("stages.2.pos/proj",)
    nodes = {node.name: node for node in graph.nodes}
    conv, total = nodes["stages.2.pos/proj"], nodes["stages.2.pos/residual"]
    assert source_of(total.inputs[0]).name == "stages.2.blocks.0.ffn/residual"
    assert conv.inputs[0].inputs[0].op == "DequantizeLinear" and total.inputs[1] is conv.outputs[0]
    assert relative_error(logits(graph, images[0]), wanted) < 0.02


def test_attention_has_all_five_pairs() -> None:
    graph = fp32_graph(PCPVT)
    plan = uniform_plan(graph, "fp16").with_level("stages.1.blocks.2.attn", "int8-attention")
    plan = plan.with_level("stages.1.blocks.2.attn/proj", "fp16")  # its pair is the attention's, whatever it runs in
    done = quantize(graph, plan, flat_ranges(graph))
    assert done.attentions == ("stages.1.blocks.2.attn",)
    nodes = {node.name: node for node in graph.nodes}
    readers = [("scores", 0), ("scores", 1), ("context", 0), ("context", 1), ("proj", 0)]
    for name, index in readers:
        assert nodes[f"stages.1.blocks.2.attn/{name}"].inputs[index].inputs[0].op == "DequantizeLinear"
    probabilities = nodes["stages.1.blocks.2.attn/context"].inputs[0].inputs[0]
    assert probabilities.inputs[1].values == np.float32(1 / 127).astype(np.float16)  # a probability is at most 1


def test_the_graph_is_precision_complete() -> None:
    graph, islands = exported(SVT)
    quantize(graph, uniform_plan(graph, "int8-linear+conv"), flat_ranges(graph), islands=islands)
    float32 = {node.name for node in graph.nodes if any(tensor.dtype == np.float32 for tensor in node.outputs)}
    assert float32 <= {*islands, *(node.name for node in of_op(graph, "Cast"))}
    assert {node.outputs[0].dtype for node in of_op(graph, "DequantizeLinear")} == {np.dtype(np.float16)}
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)


# --- SmoothQuant ---------------------------------------------------------------------------------------------------


def test_smoothing_is_exact_in_float32() -> None:
    images = pictures()
    graph = fp32_graph(SVT)
    plan = uniform_plan(graph, "int8-linear", smooth=0.5)
    names = observed_tensors(graph, plan)
    ranges, channels = observe(graph, names, images)
    wanted = logits(graph, images[0])
    smoothed = quantize(graph, plan, ranges, float_precision="fp32", channel_ranges=channels).smoothed
    # Put the float weights back: what is left is the folding alone.
    exact = fp32_graph(SVT)
    new = smooth_norms(exact, plan.int8_sites(exact), ranges, channels, strength=0.5)
    assert tuple(new) == smoothed and len(smoothed) == 18 * 2 + 7  # norm1 and norm2 of 18 blocks, sr_norm of 7
    assert relative_error(logits(exact, images[0]), wanted) < 1e-5
    after, _ = observe(exact, list(new), images)
    assert all(after[name] == pytest.approx(new[name], rel=1e-4) for name in new)


def test_smoothing_saves_a_tensor_with_an_outlier_channel() -> None:
    errors = {}
    images = pictures()
    for smooth in (None, 0.5):
        graph = fp32_graph(SVT)
        # One channel 200 times as large, its weights as much smaller: the same network in float.
        (norm,) = [node for node in graph.nodes if node.name == "stages.2.blocks.2.ffn/norm2"]
        (fc1,) = norm.outputs[0].outputs
        factor = np.ones(256, np.float32)
        factor[17] = 200
        for i in (1, 2):
            norm.inputs[i] = gs.Constant(f"outlier.{i}", norm.inputs[i].values * factor)
        fc1.inputs[1] = gs.Constant("outlier.weight", fc1.inputs[1].values / factor[:, None])
        plan = PrecisionPlan(
            SVT, "fp16", {**uniform_plan(graph, "fp16").blocks, "stages.2.blocks.2.ffn": "int8-linear"}, smooth
        )
        ranges, channels = observe(graph, observed_tensors(graph, plan), images)
        wanted = logits(graph, images[0])
        quantize(graph, plan, ranges, float_precision="fp32", channel_ranges=channels)
        errors[smooth] = relative_error(logits(graph, images[0]), wanted)
    assert errors[0.5] < 0.2 * errors[None]


def test_smoothing_scales_follow_the_paper_up_to_a_common_factor() -> None:
    active, weight = np.array([8.0, 2.0, 1.0, 0.0]), np.array([0.5, 0.5, 4.0, 1.0])
    scale = smoothing_scales(active, weight, 0.5)
    assert scale[3] == 1 and np.prod(scale[:3]) == pytest.approx(1)
    expected = np.sqrt(active[:3] / weight[:3])
    assert scale[:3] / scale[0] == pytest.approx(expected / expected[0])
    assert smoothing_scales(np.array([1e9, 1.0]), np.ones(2), 1.0).tolist() == [64, 1 / 64]


def test_smoothing_asks_for_the_channels() -> None:
    graph = fp32_graph(SVT)
    plan = uniform_plan(graph, "int8-linear", smooth=0.5)
    assert "stages.0.blocks.0.attn/norm1" in smoothed_tensors(graph, plan.int8_sites(graph))
    with pytest.raises(UsageError, match=r"range of each of the 64 channels of stages.0.blocks.0.attn/norm1"):
        quantize(graph, plan, flat_ranges(graph))


# --- ONNX Runtime --------------------------------------------------------------------------------------------------


def optimized(graph: gs.Graph, path: Path) -> onnx.ModelProto:
    proto = gs.export_onnx(graph)
    proto.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(path))


@pytest.mark.parametrize("name", [SVT, PCPVT])
def test_onnxruntime_runs_every_planned_product_in_int8(name: str, tmp_path: Path) -> None:
    graph = fp32_graph(name, target="cpu")
    plan = uniform_plan(graph, "int8-linear+conv")
    sites = plan.int8_sites(graph)
    done = quantize(graph, plan, flat_ranges(graph), float_precision="fp32")
    ops = Counter(node.op_type for node in optimized(graph, tmp_path / "optimized.onnx").graph.node)
    pointwise = sum(site.node.startswith("neck/lateral") or "ffn/fc" in site.node for site in sites)
    convs = sum(site.kind == "conv" and not site.node.startswith("neck/lateral") for site in sites)  # those are 1×1
    assert pointwise > 0 and ops["QLinearConv"] == convs
    assert ops["MatMulIntegerToFloat"] == len(done.nodes) - convs


# --- refusals ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    old = fp32_graph(SVT, opset=17)
    with pytest.raises(UsageError, match="opset 19 or later, the graph has 17"):
        quantize(old, uniform_plan(old, "int8-linear"), flat_ranges(old))
    graph = fp32_graph(SVT)
    plan = uniform_plan(graph, "int8-linear")
    ranges = flat_ranges(graph)
    with pytest.raises(UsageError, match="cannot be 'int4'"):
        quantize(graph, plan, ranges, float_precision="int4")
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(UsageError, match=r"the range of stages.0.blocks.1.ffn/gelu is"):
            quantize(graph, plan, {**ranges, "stages.0.blocks.1.ffn/gelu": bad})
    del ranges["stages.0.blocks.1.ffn/gelu"]
    with pytest.raises(UsageError, match=r"1 of \d+ ranges are missing, among them stages.0.blocks.1.ffn/gelu"):
        quantize(graph, plan, ranges)
    assert not of_op(graph, "QuantizeLinear")  # refused before anything was written


@pytest.mark.parametrize("name", [SVT, UPERNET])
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_one_calibration_has_the_ranges_of_every_plan(name: str, target: str) -> None:
    graph = fp32_graph(name, target=target)
    found = calibrated_tensors(gs.export_onnx(graph))
    plan = uniform_plan(graph, "int8-attention").with_level("stages.2.pos", "int8-linear+conv")
    norms = {node.outputs[0].name for node in of_op(graph, "LayerNormalization")}
    assert set(smoothed_tensors(graph, plan.int8_sites(graph))) <= norms & set(found)
    for float_precision in ("fp16", "fp32"):
        assert set(observed_tensors(graph, plan, float_precision=float_precision)) <= set(found)
