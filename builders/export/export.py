"""Exports a model: input normalization, backbone, head and output, then precision, metadata and the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from twins_trt.builders.export.backbone import BackboneSource, write_backbone
from twins_trt.builders.export.dims import MapShape
from twins_trt.builders.export.fpn import write_fpn
from twins_trt.builders.export.options import DynamicDim, ExportOptions, GraphInfo
from twins_trt.builders.export.output import logits_output, mask_output, probability_output, write_logits
from twins_trt.builders.export.precision import to_fp16
from twins_trt.builders.export.upernet import write_upernet
from twins_trt.builders.export.winograd import use_winograd
from twins_trt.builders.export.writer import GraphWriter, Tensor
from twins_trt.errors import ExportError
from twins_trt.files import whole_file

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

METADATA = "twins_trt"
FIRST_CONVOLUTION = "backbone.patch_embeds.0.projection.weight"
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9}  # the IR that came with each opset, so that old runtimes open the file
COARSE_LEVELS = {"gpu": 0, "cpu": 3}  # in UPerNet's fusion; benchmarks/cpu.py measured cpu, nothing measured gpu yet


def export_graph(
    model: Segmentor, path: str | Path, options: ExportOptions | None = None, *, to_quantize: bool = False
) -> GraphInfo:
    """Writes `model` as an ONNX file at `path`, whole or not at all, and returns the graph's facts.

    to_quantize: the graph will be calibrated, and keeps the convolutions that `quantize` looks for. Otherwise wide
    convolutions of an FP32 graph for a CPU become Winograd's form, which computes less (`export.winograd`).
    Raises `ExportError` where a weight does not fit the precision or the file cannot be written, `UsageError` for
    options that exclude each other.
    """
    options = options or ExportOptions()
    graph, info = build_graph(model, options)
    if options.target == "cpu" and options.precision == "fp32" and not to_quantize:
        use_winograd(graph)
    write_graph(graph, path, info)
    return info


def write_graph(graph: gs.Graph, path: str | Path, info: GraphInfo, *, precision: str | None = None) -> None:
    """Writes a graph of `build_graph` to a file, whole or not at all, with `info` in its metadata.

    precision: by default the options'; `int8` for a graph that was quantized since.
    Raises `ExportError` where the file cannot be written.
    """
    proto = graph_proto(graph)
    facts = {
        "model": info.model,
        "precision": precision or info.options.precision,
        "attentions": str(info.attentions),
        "info": info.to_json(),
    }
    onnx.helper.set_model_props(proto, {f"{METADATA}.{key}": value for key, value in facts.items()})
    try:
        with whole_file(Path(path)) as file:
            file.write(proto.SerializeToString())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}", "check the folder exists and has room") from error


def graph_proto(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as ONNX's own message, which runtimes read."""
    proto = gs.export_onnx(graph)
    proto.ir_version = IR_VERSIONS[graph.opset]
    proto.producer_name = "twins-trt"
    return proto


