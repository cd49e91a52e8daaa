"""From the head's features to logits and to a mask at the image's size."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from twins_trt.builders.export.dims import MapShape, Size, known
from twins_trt.builders.export.interpolation import upsample_phases
from twins_trt.builders.export.tokens import Weights
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.models.segmentor import threshold_logit

NEVER = -6e4  # logit of a class that does not exist; still finite in float16
CLASS_MULTIPLE = 8  # matrix products are fastest, and copies fewest, at multiples of 8 channels
FOREGROUND = 1  # the class of a head with one logit; 0 is the background
ISLAND = "logits are compared: rounding them to FP16 makes ties, and a tie goes to the lower class"


def write_logits(
    w: GraphWriter, weights: Weights, x: Tensor, shape: MapShape, *, classes: int, threshold: float | None = None
) -> tuple[Tensor, MapShape]:
    """The classifier. x: [B, C, h, w], of the given shape -> logits [B, classes, h, w] and their shape.

    threshold: of a head with one logit. Its background is a class of its own, whose logit is the threshold's wherever
    it is: the larger one is then what `sigmoid(logit) > threshold` says.
    For a GPU the classes are rounded up to a multiple of 8; the added ones never win.
    """
    padded = -(-classes // CLASS_MULTIPLE) * CLASS_MULTIPLE if w.target == "gpu" else classes
    logits_shape = shape.of(padded)
    weight = np.zeros((padded, shape.channels, 1, 1), np.float32)
    first = 0 if threshold is None else FOREGROUND
    weight[first:classes] = weights["decode_head.conv_seg.weight"]
    bias = np.full(padded, NEVER, np.float32)
    bias[first:classes] = weights["decode_head.conv_seg.bias"]
    if threshold is not None:
        bias[:first] = threshold_logit(threshold)
    with w.scope("head"):
        if w.target == "gpu":
            return w.conv(x, weight, bias, "classifier"), logits_shape
        # As a product from the left, so that ONNX Runtime leaves its blocked layout here and not behind the resize,
        # where the map is sixteen times as large.
        flat = w.reshape(x, [shape.batch, shape.channels, shape.tokens], "flat")  # [B, C, h · w]
        out = w.op("MatMul", [w.const(weight[:, :, 0, 0], "classifier.weight"), flat], "classifier")
        out = w.add(out, w.const(bias[:, None], "classifier.bias"), "classifier.add")
        out = w.reshape(out, [shape.batch, padded, *shape.size], "classifier.map")  # [B, classes, h, w]
        return out, logits_shape


def logits_output(w: GraphWriter, logits: Tensor, shape: MapShape, *, classes: int) -> Tensor:
    """[B, padded classes, h, w], of the given shape -> float32 [B, classes, h, w]."""
    with w.scope("output"):
        x = logits if shape.channels == classes else w.slice(logits, [0], [classes], [1], "classes")
        with w.float32_island("the logits output is float32"):
            return w.op("Identity", [x], "logits_out")


def probability_output(w: GraphWriter, logits: Tensor, shape: MapShape, *, image_size: Size) -> Tensor:
    """[B, 2 or more, h, w], of the given shape -> float32 [B, H, W]: sigmoid of the resized logit of the foreground."""
    with w.scope("output"):
        x = w.slice(logits, [FOREGROUND], [FOREGROUND + 1], [1], "foreground")
        with w.float32_island("probabilities are float32"):
            x = w.resize(x, MapShape(shape.batch, 1, image_size), "probability.resize")
            x = w.op("Sigmoid", [x], "sigmoid")
            return w.reshape(x, [shape.batch, *image_size], "probability_out")


def mask_output(w: GraphWriter, logits: Tensor, shape: MapShape, *, image_size: Size) -> Tensor:
    """[B, padded classes, h, w], of the given shape -> uint8 [B, H, W].

    Logits are resized to the image; the first of the largest classes wins.
    """
    size = shape.size
    exact = known(*size, *image_size) and image_size == (4 * size[0], 4 * size[1])
    with w.scope("output"):
        if exact and w.target == "gpu":
            return _polyphase_argmax(w, logits, shape, image_size)
        channels_last = w.target == "cpu"  # ONNX Runtime compares classes twice as fast where they lie side by side
        x = w.transpose(logits, (0, 2, 3, 1), "channels_last") if channels_last else logits
        resized = [*image_size, shape.channels] if channels_last else [shape.channels, *image_size]
        with w.float32_island(ISLAND):
            attrs = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            empty = gs.Variable.empty()
            x = w.op("Resize", [x, empty, empty, w.size([shape.batch, *resized])], "resize", attrs=attrs)
            axis = 3 if channels_last else 1
            x = w.op("ArgMax", [x], "argmax", attrs={"axis": axis, "keepdims": 0}, dtype=np.int64)
            return w.op("Cast", [x], "mask_out", attrs={"to": 2}, dtype=np.uint8)


def _polyphase_argmax(w: GraphWriter, logits: Tensor, shape: MapShape, image_size: Size) -> Tensor:
    """Resize ×4 and argmax in one kernel that never stores the full-size logits. Ties go to the lowest class."""
    classes = shape.channels
    x = w.transpose(logits, (0, 2, 3, 1), "channels_last")  # [B, h, w, classes]
    with w.float32_island(ISLAND):
        total = upsample_phases(w, x, 4, shape)  # [B, h, 4, w, 4, classes]
        rank = w.const(np.arange(classes, 0, -1, dtype=np.float32), "rank")  # larger for lower classes
        is_best = w.op("Equal", [total, _reduce_max(w, total, "best")], "is_best", dtype=np.bool_)
        winner = w.op("Where", [is_best, rank, w.const(np.float32(0))], "winner", dtype=np.float32)
        index = w.op("Sub", [w.const(np.float32(classes)), _reduce_max(w, winner, "first")], "index")
        index = w.reshape(index, [shape.batch, *image_size])  # [B, H, W]
        return w.op("Cast", [index], "mask_out", attrs={"to": 2}, dtype=np.uint8)


def _reduce_max(w: GraphWriter, x: Tensor, name: str) -> Tensor:
    if w.opset >= 18:
        return w.op("ReduceMax", [x, w.const(np.array([-1], np.int64))], name, attrs={"keepdims": 1})
    return w.op("ReduceMax", [x], name, attrs={"axes": [-1], "keepdims": 1})
