"""DeepStream: the configuration of the inference element that can feed the bundle's graph.

Gst-nvinferserver hands pixels to Triton in any type and order, so it can feed a graph that takes uint8 pixels, and it
gives the mask. Gst-nvinfer always writes float planes into the engine's input and has no uint8 tensors. It can feed a
graph that takes normalized planes and gives logits, but not exactly: it has one scale, normalization has three.
Source: the pages on Gst-nvinferserver and Gst-nvinfer of the DeepStream documentation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError
from twins_trt.handoff import shipped
from twins_trt.handoff.engines import refuse_cpu_graph, single_engine, unfit
from twins_trt.handoff.folder import Handoff, HandoffOptions, readme_notes
from twins_trt.handoff.prototext import Symbol, prototext
from twins_trt.handoff.triton_server import max_batch_size, model_files, model_name

if TYPE_CHECKING:
    from twins_trt.data.preprocessing import Preprocessing, Size
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.runtime.bundle import Bundle

CONFIG = "config_infer.txt"
ENGINE = "model.plan"

# Values of the configurations.
BILINEAR = 1  # NvBufSurfTransformInter_Bilinear
WHOLE_FRAMES = 1
PLANES, RAW_TENSORS = 0, 100
COLOURS = {"rgb": 0, "bgr": 1}  # model-color-format; offsets are in this order


def resolve(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The element's configuration, the model, the labels and a probe that reads the masks."""
    size = _check(bundle)
    element = _with_nvinferserver if bundle.interface.layout == "NHWC" else _with_nvinfer
    return element(bundle, size, options)


def _check(bundle: Bundle) -> Size:
    """The graph's (height, width). Raises BundleError if neither element can feed it, and for a graph for CPUs."""
    refuse_cpu_graph(bundle, tool="DeepStream")
    interface = bundle.interface
    planes = interface.layout == "NCHW"
    for_nvinfer = planes and [spec.name for spec in interface.outputs] == ["logits"]
    faults = {}
    if planes and not for_nvinfer:
        faults["--input"] = ("gives a mask from planes, Gst-nvinfer knows no uint8 tensors", "uint8")
    if not for_nvinfer and isinstance(interface.image.shape[0], int):
        faults["--batch"] = ("takes a fixed batch, Gst-nvinferserver fills batches as frames come", "1:4:16")
    if interface.output("mask") is None and interface.output("logits") is None:
        faults["--outputs"] = ("gives no mask, which DeepStream's probe reads", "mask")
    if interface.size is None:
        faults["--size"] = ("has a dynamic size, DeepStream scales every frame to one", "512x512")
    if faults or interface.size is None:
        raise unfit(bundle, faults)
    return interface.size


def _with_nvinferserver(bundle: Bundle, size: Size, options: HandoffOptions) -> Handoff:
    largest = max_batch_size(bundle.manifest, options.max_batch)
    model, notes = model_files(bundle, options)
    files: dict[str, bytes | Path] = {f"models/{name}": content for name, content in model.items()}
    files[CONFIG] = prototext(nvinferserver_config(bundle.interface, model_name(bundle, options), largest)).encode()
    return _handoff(bundle, files, size=size, element="nvinferserver", largest=largest, notes=notes)


def nvinferserver_config(interface: GraphInterface, name: str, largest: int) -> dict[str, object]:
    """The messages of nvdsinferserver_plugin.proto, for prototext."""
    repository = {"root": "./models", "strict_model_config": True, "log_level": 1}
    infer = {
        "unique_id": 1,
        "gpu_ids": [0],
        "max_batch_size": largest,
        "backend": {
            "triton": {"model_name": name, "version": -1, "model_repo": repository},
            "output_mem_type": Symbol("MEMORY_TYPE_CPU"),  # where mask_probe.py reads it
        },
        "preprocess": {
            "network_format": Symbol("IMAGE_FORMAT_RGB"),  # pixels are RGB, whatever the network's own order is
            "tensor_order": Symbol("TENSOR_ORDER_NHWC"),
            "tensor_name": interface.image.name,
            "maintain_aspect_ratio": 0,
            "frame_scaling_filter": BILINEAR,
            "normalize": {"scale_factor": 1.0},  # the graph normalizes
        },
        "postprocess": {"labelfile_path": "labels.txt", "other": {}},
    }
    return {
        "infer_config": infer,
        "input_control": {"process_mode": Symbol("PROCESS_MODE_FULL_FRAME"), "interval": 0},
        "output_control": {"output_tensor_meta": True},
    }


