"""Exports mmsegmentation's own Twins models unchanged: the baseline for the counts and times of our graphs.

It runs in a virtual environment of its own, because mmsegmentation pins old packages; nothing else here needs it:

    pip install torch mmsegmentation==1.2.2 mmcv-lite==2.1.0 mmengine timm ftfy regex onnx onnxscript
    python benchmarks/mmseg_export.py twins_svt-s_fpn --size 512x512 --out baseline

writes `baseline/twins_svt-s_fpn.onnx` (float32) and `baseline/twins_svt-s_fpn.fp16.onnx`. Input `image`: normalized
RGB [1, 3, H, W]; output `logits` [1, classes, H/4, W/4].

torch's dynamo exporter is the default: the TorchScript one refuses UPerNet's adaptive pools (512x512 gives maps that 3
and 6 do not divide). Opset 18 writes GELU with Erf; opset 20 has a Gelu operator, which TensorRT-RTX fuses more often.

The FP16 file is the float32 one with every float32 tensor, constant and cast turned into float16, by `to_fp16` below.
mmsegmentation under `.half()` cannot be exported: its attention mask stays float32.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

HEADS = {"fpn": "fpn_fpnhead", "upernet": "uperhead"}


class _NoCompiledOps(types.ModuleType):
    """Stands in for mmcv's compiled extension: its names can be imported, and calling one says what is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any) -> None:
            raise RuntimeError(f"mmcv's compiled op {name} is not installed")

        return absent


def allow_cpu_only_install() -> None:
    """Lets mmsegmentation import beside mmcv-lite and a torchvision without compiled ops: Twins uses neither."""
    if importlib.util.find_spec("mmcv._ext") is None:
        extension = _NoCompiledOps("mmcv._ext")
        extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = extension
    register = torch.library.register_fake

    def register_unless_torchvision(op: Any, *arguments: Any, **named: Any) -> Any:
        if str(op).startswith("torchvision::"):
            return lambda function: function
        return register(op, *arguments, **named)

    torch.library.register_fake = register_unless_torchvision


def build_mmseg(name: str, num_classes: int) -> torch.nn.Module:
    """mmsegmentation's segmentor for one of our model names, randomly initialized (seed 0), in eval mode."""
    allow_cpu_only_install()
    import mmseg
    from mmengine import Config
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    _, backbone, head = name.split("_")
    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "twins"
    (path,) = folder.glob(f"twins_{backbone}_{HEADS[head]}_*.py")
    config = Config.fromfile(path).model
    config.pretrained = config.backbone.init_cfg = None
    for part in (config.decode_head, config.get("auxiliary_head")):
        if part:
            part.num_classes = num_classes
    torch.manual_seed(0)
    return MODELS.build(config).eval()


class Logits(torch.nn.Module):
    """The segmentor's raw forward: from the image to logits, without resize and argmax."""

    def __init__(self, segmentor: torch.nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        forward: Any = self.segmentor._forward
        return forward(image)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph in which every float32 tensor is float16, except for the scales of Resize."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    keep = {name for node in half.graph.node if node.op_type == "Resize" for name in node.input[1:3]}

    def convert(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            limit = float(np.finfo(np.float16).max)
            values = np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for tensor in half.graph.initializer:
        if tensor.name not in keep:
            convert(tensor)
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and not keep.intersection(node.output):
                convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in keep:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", help="for example twins_svt-s_upernet")
    parser.add_argument("--size", default="512x512", help="HEIGHTxWIDTH (default 512x512)")
    parser.add_argument("--out", type=Path, required=True, help="folder for MODEL.onnx and MODEL.fp16.onnx")
    parser.add_argument("--checkpoint", type=Path, help="weights in mmsegmentation's format (default: random, seed 0)")
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--opset", type=int, default=18)
    arguments = parser.parse_args()
    height, width = (int(extent) for extent in arguments.size.lower().split("x"))
    segmentor = build_mmseg(arguments.model, arguments.num_classes)
    if arguments.checkpoint:
        loaded = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
        segmentor.load_state_dict({key: value.float() for key, value in loaded.get("state_dict", loaded).items()})
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.model}.onnx"
    export: Any = torch.onnx.export  # which arguments it takes depends on the exporter
    dynamo = arguments.exporter == "dynamo"
    with torch.no_grad():
        export(
            Logits(segmentor),
            (torch.zeros(1, 3, height, width),),
            str(path),
            dynamo=dynamo,
            opset_version=arguments.opset,
            input_names=["image"],
            output_names=["logits"],
            **({"external_data": False} if dynamo else {}),
        )
    model = onnx.load(path)
    how = {
        "exporter": arguments.exporter,
        "opset": arguments.opset,
        "torch": torch.__version__,
        "size": [height, width],
    }
    for each in (model, half := to_fp16(model)):
        entry = each.metadata_props.add()
        entry.key, entry.value = "mmseg_export", json.dumps(how)
    onnx.save(model, path)
    onnx.save(half, path.with_suffix(".fp16.onnx"))
    print(f"{path} and {path.with_suffix('.fp16.onnx').name}: {len(model.graph.node)} nodes, {json.dumps(how)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
