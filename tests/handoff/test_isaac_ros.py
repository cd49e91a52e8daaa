"""Isaac ROS hand-offs: the launch file and the decoder run with stand-ins for ROS; the nodes' parameters by name."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_ins import ORIN, load_shipped, module
from tiny_graphs import CLASSES, PALETTE, MakeBundle

from twins_trt.data.preprocessing import normalized_planes
from twins_trt.errors import BundleError, UsageError
from twins_trt.handoff import HandoffOptions, resolve_handoff, write_handoff

# What the Isaac ROS documentation lists: parameters of TensorRTNode, arguments of dnn_image_encoder.launch.py.
TENSORRT_PARAMETERS = {
    "model_file_path",
    "engine_file_path",
    "force_engine_update",
    "input_tensor_names",
    "input_binding_names",
    "input_tensor_formats",
    "output_tensor_names",
    "output_binding_names",
    "output_tensor_formats",
    "verbose",
    "max_workspace_size",
    "dla_core",
    "max_batch_size",
    "enable_fp16",
    "relaxed_dimension_check",
    "num_blocks",
    "input_qos",
    "output_qos",
}
ENCODER_ARGUMENTS = {
    "input_image_width",
    "input_image_height",
    "network_image_width",
    "network_image_height",
    "image_mean",
    "image_stddev",
    "enable_padding",
    "input_qos",
    "output_qos",
    "num_blocks",
    "keep_aspect_ratio",
    "crop_mode",
    "input_encoding",
    "encoding_desired",
    "final_tensor_name",
    "dnn_image_encoder_namespace",
    "image_input_topic",
    "camera_info_input_topic",
    "tensor_output_topic",
    "attach_to_shared_component_container",
    "component_container_name",
}


class Recorded:
    """Anything of `launch`: keeps what it is made of."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.positional = positional
        self.__dict__.update(named)


def ros_launch(share: Path) -> list[ModuleType]:
    kinds = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "ExecuteProcess", "IncludeLaunchDescription"],
        "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["ComposableNodeContainer"],
        "launch_ros.descriptions": ["ComposableNode"],
        "ament_index_python": [],
    }
    made = [module(name, **{kind: type(kind, (Recorded,), {}) for kind in each}) for name, each in kinds.items()]
    find = {"get_package_share_directory": lambda package: str(share / package)}
    return [*made, module("ament_index_python.packages", **find)]