def _with_nvinfer(bundle: Bundle, size: Size, options: HandoffOptions) -> Handoff:
    options.refuse("name", "instances", "queue_delay", tool="Gst-nvinfer")
    interface = bundle.interface
    low, high = interface.batch_limits
    largest = options.max_batch or high or low
    if not low <= largest <= (high or largest):
        raise BundleError(f"the graph takes {low} to {high} images at a time, not up to {largest}", bundle.rebuild)
    files, notes = single_engine(bundle, options.engine, tool="DeepStream", file=ENGINE)
    files[CONFIG] = nvinfer_config(interface, size, largest).encode()
    notes = [_scale_note(interface.preprocessing), *notes]
    return _handoff(bundle, files, size=size, element="nvinfer", largest=largest, notes=notes)


def nvinfer_config(interface: GraphInterface, size: Size, largest: int) -> str:
    """The [property] group, without an onnx-file.

    From one, nvinfer would build an engine of other precision without a warning.
    """
    height, width = size
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": WHOLE_FRAMES,
        "model-engine-file": ENGINE,
        "labelfile-path": "labels.txt",
        "batch-size": largest,
        "network-type": RAW_TENSORS,
        "output-tensor-meta": 1,
        "output-blob-names": interface.outputs[0].name,
        "infer-dims": f"3;{height};{width}",
        "network-input-order": PLANES,
        "model-color-format": COLOURS[interface.preprocessing.channels],
        "maintain-aspect-ratio": 0,
        "scaling-filter": BILINEAR,
        "net-scale-factor": f"{net_scale(interface.preprocessing):.9g}",
        "offsets": ";".join(f"{value:.9g}" for value in interface.preprocessing.mean),
    }
    return "[property]\n" + "".join(f"{key}={value}\n" for key, value in properties.items())


def net_scale(preprocessing: Preprocessing) -> float:
    """The one factor that is nearest to the three of the normalization: 1 / mean of the deviations."""
    return len(preprocessing.std) / sum(preprocessing.std)


def _scale_note(preprocessing: Preprocessing) -> str:
    worst = max(abs(net_scale(preprocessing) * std - 1) for std in preprocessing.std)
    if worst < 1e-6:
        return "normalization is exact: the channels share one deviation"
    return (
        f"net-scale-factor is one number for three channels, up to {100 * worst:.1f} % off the graph's normalization; "
        "a bundle built to take uint8 is exact"
    )


def _handoff(
    bundle: Bundle, files: dict[str, bytes | Path], *, size: Size, element: str, largest: int, notes: list[str]
) -> Handoff:
    """Adds what both elements need: labels, the probe, and a README that says how to run it."""
    interface = bundle.interface
    output = interface.output("mask") or interface.output("logits") or interface.outputs[0]
    model = {
        "size": list(size),
        "output": {"name": output.name, "dtype": output.dtype, "shape": list(output.shape[1:])},
        "classes": list(interface.classes),
        "palette": [list(colour) for colour in interface.palette],
    }
    files["labels.txt"] = "".join(f"{label}\n" for label in interface.classes).encode()
    files["model.json"] = (json.dumps(model, indent=2, ensure_ascii=False) + "\n").encode()
    files["mask_probe.py"] = Path(shipped.__path__[0]) / "mask_probe.py"
    files["README.md"] = _readme(bundle.manifest.model, element, size=size, largest=largest, notes=notes).encode()
    return Handoff("deepstream", bundle, files, tuple(notes))


def _readme(model: str, element: str, *, size: Size, largest: int, notes: list[str]) -> str:
    return f"""# {model}, for DeepStream ({element})

    gst-launch-1.0 uridecodebin uri=file:///video.mp4 ! mux.sink_0 \\
        nvstreammux name=mux batch-size=1 width={size[1]} height={size[0]} ! \\
        {element} config-file-path={CONFIG} ! fakesink

{readme_notes(notes)}
- Up to {largest} frames a batch: set nvstreammux's `batch-size` to the number of streams.
- DeepStream draws no semantic masks of raw tensors: `mask_probe.py` reads them in a pad probe.
"""
