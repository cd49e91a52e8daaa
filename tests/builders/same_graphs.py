"""Hashes of the 12 models' graphs, the same on every machine. As a script, records them in graphs.json:

    python tests/builders/same_graphs.py

Export folds weights into one another. The order of such a sum, and so its last bit, is up to the processor and its
BLAS. The weights here are small whole numbers times powers of two, so that every sum is exact in any order:

- In float32, the value bias through an attention's output projection: up to 1024 products of two 5-bit numbers.
- In float64, the composed convolutions of the FPN and Winograd's kernels: below 2^45 of their smallest step.
- BatchNorm's variance is a power of 4 less eps, rounded to float32. That puts its scale within 2^-26 of a number of few
  bits, so that folded weights, rounded to float32, have few bits as well.

All else is one rounded operation a value, which IEEE 754 fixes. It does not fix powers and logarithms, so the plan of
the INT8 graphs is one without SmoothQuant. Ranges are made up, because a calibration's are not the same everywhere.

A file names no version, date or path, but the libraries that write it have a say in it: constraints.txt pins them.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from twins_trt.builders.export import DynamicDim, ExportOptions, export_graph
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.export.fpn import BATCH_NORM_EPS
from twins_trt.builders.plan.precision_plan import uniform_plan
from twins_trt.builders.quantize import QuantizedGraphs
from twins_trt.calib import CalibrationOptions, Ranges
from twins_trt.calib.ranges import TensorRange
from twins_trt.files import sha256_of
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.segmentor import Segmentor

RECORDED = Path(__file__).with_name("graphs.json")
CLASSES = 4
LEVEL = "int8-linear+conv"


@dataclass(frozen=True)
class Graph:
    """options: of the export; of an INT8 graph, of the FP32 graph that it is made from."""

    options: ExportOptions
    int8: bool = False


# Stages of 16 × 24 to 2 × 3: windows are padded on both sides, maps double, and Winograd takes all but the odd one.
GRAPHS = {
    "fp32": Graph(ExportOptions(64, 96)),
    "fp32 for a CPU": Graph(ExportOptions(64, 96, target="cpu")),
    "fp16": Graph(ExportOptions(64, 96, precision="fp16")),
    "int8": Graph(ExportOptions(64, 96, opset=20), int8=True),
}
OF_SMALL_MODELS = {  # each family with each head; the same code writes them for the others
    "fp16 of any size": Graph(
        ExportOptions(
            DynamicDim(32, 64, 96),
            DynamicDim(32, 96, 128),
            DynamicDim(1, 1, 2),
            precision="fp16",
            outputs=("mask", "logits"),
        )
    ),
    "fp16 of odd maps": Graph(ExportOptions(72, 112, precision="fp16", input="float32")),  # 18 × 28, 9 × 14, 5 × 7
    "int8 for a CPU": Graph(ExportOptions(64, 96, opset=20, target="cpu"), int8=True),
}


def is_small(name: str) -> bool:
    """Whether a model is the smallest of its family and head."""
    return get_spec(name).variant == "s"


def graphs_of(name: str) -> dict[str, Graph]:
    """The graphs of a model whose hashes are recorded."""
    return GRAPHS | OF_SMALL_MODELS if is_small(name) else GRAPHS


def exact_model(name: str) -> Segmentor:
    """A zoo model with `exact_array` for weights."""
    with torch.device("meta"):  # without torch's own random weights, which take longer than these
        model = build_model(name, CLASSES)
    values = {key: torch.from_numpy(exact_array(key, tuple(value.shape))) for key, value in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    return model


def exact_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor called `key`: float32, whole numbers from -16 to 15 times 2^-7; int64 for a batch counter.

    Outputs of a weight are divided by 1, 2, 4 and 8 in turn, so that their INT8 scales differ.
    """
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return np.resize(np.array([1, 4, 0.25]) - BATCH_NORM_EPS, shape).astype(np.float32)
    count = math.prod(shape)
    words = np.random.Philox(key=np.frombuffer(_digest(key)[:16], "<u8")).random_raw(-(-count // 8))
    values = (words.astype("<u8").view(np.int8)[:count] >> 3).reshape(shape) * np.float32(2**-7)
    if len(shape) > 1:
        values *= np.resize(np.float32([1, 1 / 2, 1 / 4, 1 / 8]), (shape[0], *[1] * (len(shape) - 1)))
    return values


def hashes(model: Segmentor, folder: Path) -> dict[str, str]:
    """sha256 of the file of each of a model's graphs. folder: where the files lie, one at a time, until hashed."""
    path = folder / "graph.onnx"
    found = {}
    for kind, graph in graphs_of(model.spec.name).items():
        if graph.int8:
            write_int8(model, path, graph.options)
        else:
            export_graph(model, path, graph.options)
        found[kind] = sha256_of(path)
        path.unlink()
    return found


def write_int8(model: Segmentor, path: Path, export: ExportOptions) -> None:
    """The INT8 graph of the uniform plan. The range of a tensor follows from its name."""
    options = CalibrationOptions()
    ranges = {}
    for tensor in build_graph(model, export)[0].tensors():
        largest = 1 + _digest(tensor)[0] / 16  # exact in float32
        ranges[tensor] = TensorRange(-largest, largest, dict.fromkeys(options.observers, largest))
    made_up = Ranges(graph_sha256="", data_key="", settings=options, images=0, collected_with="", ranges=ranges)
    graphs = QuantizedGraphs(model, export, made_up)
    graphs.write(uniform_plan(graphs.sites, LEVEL, model=model.spec.name), path)


def recorded() -> dict[str, dict[str, str]]:
    """What graphs.json holds: sha256 by model and graph."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: hashes(exact_model(name), Path(scratch)) for name in list_models()}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
