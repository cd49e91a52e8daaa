"""A small FP32 graph with everything that is observed: a convolution, Linears and one attention; and photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEIGHT, CHANNELS = 48, 32, 8
FACTOR = 0.3  # no power of two: scaling before or after a product rounds differently
OBSERVED = (
    "input/pixels",
    "patch",
    "attn/norm",
    "attn/q_heads",
    "attn/k",
    "attn/k_t",
    "attn/v",
    "attn/softmax",
    "attn/context",
    "fc/relu",
)

Array = npt.NDArray[Any]


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "patch.weight": (CHANNELS, 3, 8, 8),
        "q.weight": (CHANNELS, CHANNELS),
        "k.weight": (CHANNELS, CHANNELS),
        "v.weight": (CHANNELS, CHANNELS),
        "proj.weight": (CHANNELS, CHANNELS),
        "fc.weight": (CHANNELS, 2),
    }
    return {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}


def write_graph(
    path: Path, *, seed: int = 0, batch: int | str = 1, size: tuple[int | str, int | str] = (HEIGHT, WIDTH)
) -> Path:
    """A graph from uint8 [batch, H, W, 3] to `mask`, float. The scale of q is a constant, which is not observed."""
    nodes = [
        helper.make_node("Cast", ["image"], ["input/float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["input/float"], ["input/nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["input/nchw", "scale"], ["input/pixels"]),
        helper.make_node("Conv", ["input/pixels", "patch.weight"], ["patch"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["patch", "tokens"], ["patch/flat"]),
        helper.make_node("Transpose", ["patch/flat"], ["attn/norm"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["attn/norm", "q.weight"], ["attn/q"]),
        helper.make_node("Mul", ["attn/q", "factor"], ["attn/q_heads"]),
        helper.make_node("MatMul", ["attn/norm", "k.weight"], ["attn/k"]),
        helper.make_node("Transpose", ["attn/k"], ["attn/k_t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["attn/norm", "v.weight"], ["attn/v"]),
        helper.make_node("MatMul", ["attn/q_heads", "attn/k_t"], ["attn/scores"]),
        helper.make_node("Softmax", ["attn/scores"], ["attn/softmax"], axis=-1),
        helper.make_node("MatMul", ["attn/softmax", "attn/v"], ["attn/context"]),
        # The weight comes through a constant expression, as a folded scale would.
        helper.make_node("Mul", ["proj.weight", "factor"], ["proj.folded"]),
        helper.make_node("MatMul", ["attn/context", "proj.folded"], ["fc/in"]),
        helper.make_node("Relu", ["fc/in"], ["fc/relu"]),
        helper.make_node("MatMul", ["fc/relu", "fc.weight"], ["mask"]),
    ]
    constants = weights(seed) | {
        "scale": np.float32(255) * np.ones(1, np.float32),
        "factor": np.array(FACTOR, np.float32),
        "tokens": np.array([0, CHANNELS, -1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, *size, 3])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch, "tokens", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def forward(image: Array, seed: int = 0) -> dict[str, Array]:
    """The observed tensors for uint8 [H, W, 3], in numpy and float64."""
    w = {name: value.astype(np.float64) for name, value in weights(seed).items()}
    pixels = image.transpose(2, 0, 1) / 255
    c, height, width = pixels.shape
    blocks = pixels.reshape(c, height // 8, 8, width // 8, 8).transpose(1, 3, 0, 2, 4)
    norm = blocks.reshape(-1, c * 64) @ w["patch.weight"].reshape(CHANNELS, -1).T
    q, k, v = (norm @ w[f"{name}.weight"] for name in "qkv")
    scores = np.exp(q * FACTOR @ k.T)
    softmax = scores / scores.sum(1, keepdims=True)
    relu = np.maximum(softmax @ v @ (w["proj.weight"] * FACTOR), 0)
    values = (pixels, norm.T, norm, q * FACTOR, k, k.T, v, softmax, softmax @ v, relu)
    return dict(zip(OBSERVED, values, strict=True))


def photo(seed: int, *, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """Smooth patches of colour with a little noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(patches + rng.integers(-9, 10, patches.shape), 0, 255).astype(np.uint8)


def photos(count: int, *, first: int = 0) -> list[npt.NDArray[np.uint8]]:
    return [photo(seed) for seed in range(first, first + count)]
