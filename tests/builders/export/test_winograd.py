"""Convolutions taken apart, against torch's own."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from torch.nn import functional

from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.export.winograd import use_winograd
from twins_trt.builders.export.writer import GraphWriter
from twins_trt.models import build_model


def convolution(shape: tuple[int | str, ...], weight: np.ndarray, bias: np.ndarray | None, **attrs: object) -> gs.Graph:
    w = GraphWriter(17)
    x = w.input("image", np.float32, shape)
    out = w.conv(x, weight, bias, "conv", pads=(1, 1, 1, 1))
    w.graph.nodes[0].attrs.update(attrs)
    w.output(w.op("Relu", [out], "relu"), "out", (shape[0], len(weight), "h", "w"))
    return w.graph


@pytest.mark.parametrize("size", [(2, 2), (2, 8), (6, 4), (10, 14)], ids=str)
@pytest.mark.parametrize(("batch", "biased"), [(1, True), ("N", False)])
def test_a_convolution_taken_apart_is_the_same(size: tuple[int, int], batch: int | str, biased: bool) -> None:
    rng = np.random.default_rng(size[0])
    weight = (rng.standard_normal((24, 16, 3, 3)) / 12).astype(np.float32)
    bias = rng.standard_normal(24).astype(np.float32) if biased else None
    graph = convolution((batch, 16, *size), weight, bias)
    use_winograd(graph, min_product=1)
    assert "conv" in graph.tensors() and not [node for node in graph.nodes if node.name == "conv"]
    x = rng.standard_normal((1 if batch == 1 else 3, 16, *size)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        gs.export_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"image": x})
    parts = [torch.from_numpy(part).double() for part in (x, weight, bias if biased else np.zeros(24))]
    want = functional.conv2d(*parts, padding=1).relu().numpy()
    assert want.max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * want.max())


@pytest.mark.parametrize(
    ("shape", "channels", "attrs"),
    [
        ((1, 256, 4, 4), 256, {}),  # too few channels
        ((1, 512, 5, 4), 512, {}),  # half a tile
        ((1, 512, "H", "W"), 512, {}),
        ((1, 512, 4, 4), 512, {"strides": [2, 2]}),
        ((1, 512, 4, 4), 512, {"dilations": [2, 2]}),
    ],
    ids=["narrow", "odd", "dynamic", "stride", "dilation"],
)
def test_what_does_not_gain_stays(shape: tuple[int | str, ...], channels: int, attrs: dict) -> None:
    graph = convolution(shape, np.zeros((channels, shape[1], 3, 3), np.float32), None, **attrs)
    use_winograd(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "Relu"]


def test_the_wide_convolutions_of_upernet_are_taken_apart() -> None:
    graph, _ = build_graph(build_model("twins_svt-s_upernet", 19), ExportOptions(128, 128, target="cpu"))
    use_winograd(graph)
    apart = {node.name.split("/product")[0] for node in graph.nodes if "/product." in node.name}
    assert apart == {"head/bottleneck", "head/conv.0", "head/conv.1", "head/conv.2", "head/fuse"}