def exported(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    bundle = make_bundle(24, 32, dtype="float32", engines=(ORIN,))
    return write_handoff(resolve_handoff(bundle, "isaac-ros"), tmp_path / "isaac")


def test_the_launch_file(make_bundle: MakeBundle, tmp_path: Path) -> None:
    out = exported(make_bundle, tmp_path)
    launch = load_shipped(out / "twins_launch.py", *ros_launch(tmp_path / "share"))
    actions = launch.generate_launch_description().positional[0]
    kinds = {type(action).__name__: action for action in actions}
    (inference,) = kinds["ComposableNodeContainer"].composable_node_descriptions
    (parameters,) = inference.parameters
    assert set(parameters) <= TENSORRT_PARAMETERS
    assert Path(parameters["engine_file_path"]).read_text() == ORIN.file
    assert parameters["input_binding_names"] == ["image"] and parameters["output_binding_names"] == ["mask"]
    include = kinds["IncludeLaunchDescription"]
    arguments = dict(include.launch_arguments)
    assert set(arguments) <= ENCODER_ARGUMENTS
    assert (arguments["network_image_height"], arguments["network_image_width"]) == ("24", "32")
    assert [arguments["final_tensor_name"]] == parameters["input_tensor_names"]
    assert arguments["component_container_name"] == kinds["ComposableNodeContainer"].name
    assert (
        include.positional[0].positional[0].endswith("isaac_ros_dnn_image_encoder/launch/dnn_image_encoder.launch.py")
    )
    assert Path(kinds["ExecuteProcess"].cmd[1]).is_file()
    declared = {action.positional[0] for action in actions if type(action).__name__ == "DeclareLaunchArgument"}
    used = {value.positional[0] for value in arguments.values() if not isinstance(value, str)}
    assert declared == used


def test_the_encoder_normalizes_as_the_graph_expects(
    make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    """The encoder scales pixels to [0, 1], then subtracts mean and divides by stddev."""
    out = exported(make_bundle, tmp_path)
    launch = load_shipped(out / "twins_launch.py", *ros_launch(tmp_path))
    (include,) = (a for a in launch.generate_launch_description().positional[0] if hasattr(a, "launch_arguments"))
    arguments = dict(include.launch_arguments)
    mean, std = (np.array(ast.literal_eval(arguments[key])) for key in ("image_mean", "image_stddev"))
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    fed = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    preprocessing = make_bundle(dtype="float32").manifest.interface.preprocessing
    assert np.abs(fed - normalized_planes(pixels, preprocessing)).max() < 1e-5


class Node:
    """rclpy.node.Node: keeps what is published and logged."""

    def __init__(self, name: str) -> None:
        self.name, self.published, self.errors = name, {}, []  # type: ignore[var-annotated]

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        return SimpleNamespace(publish=lambda message: self.published.setdefault(topic, []).append(message))

    def create_subscription(self, kind: type, topic: str, callback: Any, depth: int) -> None:
        self.subscribed = (topic, callback)

    def get_logger(self) -> Any:
        return SimpleNamespace(error=self.errors.append)


def decoder_in(out: Path) -> Any:
    stand_ins = [
        module("rclpy"),
        module("rclpy.node", Node=Node),
        module("isaac_ros_tensor_list_interfaces"),
        module("isaac_ros_tensor_list_interfaces.msg", TensorList=SimpleNamespace),
        module("sensor_msgs"),
        module("sensor_msgs.msg", Image=SimpleNamespace),
    ]
    return load_shipped(out / "mask_decoder.py", *stand_ins).MaskDecoder()


def test_the_decoder_publishes_what_isaac_ros_unet_does(
    make_bundle: MakeBundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    node = decoder_in(exported(make_bundle, tmp_path))
    topic, callback = node.subscribed
    assert topic == "tensor_sub"
    mask = rng.integers(0, len(CLASSES), (24, 32), dtype=np.uint8)
    tensor = SimpleNamespace(
        name="mask", data_type=2, shape=SimpleNamespace(dims=[1, 24, 32]), data=memoryview(mask.tobytes())
    )
    callback(SimpleNamespace(header="stamp", tensors=[tensor]))
    (raw,), (coloured,) = (node.published[f"unet/{kind}_segmentation_mask"] for kind in ("raw", "colored"))
    assert (raw.header, raw.encoding, raw.height, raw.width, raw.step) == ("stamp", "mono8", 24, 32, 32)
    assert raw.data == mask.tobytes()
    assert (coloured.encoding, coloured.step) == ("rgb8", 96)
    assert coloured.data == np.array(PALETTE, np.uint8)[mask].tobytes()
    tensor.data_type = 9
    callback(SimpleNamespace(header="stamp", tensors=[tensor]))
    assert len(node.errors) == 1 and len(node.published["unet/raw_segmentation_mask"]) == 1


def test_all_that_does_not_fit_is_named_with_one_command(make_bundle: MakeBundle) -> None:
    bundle = make_bundle((8, 24, 64), (8, 32, 64), batch=(2, 4, 16), outputs=("mask", "logits"))
    with pytest.raises(BundleError) as error:
        resolve_handoff(bundle, "isaac-ros")
    for part in ("takes uint8", "gives mask, logits", "takes 2 images", "dynamic size"):
        assert part in error.value.cause
    assert error.value.fix is not None
    words = shlex.split(error.value.fix)
    options = dict(zip(words[-8::2], words[-7::2], strict=True))
    assert options == {"--input": "float32", "--outputs": "mask", "--batch": "1", "--size": "512x512"}


def test_without_an_engine_it_is_built_on_the_device(make_bundle: MakeBundle) -> None:
    handoff = resolve_handoff(make_bundle(dtype="float32"), "isaac-ros")
    assert {"graph.onnx", "build_engine.sh", "twins_launch.py", "mask_decoder.py"} <= set(handoff.files)
    assert "model.plan" not in handoff.files


def test_options_of_triton_are_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(UsageError, match="isaac-ros has no instances"):
        resolve_handoff(make_bundle(dtype="float32"), "isaac-ros", options=HandoffOptions(instances=2))
