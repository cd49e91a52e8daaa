"""Isaac ROS: a launch file that joins its image encoder, its TensorRT node and a node that turns masks into images.

The encoder gives normalized float32 planes of values in [0, 1], so the graph has to take float32 planes. The decoder of
isaac_ros_unet takes int32 [N, H, W, 1] or probabilities [N, H, W, C], but the graph's mask is uint8 [N, H, W]. So the
hand-off has its own decoder, which publishes on the same topics.
Source: the Isaac ROS pages on isaac_ros_dnn_image_encoder, isaac_ros_tensor_rt and isaac_ros_unet, and the nodes' code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.handoff import shipped
from twins_trt.handoff.engines import refuse_cpu_graph, single_engine, unfit
from twins_trt.handoff.folder import Handoff, HandoffOptions, readme_notes

if TYPE_CHECKING:
    from twins_trt.data.preprocessing import Size
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.runtime.bundle import Bundle

LAUNCH, DECODER = "twins_launch.py", "mask_decoder.py"


def resolve(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The launch file, the decoder, the engine and the numbers that they need."""
    options.refuse("name", "max_batch", "instances", "queue_delay", tool="isaac-ros")
    size = _check(bundle)
    files, notes = single_engine(bundle, options.engine, tool="Isaac ROS", file="model.plan")
    folder = Path(shipped.__path__[0])
    files |= {name: folder / name for name in (LAUNCH, DECODER)}
    facts = model_facts(bundle.interface, size)
    files["model.json"] = (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()
    files["README.md"] = _readme(bundle.manifest.model, notes).encode()
    return Handoff("isaac-ros", bundle, files, tuple(notes))


def model_facts(interface: GraphInterface, size: Size) -> dict[str, object]:
    """The values that launch file and decoder read.

    encoding: of the images that the encoder normalizes, in the network's order of channels. mean, std: in this order,
    of values in [0, 1], as the encoder takes them.
    """
    preprocessing = interface.preprocessing
    return {
        "size": list(size),
        "input": interface.image.name,
        "output": interface.outputs[0].name,
        "encoding": f"{preprocessing.channels}8",
        "mean": [value / 255 for value in preprocessing.mean],
        "std": [value / 255 for value in preprocessing.std],
        "classes": list(interface.classes),
        "palette": [list(colour) for colour in interface.palette],
    }


def _check(bundle: Bundle) -> Size:
    """The graph's (height, width). Raises BundleError with every fault and one command that fixes them all; a graph for
    CPUs has to be built anew first."""
    refuse_cpu_graph(bundle, tool="Isaac ROS")
    interface = bundle.interface
    dtype, outputs, batch = interface.image.dtype, [spec.name for spec in interface.outputs], interface.batch_limits[0]
    faults = {}
    if dtype != "float32":
        faults["--input"] = (f"takes {dtype}, the image encoder gives float32 planes", "float32")
    if outputs != ["mask"]:
        faults["--outputs"] = (f"gives {', '.join(outputs)}, not just a mask", "mask")
    if batch != 1:
        faults["--batch"] = (f"takes {batch} images at a time, a camera gives one", "1")
    if interface.size is None:
        faults["--size"] = ("has a dynamic size, the image encoder needs one", "512x512")
    if faults or interface.size is None:
        raise unfit(bundle, faults)
    return interface.size


def _readme(model: str, notes: list[str]) -> str:
    return f"""# {model}, for Isaac ROS

Needs the packages `isaac_ros_dnn_image_encoder` and `isaac_ros_tensor_rt`.

    ros2 launch ./{LAUNCH} input_image_width:=1920 input_image_height:=1080 image:=/image camera_info:=/camera_info

{readme_notes(notes)}
- Images are stretched to the graph's size; masks have that size.
- `/unet/raw_segmentation_mask` (mono8) holds class indices, `/unet/colored_segmentation_mask` (rgb8) their colours, on
  the topics and in the encodings of isaac_ros_unet. Its own decoder cannot read a uint8 mask; `{DECODER}` does.
"""