def read_info(path: str | Path) -> GraphInfo:
    """The facts that an exported graph carries. Raises `ExportError` where the file is no graph of this package."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # onnx raises protobuf's own, and OSError
        raise ExportError(
            f"{path} is not a readable ONNX file ({error})", "export it again: twins-trt export"
        ) from error
    facts = {prop.key: prop.value for prop in proto.metadata_props}
    if f"{METADATA}.info" not in facts:
        raise ExportError(f"{path} was not exported by twins-trt", "export it: twins-trt export MODEL --out FILE")
    try:
        return GraphInfo.from_json(facts[f"{METADATA}.info"])
    except (KeyError, TypeError, ValueError) as error:  # ValueError: no JSON, or UsageError
        raise ExportError(
            f"{path} was exported by another version of twins-trt ({error})", "export it again: twins-trt export"
        ) from error


def build_graph(model: Segmentor, options: ExportOptions) -> tuple[gs.Graph, GraphInfo]:
    """The graph in memory, and its facts. Raises `ExportError` and `UsageError` as `export_graph` does."""
    spec = model.spec
    options.check_model(spec, threshold=model.threshold)
    levels = options.upernet_levels
    if levels is None:
        levels = 0 if options.dynamic_size else COARSE_LEVELS[options.target]
    weights = {key: value.detach().float().cpu().numpy() for key, value in model.state_dict().items()}
    preprocessing = model.conventions.preprocessing
    if options.input == "uint8" and preprocessing.channels == "bgr":
        weights[FIRST_CONVOLUTION] = np.ascontiguousarray(weights[FIRST_CONVOLUTION][:, ::-1])  # pixels are RGB

    w = GraphWriter(options.opset, target=options.target)
    image, image_shape, mask_shape = _write_input(w, options, preprocessing.statistics)
    stages = write_backbone(w, BackboneSource(spec, weights, model.padding), image, image_shape)
    if spec.head == "fpn":
        features, shape = write_fpn(w, weights, stages, channels=spec.fpn_channels)
    else:
        features, shape = write_upernet(w, weights, stages, channels=spec.uper_channels, levels=levels)
    classes = model.num_classes
    logits, shape = write_logits(w, weights, features, shape, classes=classes, threshold=model.threshold)
    for output in options.outputs:
        if output == "mask":
            x = mask_output(w, logits, shape, image_size=image_shape.size)
            w.output(x, "mask", mask_shape)
        elif output == "probability":
            x = probability_output(w, logits, shape, image_size=image_shape.size)
            w.output(x, "probability", mask_shape)
        else:
            x = logits_output(w, logits, shape, classes=classes)
            quarter = [-(-side // 4) if isinstance(side, int) else f"{side}/4" for side in mask_shape[1:]]
            w.output(x, "logits", [mask_shape[0], classes, *quarter])
    w.graph.cleanup().toposort()
    if options.precision == "fp16":
        to_fp16(w.graph, w.islands)
    w.graph.name = spec.name
    info = GraphInfo(
        model=spec.name,
        num_classes=model.num_classes,
        padding=model.padding,
        attentions=spec.attentions,
        options=options,
        islands=w.islands,
        mean=preprocessing.mean,
        std=preprocessing.std,
        channels=preprocessing.channels,
        threshold=model.threshold,
    )
    return w.graph, info


def _write_input(
    w: GraphWriter, options: ExportOptions, statistics: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[Tensor, MapShape, list[int | str]]:
    """The input and its normalization. statistics: mean and std of red, green and blue, in grey levels.

    Returns the normalized image [B, 3, H, W], its shape, and the mask's shape [B, H, W] as the file states it.
    """
    names = {"batch": "N", "height": "H", "width": "W"}
    shape = [
        name if isinstance(getattr(options, field), DynamicDim) else getattr(options, field)
        for field, name in names.items()
    ]
    if options.input == "uint8":
        image = w.input("image", np.uint8, [*shape, 3])
        axes = (0, 1, 2)
    else:
        image = w.input("image", np.float32, [shape[0], 3, *shape[1:]])
        axes = (0, 2, 3)
    with w.scope("input"):
        batch, height, width = (
            w.axis(image, axis) if isinstance(side, str) else side for axis, side in zip(axes, shape, strict=True)
        )
        if options.input == "uint8":
            mean, std = (np.array(each, np.float32).reshape(1, 3, 1, 1) for each in statistics)
            with w.float32_island("pixels up to 255 minus a mean: exact in float32, and fused into a copy either way"):
                # Transposed before the arithmetic, because ONNX Runtime is slow along a last axis of 3, and after the
                # cast, because TensorRT-RTX cannot compile a uint8 transpose without a GPU.
                image = w.op("Cast", [image], "float", attrs={"to": 1}, dtype=np.float32)
                image = w.transpose(image, (0, 3, 1, 2), "nchw")
                image = w.op("Mul", [w.op("Sub", [image, w.const(mean)], "mean"), w.const(1 / std)], "std")
    return image, MapShape(batch, 3, (height, width)), shape
