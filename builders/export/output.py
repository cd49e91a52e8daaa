"""From the head's features to logits and to a mask at the image's size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.backbone import Size, Weights, to_tokens
from twins_trt.builders.export.dims import Dim, known
from twins_trt.builders.export.writer import GraphWriter, Tensor

NEVER = -6e4  # logit of a class that does not exist; still finite in float16
CLASS_MULTIPLE = 8  # matrix products are fastest, and copies fewest, at multiples of 8 channels
ISLAND = "logits are compared: rounding them to FP16 makes ties, and a tie goes to the lower class"


def write_logits(w: GraphWriter, weights: Weights, x: Tensor, *, classes: int, channels: int, batch: Dim, size: Size) -> Tensor:
    """The classifier as a matrix product. x: [B, C, h, w] -> tokens [B, h·w, classes rounded up to 8]."""
    padded = -(-classes // CLASS_MULTIPLE) * CLASS_MULTIPLE
    weight = np.zeros((padded, channels), np.float32)
    weight[:classes] = weights["decode_head.conv_seg.weight"][:, :, 0, 0]
    bias = np.full(padded, NEVER, np.float32)
    bias[:classes] = weights["decode_head.conv_seg.bias"]
    with w.scope("head"):
        return w.linear(to_tokens(w, x, batch, size, channels), weight, bias, "classifier")


def logits_output(w: GraphWriter, logits: Tensor, *, classes: int, batch: Dim, size: Size) -> Tensor:
    """tokens [B, h·w, padded classes] -> float32 [B, classes, h, w]."""
    with w.scope("output"):
        x = w.transpose(w.slice(logits, [0], [classes], [2], "classes"), (0, 2, 1), "logits_map")
        x = w.reshape(x, [batch, classes, *size], "logits")
        with w.float32_island("the logits output is float32"):
            return w.op("Identity", [x], "logits_out")


def mask_output(w: GraphWriter, logits: Tensor, *, classes: int, batch: Dim, size: Size, image_size: Size, forms: str) -> Tensor:
    """tokens [B, h·w, padded classes] -> uint8 [B, H, W]: logits resized to the image, the first largest class."""
    exact = known(*size, *image_size) and all(big == 4 * small for big, small in zip(image_size, size, strict=True))  # type: ignore[operator]
    with w.scope("output"):
        padded = -(-classes // CLASS_MULTIPLE) * CLASS_MULTIPLE
        if exact and forms == "gpu":
            return _polyphase_argmax(w, logits, padded, batch, size, image_size)
        x = w.reshape(w.transpose(logits, (0, 2, 1), "logits_map"), [batch, padded, *size])
        with w.float32_island(ISLAND):
            x = w.resize(x, image_size, "resize", batch=batch, channels=padded)
            x = w.op("ArgMax", [x], "argmax", attrs={"axis": 1, "keepdims": 0}, dtype=np.int64)
            return w.op("Cast", [x], "mask_out", attrs={"to": 2}, dtype=np.uint8)


def phase_weights() -> NDArray:
    """float32 [3, 4]: weight of the neighbours at -1, 0, 1 for each of the four output phases of a bilinear ×4."""
    offsets = (np.arange(4) + 0.5) / 4 - 0.5  # -0.375, -0.125, 0.125, 0.375
    return np.maximum(0, 1 - np.abs(offsets - np.arange(-1, 2)[:, None])).astype(np.float32)


def _polyphase_argmax(w: GraphWriter, logits: Tensor, classes: int, batch: Dim, size: Size, image_size: Size) -> Tensor:
    """Resize ×4 and argmax as sums of nine shifted slices, which compile to one kernel that never stores the
    full-size logits. Ties go to the lowest class, as torch's argmax."""
    height, width = size
    x = w.reshape(logits, [batch, height, width, classes], "rows")
    x = w.pad(x, (0, 1, 1, 0), (0, 1, 1, 0), mode="edge", name="edge")
    phases = phase_weights()
    with w.float32_island(ISLAND):
        x = w.op("Cast", [x], "float", attrs={"to": 1}, dtype=np.float32)
        total: Tensor | None = None
        for dy in range(3):
            for dx in range(3):
                part = w.slice(x, [dy, dx], [height + dy, width + dx], [1, 2], f"shift.{dy}{dx}")
                part = w.reshape(part, [batch, height, 1, width, 1, classes])
                weight = (phases[dy][:, None] * phases[dx][None, :]).reshape(1, 1, 4, 1, 4, 1)
                part = w.op("Mul", [part, w.const(weight)], f"weighted.{dy}{dx}")
                total = part if total is None else w.add(total, part)
        assert total is not None
        rank = w.const(np.arange(classes, 0, -1, dtype=np.float32), "rank")  # larger for lower classes
        best = _reduce_max(w, total, "best")
        winner = w.op("Where", [w.op("Equal", [total, best], dtype=np.bool_), rank, w.const(np.float32(0))], "winner", dtype=np.float32)
        index = w.op("Sub", [w.const(np.float32(classes)), _reduce_max(w, winner, "first")], "index")
        index = w.reshape(index, [batch, *image_size])
        return w.op("Cast", [index], "mask_out", attrs={"to": 2}, dtype=np.uint8)


def _reduce_max(w: GraphWriter, x: Tensor, name: str) -> Tensor:
    if w.opset >= 18:
        return w.op("ReduceMax", [x, w.const(np.array([-1], np.int64))], name, attrs={"keepdims": 1})
    return w.op("ReduceMax", [x], name, attrs={"axes": [-1], "keepdims": 1})
