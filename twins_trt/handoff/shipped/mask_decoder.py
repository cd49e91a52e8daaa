"""A ROS node that publishes the tensor `mask` of isaac_ros_tensor_rt as images, on the topics of isaac_ros_unet.

`unet/raw_segmentation_mask` (mono8) holds class indices, `unet/colored_segmentation_mask` (rgb8) the palette's colours.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rclpy
from isaac_ros_tensor_list_interfaces.msg import TensorList
from rclpy.node import Node
from sensor_msgs.msg import Image

UINT8 = 2  # isaac_ros_tensor_list_interfaces/msg/Tensor.msg


class MaskDecoder(Node):
    """Subscribes to `tensor_sub`, publishes both images with the tensor's header."""

    def __init__(self) -> None:
        super().__init__("mask_decoder")
        model = json.loads(Path(__file__).with_name("model.json").read_text(encoding="utf-8"))
        self.colours = np.zeros((256, 3), np.uint8)  # black after the last class
        self.colours[: len(model["palette"])] = model["palette"]
        self.raw = self.create_publisher(Image, "unet/raw_segmentation_mask", 10)
        self.coloured = self.create_publisher(Image, "unet/colored_segmentation_mask", 10)
        self.create_subscription(TensorList, "tensor_sub", self.decode, 10)

    def decode(self, message: TensorList) -> None:
        """Publishes one mask. A message without a mask is logged and dropped."""
        tensor = next((tensor for tensor in message.tensors if tensor.name == "mask"), None)
        if tensor is None or tensor.data_type != UINT8:
            self.get_logger().error("the message holds no uint8 tensor called mask")
            return
        height, width = tensor.shape.dims[-2:]
        mask = np.frombuffer(tensor.data, np.uint8).reshape(height, width)
        self.raw.publish(self.image(message, mask, "mono8"))
        self.coloured.publish(self.image(message, self.colours[mask], "rgb8"))

    def image(self, message: TensorList, pixels: npt.NDArray[np.uint8], encoding: str) -> Image:
        """sensor_msgs/Image of uint8 [H, W] or [H, W, 3]."""
        image = Image()
        image.header = message.header
        image.height, image.width = pixels.shape[:2]
        image.encoding = encoding
        image.step = pixels.strides[0]
        image.data = pixels.tobytes()
        return image


def main() -> None:
    """Runs until it is interrupted."""
    rclpy.init()
    node = MaskDecoder()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()


if __name__ == "__main__":
    main()
