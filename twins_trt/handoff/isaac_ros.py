"""Isaac ROS: a launch file that joins its image encoder, its TensorRT node and a node that turns masks into images.

The encoder gives float32 planes of [0, 1] values, normalized, so the graph has to take float32 planes. isaac_ros_unet's
decoder takes int32 [N, H, W, 1] or probabilities [N, H, W, C]; the graph's mask is uint8 [N, H, W], so the hand-off
brings a decoder of its own, which publishes on the same topics.
Source: the Isaac ROS pages on isaac_ros_dnn_image_encoder, isaac_ros_tensor_rt and isaac_ros_unet, and the nodes' code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.handoff import shipped
from twins_trt.handoff.engines import one_plan, unfit
from twins_trt.handoff.folder import Handoff, HandoffOptions, readme_notes

if TYPE_CHECKING:
    from twins_trt.data.preprocessing import Size
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import Manifest

LAUNCH, DECODER = "twins_launch.py", "mask_decoder.py"


def plan(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The launch file, the decoder, the engine and the numbers they need."""
    options.refuse("name", "max_batch", "instances", "queue_delay", tool="isaac-ros")
    size = _check(bundle)
    files, notes = one_plan(bundle, options.engine, tool="Isaac ROS", plan="model.plan")
    folder = Path(shipped.__path__[0])
    files |= {name: folder / name for name in (LAUNCH, DECODER)}
    files["model.json"] = (json.dumps(model_facts(bundle.manifest, size), indent=2, ensure_ascii=False) + "\n").encode()
    files["README.md"] = _readme(bundle.manifest, notes).encode()
    return Handoff("isaac-ros", bundle, files, tuple(notes))


def model_facts(manifest: Manifest, size: Size) -> dict[str, object]:
    """What launch file and decoder read. mean, std: of values in [0, 1], as the encoder takes them."""
    preprocessing = manifest.interface.preprocessing
    return {
        "size": list(size),
        "input": manifest.interface.image.name,
        "output": manifest.interface.outputs[0].name,
        "mean": [value / 255 for value in preprocessing.mean],
        "std": [value / 255 for value in preprocessing.std],
        "classes": list(manifest.interface.classes),
        "palette": [list(colour) for colour in manifest.interface.palette],
    }


def _check(bundle: Bundle) -> Size:
    """The graph's (height, width). Raises BundleError with all that does not fit and one command that mends it."""
    manifest = bundle.manifest
    faults = {}
    if manifest.interface.image.dtype != "float32":
        faults["--input"] = (
            f"takes {manifest.interface.image.dtype}, the image encoder gives float32 planes",
            "float32",
        )
    if [spec.name for spec in manifest.interface.outputs] != ["mask"]:
        faults["--outputs"] = (
            f"gives {', '.join(spec.name for spec in manifest.interface.outputs)}, not just a mask",
            "mask",
        )
    if manifest.interface.batch_limits[0] != 1:
        faults["--batch"] = (f"takes {manifest.interface.batch_limits[0]} images at a time, a camera gives one", "1")
    if manifest.interface.size is None:
        faults["--size"] = ("has a dynamic size, the image encoder needs one", "512x512")
    if faults or manifest.interface.size is None:
        raise unfit(bundle, faults)
    return manifest.interface.size


def _readme(manifest: Manifest, notes: list[str]) -> str:
    return f"""# {manifest.model}, for Isaac ROS

Needs the packages `isaac_ros_dnn_image_encoder` and `isaac_ros_tensor_rt`.

    ros2 launch ./{LAUNCH} input_image_width:=1920 input_image_height:=1080 image:=/image camera_info:=/camera_info

{readme_notes(notes)}
- Images are stretched to the graph's size; masks have that size.
- `/unet/raw_segmentation_mask` (mono8) holds class indices, `/unet/colored_segmentation_mask` (rgb8) their colours, on
  the topics and in the encodings of isaac_ros_unet. Its own decoder cannot read a uint8 mask; `{DECODER}` does.
"""
