"""Reads the masks that DeepStream attaches to its frames, in a pad probe after the inference element.

    from mask_probe import masks

    def probe(pad, info, user_data):
        for frame, mask in masks(info.get_buffer()):
            ...                                       # uint8 [H, W], one class index per pixel
        return Gst.PadProbeReturn.OK

Source: "Tensor Metadata" of the pages on Gst-nvinferserver and Gst-nvinfer, and the Python bindings (pyds).
"""

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyds

MODEL = json.loads(Path(__file__).with_name("model.json").read_text(encoding="utf-8"))


def masks(buffer: Any) -> Iterator[tuple[Any, npt.NDArray[np.uint8]]]:
    """(NvDsFrameMeta, uint8 mask) of every frame in a Gst.Buffer that has one. The mask is a copy."""
    batch = pyds.gst_buffer_get_nvds_batch_meta(hash(buffer))
    for frame_data in _items(batch.frame_meta_list):
        frame = pyds.NvDsFrameMeta.cast(frame_data)
        for user_data in _items(frame.frame_user_meta_list):
            user = pyds.NvDsUserMeta.cast(user_data)
            if user.base_meta.meta_type == pyds.NvDsMetaType.NVDSINFER_TENSOR_OUTPUT_META:
                tensors = pyds.NvDsInferTensorMeta.cast(user.user_meta_data)
                yield frame, _mask(tensors)


def _mask(tensors: Any) -> npt.NDArray[np.uint8]:
    output = MODEL["output"]
    layers = [pyds.get_nvds_LayerInfo(tensors, i) for i in range(tensors.num_output_layers)]
    layer = next(layer for layer in layers if layer.layerName == output["name"])
    kind = ctypes.c_uint8 if output["dtype"] == "uint8" else ctypes.c_float
    pointer = ctypes.cast(pyds.get_ptr(layer.buffer), ctypes.POINTER(kind))
    values = np.ctypeslib.as_array(pointer, shape=tuple(output["shape"]))
    if output["name"] == "mask":
        return values.copy()
    # Logits have a quarter of the size. DeepStream does not resize tensors, so each index is repeated. The edges are
    # coarser than those of a graph that gives the mask itself.
    small = values.argmax(0).astype(np.uint8)
    height, width = MODEL["size"]
    rows, columns = np.arange(height) * small.shape[0] // height, np.arange(width) * small.shape[1] // width
    return small[rows[:, None], columns]


def _items(node: Any) -> Iterator[Any]:
    """The data of a GLib list, whose Python binding ends with StopIteration instead of None."""
    while node is not None:
        yield node.data
        try:
            node = node.next
        except StopIteration:
            return
