"""Image encoder, TensorRT and mask decoder as one graph:

ros2 launch ./twins_launch.py input_image_width:=1920 input_image_height:=1080 image:=/image camera_info:=/camera_info
"""

import json
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode

HERE = Path(__file__).resolve().parent
CONTAINER = "twins_container"


def generate_launch_description() -> LaunchDescription:
    """The entry point of `ros2 launch`."""
    model = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    height, width = model["size"]
    encoder = (
        Path(get_package_share_directory("isaac_ros_dnn_image_encoder")) / "launch" / "dnn_image_encoder.launch.py"
    )
    arguments = {
        "input_image_width": LaunchConfiguration("input_image_width"),
        "input_image_height": LaunchConfiguration("input_image_height"),
        "network_image_width": str(width),
        "network_image_height": str(height),
        "image_mean": str(model["mean"]),
        "image_stddev": str(model["std"]),
        # Stretched to the network's size, as in the model's evaluation. Padding would shift the mask against the image.
        "enable_padding": "True",
        "keep_aspect_ratio": "False",
        "encoding_desired": model["encoding"],
        "final_tensor_name": "input_tensor",
        "image_input_topic": LaunchConfiguration("image"),
        "camera_info_input_topic": LaunchConfiguration("camera_info"),
        "tensor_output_topic": "/tensor_pub",
        "attach_to_shared_component_container": "True",
        "component_container_name": CONTAINER,
        "dnn_image_encoder_namespace": "twins_encoder",
    }
    inference = ComposableNode(
        name="tensor_rt",
        package="isaac_ros_tensor_rt",
        plugin="nvidia::isaac_ros::dnn_inference::TensorRTNode",
        parameters=[
            {
                "engine_file_path": str(HERE / "model.plan"),
                "force_engine_update": False,  # the node's own build is weakly typed and would change the precision
                "input_tensor_names": ["input_tensor"],
                "input_binding_names": [model["input"]],
                "output_tensor_names": ["mask"],
                "output_binding_names": [model["output"]],
                "verbose": False,
            }
        ],
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("input_image_width", description="the camera's, pixels"),
            DeclareLaunchArgument("input_image_height", description="the camera's, pixels"),
            DeclareLaunchArgument("image", default_value="/image", description="topic of the images"),
            DeclareLaunchArgument("camera_info", default_value="/camera_info", description="topic of the camera"),
            ComposableNodeContainer(
                name=CONTAINER,
                namespace="",
                package="rclcpp_components",
                executable="component_container_mt",
                composable_node_descriptions=[inference],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(encoder)), launch_arguments=list(arguments.items())
            ),
            ExecuteProcess(cmd=["python3", str(HERE / "mask_decoder.py")], output="screen"),
        ]
    )
