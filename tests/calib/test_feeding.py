"""What calibration feeds is what the Segmenter feeds, array for array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calib_graphs import photo

from twins_trt.calib.images import Fitter
from twins_trt.errors import UsageError
from twins_trt.inference.interface import GraphInterface
from twins_trt.runtime import Manifest, Preprocessing, Segmenter, Source, TensorSpec, write_bundle

INFO = '{"options": {"height": {"min": 32, "opt": 64, "max": 96}, "width": {"min": 32, "opt": 64, "max": 128}}}'
SIZES = [(64, 96), (30, 40), (200, 120), (47, 333)]


class Recorder:
    """An engine that keeps what it is fed."""

    name = "recorder"
    concurrent = True

    def __init__(self, manifest: Manifest) -> None:
        self.inputs, self.outputs = manifest.interface.inputs, manifest.interface.outputs
        self.fed: list[np.ndarray] = []

    def __call__(self, image: np.ndarray, *, outputs: Any = None, out: Any = None) -> dict[str, np.ndarray]:
        self.fed.append(image.copy())
        layout = image.shape[1:3] if image.shape[-1] == 3 else image.shape[2:]
        return {"mask": np.zeros((len(image), *layout), np.uint8)}

    def close(self) -> None:
        pass


def fed_by_segmenter(folder: Path, image: TensorSpec, mask: TensorSpec, fit: Any, scale: Any) -> list[np.ndarray]:
    manifest = Manifest(
        model="twins_svt-s_fpn",
        interface=GraphInterface((image,), (mask,), ("any",), ((0, 0, 0),), Preprocessing(test_scale=scale)),
        padding="parity",
        precision="fp32",
        opset=17,
        source=Source(checkpoint="x.pth", sha256="ab" * 32),
        rebuild="twins-trt build",
    )
    engine = Recorder(manifest)
    with Segmenter(write_bundle(folder / "x.bundle", manifest, {"graph.onnx": b"x"}), engine, fit=fit) as segmenter:
        for seed, (height, width) in enumerate(SIZES):
            segmenter(photo(seed, height=height, width=width))
    return engine.fed


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("dynamic", "scale"), [(False, None), (True, None), (True, (100, 60))])
def test_images_of_any_size(tmp_path: Path, fit: Any, dtype: Any, dynamic: bool, scale: Any) -> None:
    size: Any = ((32, 64, 96), (32, 64, 128)) if dynamic else (64, 96)
    image, mask = TensorSpec.image(*size, dtype=dtype), TensorSpec.mask(*size)
    fitter = Fitter(
        [("image", dtype, image.shape)],
        {"twins_trt.info": INFO} if dynamic else {},
        fit=fit,
        preprocessing=Preprocessing(test_scale=scale),
    )
    expected = fed_by_segmenter(tmp_path, image, mask, fit, scale)
    assert len(expected) == len(SIZES)
    for seed, ((height, width), theirs) in enumerate(zip(SIZES, expected, strict=True)):
        ours = fitter(photo(seed, height=height, width=width))[None]
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    largest = (1, 96, 128) if dynamic else (1, 64, 96)
    assert fitter.largest_input().shape == ((*largest, 3) if dtype == "uint8" else (1, 3, *largest[1:]))


def test_graphs_that_take_no_image() -> None:
    for inputs in (
        [],
        [("image", "uint8", (1, 64, 96, 3)), ("mask", "uint8", (1, 64, 96))],
        [("image", "int64", (1, 64, 96, 3))],
        [("image", "uint8", (64, 96, 3))],
    ):
        with pytest.raises(UsageError, match="the graph's inputs are"):
            Fitter(inputs, {})
    with pytest.raises(UsageError, match="dynamic"):
        Fitter([("image", "uint8", (1, "H", "W", 3))], {})
