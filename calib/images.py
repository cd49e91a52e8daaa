"""Images for a calibration: their digests, checks for blank and random ones, and fitting to the graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import DataError, ImageError, UsageError
from twins_trt.inference.fitting import FitMode, fit_size, place
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.tensors import Dim, TensorSpec
from twins_trt.spelling import spelled

# Photographs correlate with themselves shifted by one pixel by 0.8 and more, independent pixels by about 0.
NOISE_CORRELATION = 0.3


def unbatched(images: Iterable[UInt8Array]) -> Iterator[UInt8Array]:
    """The images uint8 [H, W, 3] of a stream that may also hold batches uint8 [N, H, W, 3].

    Raises ImageError for anything else.
    """
    for item in images:
        if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim not in (3, 4) or item.shape[-1] != 3:
            what = f"{item.dtype} {list(item.shape)}" if isinstance(item, np.ndarray) else type(item).__name__
            raise ImageError(f"an image for calibration is {what}", "give uint8 [H, W, 3] or [N, H, W, 3], RGB")
        if 0 in item.shape:
            raise ImageError(f"an image for calibration is empty: {list(item.shape)}", "leave it out")
        if item.ndim == 3:
            yield item
        else:
            yield from item


def digest(image: UInt8Array) -> bytes:
    """sha256 of an image's size and pixels, before it is fitted to a graph."""
    hashed = hashlib.sha256(repr(image.shape).encode())
    hashed.update(np.ascontiguousarray(image).data)
    return hashed.digest()


def data_key(digests: Iterable[bytes]) -> str:
    """sha256 over the sorted digests: like the ranges, the key does not depend on the order of the images."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def refuse_blank(image: UInt8Array, name: str) -> None:
    """Raises DataError where all values of an image are equal. name: what the error calls the image."""
    if image.min() == image.max():
        raise DataError(
            f"{name} has the value {int(image.flat[0])} everywhere: it is blank, or did not decode",
            "look at the file and leave it out",
        )


def is_noise(image: UInt8Array) -> bool:
    """Whether neighbouring pixels are independent, as in random arrays.

    The grey image is correlated with itself, shifted by one pixel to the side and down. It is noise where the larger of
    the two correlations is below `NOISE_CORRELATION`.
    """
    grey = image.mean(axis=2, dtype=np.float32)
    pairs = ((grey[:, 1:], grey[:, :-1]), (grey[1:], grey[:-1]))
    return max((_correlation(a, b) for a, b in pairs if a.size > 1), default=1.0) < NOISE_CORRELATION


def refuse_noise(noisy: int, images: int) -> None:
    """Raises DataError where more than half of the images are noise."""
    if 2 * noisy > images:
        raise DataError(
            f"{noisy} of {images} images are noise: a pixel says nothing about the next (correlation below "
            f"{NOISE_CORRELATION})",
            "calibrate with images as the camera takes them; random data gives ranges that fit nothing",
        )


def refuse_too_few(different: int, minimum: int) -> None:
    """Raises DataError for an empty set, and for one of fewer than `minimum` different images."""
    if different == 0:
        raise DataError("there are no images to calibrate with", "check the path and the split of the data set")
    if different < minimum:
        raise DataError(
            f"{different} different images are too few to calibrate with; the minimum is {minimum}",
            f"give more images (64 spread over the set are usual), or lower the minimum ({spelled('minimum')})",
        )


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    x -= x.mean()
    y -= y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 1.0


class Fitter:
    """Turns an image into exactly the input that a `Segmenter` would feed to the same graph.

    inputs: (name, element type, shape) of each input, as from `graph_inputs`. metadata: of the ONNX file; it has the
    limits of a dynamic size. fit, preprocessing: as in `CalibrationOptions`. Raises UsageError for a graph whose input
    is not one image.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[str, str, Sequence[Any]]],
        metadata: Mapping[str, str],
        *,
        fit: FitMode = "stretch",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        kinds = {"uint8": 3, "float32": 1}  # type -> axis of the channels
        if len(inputs) != 1 or inputs[0][1] not in kinds or len(inputs[0][2]) != 4:
            raise UsageError(
                f"the graph's inputs are {', '.join(f'{n} {k} {list(s)}' for n, k, s in inputs)}",
                "calibrate a graph of twins-trt export: one image, uint8 [N, H, W, 3] or float32 [N, 3, H, W]",
            )
        self.name, kind, shape = inputs[0]
        sides = [axis for axis in (1, 2, 3) if axis != kinds[kind]]
        limits = json.loads(metadata.get("twins_trt.info", "{}")).get("options", {})
        height, width = (
            _dim(shape[axis], limits.get(name)) for axis, name in zip(sides, ("height", "width"), strict=True)
        )
        batch = shape[0]
        self.batch = batch if isinstance(batch, int) else 1
        self._fit = fit
        image = TensorSpec.image(height, width, batch=self.batch, dtype="uint8" if kind == "uint8" else "float32")
        outputs = (TensorSpec.mask(height, width, batch=self.batch),)  # any: fitting looks at the input alone
        self._interface = GraphInterface.unnamed(image, outputs, 1, preprocessing=preprocessing)

    def largest_input(self) -> npt.NDArray[Any]:
        """A batch of zeros of the largest size that the graph takes."""
        shape = [low if high is None else high for low, high in self._interface.image.limits()]
        return np.zeros(shape, self._interface.image.dtype)

    def __call__(self, image: UInt8Array) -> npt.NDArray[Any]:
        """The image, uint8 [H, W, 3], as the graph takes it, without the batch axis."""
        return place(image, fit_size((image.shape[0], image.shape[1]), self._interface, self._fit), self._interface)


def _dim(extent: Any, limits: Any) -> Dim:
    if isinstance(extent, int):
        return extent
    if isinstance(limits, Mapping):
        return limits["min"], limits["opt"], limits["max"]
    raise UsageError("the graph's size is dynamic, and it does not say within which limits", "export a fixed size")
