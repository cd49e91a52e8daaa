"""The fake-quantized model against the Q/DQ graph of the same plan and ranges, on ONNX Runtime."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
import toy
from toy import Options, log_rows, stop_after, weights

from twins_trt.builders.export import ExportOptions, export_graph
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan, uniform_plan
from twins_trt.builders.plan.sites import find_sites
from twins_trt.builders.quantize import observed_tensors, quantize
from twins_trt.cli import main
from twins_trt.data.preprocessing import Preprocessing, normalized_planes
from twins_trt.errors import DataError, TwinsError
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.zoo import DEMO
from twins_trt.runtime import open_bundle
from twins_trt.training import resolve_training, train
from twins_trt.training.qat import attach, read_amax, read_plan
from twins_trt.training.qat.fake import quantized_activation, quantized_weight

SIZE = (96, 64)
EVERYTHING = "int8-attention"
KINDS = (
    r"/qkv$",
    r"/q$",
    r"/kv$",
    r"/sr$",
    r"attn/proj$",
    r"/attention$",
    r"/fc1$",
    r"/fc2$",
    r"patch_embed/",
    r"\.pos/",
    r"^neck/",
    r"^head/scale",
    r"^head/classifier$",
)


def seeded(name: str) -> Segmentor:
    model = build_model(name, 5)
    seed_weights(model)
    return model


def exported(model: Segmentor) -> gs.Graph:
    options = ExportOptions(*SIZE, opset=20, outputs=("logits",))
    return build_graph(model, options)[0]


def picture() -> np.ndarray:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 200, (SIZE[0] // 8, SIZE[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
    return (coarse + rng.integers(0, 56, (*SIZE, 3))).astype(np.uint8)


def run_graph(graph: gs.Graph, image: np.ndarray, names: tuple[str, ...] = ()) -> list[np.ndarray]:
    """As the file says, node by node: an optimized session computes products of integers instead."""
    proto = gs.export_onnx(graph)
    proto.ir_version = 9
    for name in names:
        proto.graph.output.append(gs.export_onnx(graph).graph.output[0].__class__(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([*names] or None, {"image": image[None]})


def everywhere(graph: gs.Graph, model: str) -> PrecisionPlan:
    """INT8 wherever a plan can ask for it: position encodings and classifier too."""
    plan = uniform_plan(graph, EVERYTHING, model=model)
    return PrecisionPlan(model, EVERYTHING, dict.fromkeys(plan.blocks, EVERYTHING))


def ranges_of(model: Segmentor, plan: PrecisionPlan, image: np.ndarray) -> dict[str, float]:
    graph = exported(model)
    names = observed_tensors(graph, plan)
    seen = run_graph(graph, image, names)
    return {name: 0.8 * float(np.abs(value).max()) for name, value in zip(names, seen, strict=True)}  # some clip


def graph_logits(model: Segmentor, plan: PrecisionPlan, ranges: dict[str, float], image: np.ndarray) -> np.ndarray:
    """Of the graph for TensorRT without its casts to float16: ONNX Runtime has few such kernels."""
    graph = exported(model)
    quantize(graph, plan, ranges, in_float32=True)
    return run_graph(graph, image)[0]


def pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(normalized_planes(image, Preprocessing())[None])


def torch_logits(model: Segmentor, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(pixels(image)).numpy()


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())


# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DEMO.name, toy.TOY_PCPVT, pytest.param(toy.TOY_UPERNET, marks=pytest.mark.slow)])
def test_the_model_rounds_where_the_graph_does(name: str) -> None:
    """With everything in INT8. A value next to a tie may round the other way, since the graph sums in another order:
    such steps are all that is left, a hundredth of what INT8 changes (measured: 0.5 to 1.3 %)."""
    model, image = seeded(name), picture()
    plan = everywhere(exported(model), name)
    ranges = ranges_of(model, plan, image)
    wanted = graph_logits(model, plan, ranges, image)
    changed = error(torch_logits(model, image), wanted)
    assert changed > 0.05
    done = attach(model, plan, size=SIZE, amax=ranges)
    assert len(done.sites) == len(find_sites(exported(seeded(name))))
    assert error(torch_logits(model, image), wanted) < 0.04 * changed


def test_a_head_of_one_logit_and_own_widths_round_where_the_graph_does() -> None:
    """The graph's channel of the background is a constant, which rounding leaves alone."""
    spec = replace(
        DEMO, name="twins_svt-custom_fpn", variant="custom", embed_dims=(32, 64, 64, 96), fpn_channels=(48, 40)
    )
    spec = replace(spec, num_heads=(1, 2, 2, 3), block_norm_eps=1e-6)
    model, image = Segmentor(spec, 2, threshold=0.3, padding="unmasked").eval(), picture()
    seed_weights(model)
    plan = everywhere(exported(model), spec.name)
    ranges = ranges_of(model, plan, image)
    wanted = graph_logits(model, plan, ranges, image)
    assert wanted.shape[1] == 2 and float(np.ptp(wanted[:, 0])) < 1e-6
    changed = error(torch_logits(model, image), wanted[:, 1:])
    assert changed > 0.05
    attach(model, plan, size=SIZE, amax=ranges)
    assert error(torch_logits(model, image), wanted[:, 1:]) < 0.04 * changed


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_place_alone(kind: str) -> None:
    """The last of its kind in the graph, behind which a tie spreads least (measured: equal to 1e-6)."""
    model, image = seeded(DEMO.name), picture()
    sites = [site for site in find_sites(exported(model)) if re.search(kind, site.node)][-1:]
    off = dict.fromkeys(uniform_plan(exported(model), "fp16").blocks, "fp16")
    plan = PrecisionPlan(DEMO.name, EVERYTHING, {**off, **{site.node: EVERYTHING for site in sites}})
    ranges = ranges_of(model, plan, image)
    wanted = graph_logits(model, plan, ranges, image)
    changed = error(torch_logits(model, image), wanted)
    done = attach(model, plan, size=SIZE, amax=ranges)
    assert done.sites == tuple(site.node for site in sites)
    assert error(torch_logits(model, image), wanted) < 0.04 * changed


