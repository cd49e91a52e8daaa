"""Two convolutions written as one, against both of them, borders included; and where a graph uses that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from torch.nn import functional

from twins_trt.builders.export import DynamicDim, ExportOptions, export_graph
from twins_trt.builders.export.composed import Convolution, Level, compose, doubled_phases, write_composed
from twins_trt.builders.export.dims import MapShape
from twins_trt.builders.export.writer import GraphWriter
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights


def convolution(rng: np.random.Generator, inputs: int, outputs: int, size: int) -> Convolution:
    weight = rng.standard_normal((outputs, inputs, size, size)) / (size * np.sqrt(inputs))
    return Convolution(weight.astype(np.float32), rng.standard_normal(outputs).astype(np.float32))


def test_composed_kernels_are_one_convolution_after_the_other() -> None:
    rng = np.random.default_rng(0)
    x, first, second = (rng.standard_normal(shape) for shape in ((2, 3, 9, 8), (5, 3, 3, 3), (4, 5, 3, 3)))
    want = functional.conv2d(functional.conv2d(torch.from_numpy(x), torch.from_numpy(first)), torch.from_numpy(second))
    got = functional.conv2d(torch.from_numpy(x), torch.from_numpy(compose(first, second)))
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_phases_are_a_convolution_of_the_doubled_map(size: int) -> None:
    rng = np.random.default_rng(size)
    x, kernel = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((1, 3, 4, 5), (2, 3, size, size)))
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    want = functional.conv2d(doubled, kernel, padding=size // 2)
    phases = doubled_phases(kernel.numpy())
    got = functional.conv2d(x, torch.from_numpy(phases), padding=phases.shape[-1] // 2)  # phase, then channel
    got = got.reshape(2, 2, 2, 4, 5).permute(2, 3, 0, 4, 1).reshape(want.shape)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (2, 12), (8, 2), (6, 10)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_composed_level_equals_its_convolutions_up_to_the_border(
    size: tuple[int, int], batch: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(batch)
    lateral, first, second = (convolution(rng, *shape) for shape in ((16, 32, 1), (32, 32, 3), (32, 8, 3)))
    fine = rng.standard_normal((batch, 16, *size)).astype(np.float32)
    coarse = rng.standard_normal((batch, 32, size[0] // 2, size[1] // 2)).astype(np.float32)
    w = GraphWriter(17, target="cpu")
    inputs = [w.input(name, np.float32, x.shape) for name, x in (("map", fine), ("up", coarse))]
    out = write_composed(w, *inputs, Level(lateral, first, second), MapShape(batch, fine.shape[1], size))
    w.output(out, "out", (batch, 8, *size))
    w.graph.toposort()
    session = onnxruntime.InferenceSession(
        gs.export_onnx(w.graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"map": fine, "up": coarse})

    def apply(x: torch.Tensor, each: Convolution) -> torch.Tensor:
        weight, bias = (torch.from_numpy(part).double() for part in (each.weight, each.bias))
        return functional.conv2d(x, weight, bias, padding=each.weight.shape[-1] // 2)

    doubled = torch.from_numpy(coarse).double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    want = apply(apply(apply(torch.from_numpy(fine).double(), lateral) + doubled, first), second).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        (ExportOptions(64, 96, target="cpu"), 2),
        (ExportOptions(64, 72, target="cpu"), 1),  # 18 columns, 9, then 5
        (ExportOptions(36, 64, target="cpu"), 0),
        (ExportOptions(64, 96), 0),
        (ExportOptions(64, 96, DynamicDim(1, 2, 4), target="cpu"), 0),
        (ExportOptions(DynamicDim(64, 64, 96), DynamicDim(64, 64, 96), target="cpu"), 0),
    ],
    ids=["both", "odd second level", "odd first level", "gpu", "dynamic batch", "dynamic size"],
)
def test_levels_are_composed_where_sizes_are_fixed_and_double(
    options: ExportOptions, levels: int, tmp_path: Path
) -> None:
    export_graph(build_model("twins_svt-s_fpn", 19), tmp_path / "g.onnx", options)
    nodes = onnx.load(tmp_path / "g.onnx").graph.node
    composed = {node.name for node in nodes if node.name.startswith("head/scale.") and node.name.endswith(".0/fine")}
    assert composed == {f"head/scale.{level}.0/fine" for level in range(levels)}
    assert {node.name for node in nodes if node.name.startswith("neck/conv.")} == {
        f"neck/conv.{level}" for level in range(levels, 4)
    }


def test_an_fp16_graph_with_composed_levels_runs_and_agrees(tmp_path: Path) -> None:
    """ONNX Runtime's ScatterND adds no float16, so that part has to stay float32."""
    model = build_model("twins_svt-s_fpn", 19)
    seed_weights(model)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    logits = {}
    for precision in ("fp32", "fp16"):
        options = ExportOptions(64, 96, target="cpu", precision=precision, outputs=("logits",))
        export_graph(model, tmp_path / "g.onnx", options)
        session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
        (logits[precision],) = session.run(None, {"image": image})
    largest = np.abs(logits["fp32"]).max()
    assert 0 < np.abs(logits["fp16"] - logits["fp32"]).max() < 1e-2 * largest
