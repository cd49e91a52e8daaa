"""Tiny graphs with a known answer: every pixel gets the class of the prototype colour it is nearest to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from twins_trt.inference.tensors import Dim
from twins_trt.runtime import Bundle, GraphInterface, Manifest, Preprocessing, Source, TensorSpec

PROTOTYPES = np.array([[0, 0, 0], [250, 250, 250], [200, 30, 40], [30, 190, 60], [20, 60, 210]])
CLASSES = ("night", "snow", "brick", "grass", "water")
PALETTE = ((10, 0, 0), (240, 240, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255))
QUARTER = 4
PREPROCESSING = Preprocessing()

UInt8Array = npt.NDArray[np.uint8]
MakeBundle = Callable[..., Bundle]


def scores(image: UInt8Array) -> npt.NDArray[np.float64]:
    """[..., 3] to [..., classes]: minus the squared distance to each prototype, up to what all classes share."""
    return 2.0 * image.astype(np.float64) @ PROTOTYPES.T - (PROTOTYPES**2).sum(1)


def nearest_class(image: UInt8Array) -> UInt8Array:
    """The answer, by plain distances: uint8 [H, W, 3] to uint8 [H, W]."""
    return ((image[..., None, :].astype(int) - PROTOTYPES) ** 2).sum(-1).argmin(-1).astype(np.uint8)


def tiny_graph(image: TensorSpec, outputs: tuple[TensorSpec, ...]) -> bytes:
    """The classifier as an ONNX file: `mask` at full size, `logits` averaged over blocks of 4×4 pixels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    types = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    weight, bias = 2.0 * PROTOTYPES.T, -(PROTOTYPES**2).sum(1).astype(float)
    if image.dtype == "uint8":
        nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT)]
    else:  # planes arrive normalized, so the classifier undoes it
        nodes = [helper.make_node("Transpose", ["image"], ["pixels"], perm=[0, 2, 3, 1])]
        weight, bias = std[:, None] * weight, bias + mean @ weight
    nodes += [
        helper.make_node("MatMul", ["pixels", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["scores"]),
    ]
    for spec in outputs:
        if spec.name == "mask":
            nodes += [
                helper.make_node("ArgMax", ["scores"], ["index"], axis=3, keepdims=0),
                helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
            ]
        else:
            nodes += [
                helper.make_node("Transpose", ["scores"], ["planes"], perm=[0, 3, 1, 2]),
                helper.make_node(
                    "AveragePool", ["planes"], ["logits"], kernel_shape=[QUARTER, QUARTER], strides=[QUARTER, QUARTER]
                ),
            ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", types[image.dtype], list(image.shape))],
        [helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.shape)) for spec in outputs],
        [
            numpy_helper.from_array(weight.astype(np.float32), "weight"),
            numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


FOR_CPUS = "twins-trt build twins_svt-s_fpn --checkpoint tiny.pth --num-classes 5 --target cpu --out tiny.bundle"
"""The `rebuild` of a bundle that no engine runs. That of `tiny_manifest` is of one whose device compiles an engine."""


def tiny_interface(image: TensorSpec, outputs: tuple[TensorSpec, ...]) -> GraphInterface:
    return GraphInterface((image,), outputs, CLASSES, PALETTE, PREPROCESSING)


def tiny_manifest(image: TensorSpec, outputs: tuple[TensorSpec, ...]) -> Manifest:
    return Manifest(
        model="twins_svt-s_fpn",
        interface=tiny_interface(image, outputs),
        padding="parity",
        precision="fp32",
        opset=17,
        source=Source(checkpoint="tiny.pth", sha256="ab" * 32),
        rebuild="twins-trt build twins_svt-s_fpn --checkpoint tiny.pth --num-classes 5 --out tiny.bundle",
    )


def tensors(
    height: Dim, width: Dim, batch: Dim, outputs: tuple[str, ...], dtype: str
) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
    image = TensorSpec.image(height, width, batch=batch, dtype=dtype)  # type: ignore[arg-type]
    named = {"N": batch, "h": height, "w": width}
    shape = tuple((d // QUARTER if name != "N" else d) if isinstance(d, int) else name for name, d in named.items())
    specs = {
        "mask": TensorSpec.mask(height, width, batch=batch),
        "logits": TensorSpec("logits", "float32", (shape[0], len(CLASSES), *shape[1:])),
    }
    return image, tuple(specs[name] for name in outputs)