def test_state_dict_keys_stay_and_gradients_reach_every_weight() -> None:
    model = seeded(DEMO.name)
    keys = list(model.state_dict())
    plan = everywhere(exported(model), DEMO.name)
    ranges = ranges_of(model, plan, picture())
    attach(model, plan, size=SIZE, amax=ranges)
    assert list(model.state_dict()) == keys
    model(pixels(picture())).square().mean().backward()
    still = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.abs().max() > 0]
    assert still == []


def test_rounding_passes_gradients_on_and_clipping_stops_them() -> None:
    x = torch.tensor([0.24, 0.26, 50.0, -50.0, 0.0], requires_grad=True)
    rounded = quantized_activation(x, 63.5)  # steps of a half
    assert rounded.tolist() == [0.0, 0.5, 50.0, -50.0, 0.0]
    rounded.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1, 1, 1]
    beyond = torch.tensor([64.0, 63.6, -64.5], requires_grad=True)
    clipped = quantized_activation(beyond, 63.5)
    assert clipped.tolist() == [63.5, 63.5, -64.0]  # -128 exists, as in QuantizeLinear
    clipped.sum().backward()
    assert beyond.grad is not None and beyond.grad.tolist() == [0, 0, 0]


def test_weights_round_by_output_and_never_to_minus_128() -> None:
    weight = torch.tensor([[-127.0, 3.4], [0.254, -0.002]])
    rounded = quantized_weight(weight).flatten().tolist()
    assert rounded == pytest.approx([-127.0, 3.0, 0.254, -0.002], rel=1e-3)  # steps are float16


