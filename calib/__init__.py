"""Calibration: the ranges of a graph's activations over images, for INT8.

    ranges = calibrate("graph.onnx", (sample.image for sample in dataset))
    save_ranges(ranges, "calibration.json")
    load_ranges("calibration.json", graph="graph.onnx").amax("stages.0.blocks.0.attn/norm1")

Several processes can share the images: `collect` and `save_collection` in each, then `merge` and `.ranges()` in one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.calib.calibrator import BatchMemory, tensorrt_calibrator
    from twins_trt.calib.collecting import CollectRun, calibrate, collect
    from twins_trt.calib.collection import Collection, load_collection, merge, save_collection
    from twins_trt.calib.images import data_key
    from twins_trt.calib.options import OBSERVERS, CalibrationOptions
    from twins_trt.calib.ranges import Ranges, TensorRange, load_ranges, save_ranges
    from twins_trt.calib.tensorrt_cache import CalibrationCache, cache_of
    from twins_trt.calib.tensors import observed_tensors

__all__ = [
    "OBSERVERS",
    "BatchMemory",
    "CalibrationCache",
    "CalibrationOptions",
    "CollectRun",
    "Collection",
    "Ranges",
    "TensorRange",
    "cache_of",
    "calibrate",
    "collect",
    "data_key",
    "load_collection",
    "load_ranges",
    "merge",
    "observed_tensors",
    "save_collection",
    "save_ranges",
    "tensorrt_calibrator",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.calib.calibrator": ["BatchMemory", "tensorrt_calibrator"],
        "twins_trt.calib.collecting": ["CollectRun", "calibrate", "collect"],
        "twins_trt.calib.collection": ["Collection", "load_collection", "merge", "save_collection"],
        "twins_trt.calib.images": ["data_key"],
        "twins_trt.calib.ranges": ["Ranges", "TensorRange", "load_ranges", "save_ranges"],
        "twins_trt.calib.options": ["OBSERVERS", "CalibrationOptions"],
        "twins_trt.calib.tensorrt_cache": ["CalibrationCache", "cache_of"],
        "twins_trt.calib.tensors": ["observed_tensors"],
    },
)