# --- training ------------------------------------------------------------------------------------------------------


def written_plan(folder: Path, name: str, **blocks: str) -> str:
    plan = uniform_plan(exported(seeded(name)), "int8-linear+conv", model=name)
    for block, level in blocks.items():
        plan = plan.with_level(block, level)
    path = folder / "plan.json"
    path.write_text(plan.to_json())
    return str(path)


def test_a_quantized_run_observes_learns_and_resumes(options: Options, tmp_path: Path) -> None:
    first = options(model=DEMO.name, iterations=30, batch=4, validate_every=30, out=str(tmp_path / "plain"))
    start = train(first)
    plan = written_plan(tmp_path, DEMO.name)
    common = {"model": DEMO.name, "scratch": False, "checkpoint": start.last, "plan": plan, "lr": 1e-4}
    whole = options(**common, out=str(tmp_path / "whole"), validate_every=4)
    report = train(whole)
    assert report.miou is not None and report.miou > 50

    broken = replace(whole, out=str(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, observe=stop_after(2))
    Path(plan).unlink()  # the run has its own copy
    train(broken, resume=True)
    assert log_rows(broken.out) == log_rows(whole.out)
    assert (tmp_path / "broken" / "plan.json").read_text() == (tmp_path / "whole" / "plan.json").read_text()

    norms = [key for key in weights(start.last) if "running_" in key]
    before, after = weights(start.last), weights(report.last)
    assert norms and all(torch.equal(before[key], after[key]) for key in norms)
    assert not torch.equal(before["decode_head.conv_seg.weight"], after["decode_head.conv_seg.weight"])


def test_a_fine_tuned_checkpoint_builds_with_the_same_plan(options: Options, blocks: str, tmp_path: Path) -> None:
    plan = written_plan(tmp_path, DEMO.name)
    report = train(options(model=DEMO.name, plan=plan, iterations=2, val_split=""))
    words = ["build", DEMO.name, "--checkpoint", report.last, "--size", "64x64", "--target", "cpu", "--no-gate"]
    words += ["--precision", "int8"]
    words += ["--plan", plan, "--calib-data", blocks, "--minimum", "2", "--out", str(tmp_path / "x.bundle")]
    assert main(words) == 0
    assert open_bundle(tmp_path / "x.bundle").manifest.precision == "int8"


def test_ranges_come_from_a_calibration_of_the_start(options: Options, blocks: str, tmp_path: Path) -> None:
    model = seeded(DEMO.name)
    graph = tmp_path / "graph.onnx"
    export_graph(model, graph, ExportOptions(64, 64, opset=20))
    words = ["calibrate", str(graph), "--data", blocks, "--minimum", "2", "--out", str(tmp_path / "ranges.json")]
    assert main(words) == 0
    amax = read_amax(tmp_path / "ranges.json")
    plan = read_plan(written_plan(tmp_path, DEMO.name), model=DEMO.name)
    done = attach(model, plan, size=(64, 64), amax=amax)
    assert not done.observing
    assert done.amax()["stages.0.blocks.0.attn/norm1"] == amax["stages.0.blocks.0.attn/norm1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("no json", "precision plan"),
        (PrecisionPlan("twins_svt-s_fpn", "fp16", {}).to_json(), "is a plan of twins_svt-s_fpn"),
        (PrecisionPlan(DEMO.name, "fp16", {}, smooth=0.5).to_json(), "smooths activations"),
    ],
)
def test_a_plan_that_cannot_be_trained_is_refused_at_once(
    options: Options, tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TwinsError, match=message):
        resolve_training(options(model=DEMO.name, plan=str(path)))


def test_missing_ranges_are_named() -> None:
    model = seeded(DEMO.name)
    plan = everywhere(exported(model), DEMO.name)
    with pytest.raises(DataError, match=r"no tensor 'input/std'"):
        attach(model, plan, size=SIZE, amax={})
