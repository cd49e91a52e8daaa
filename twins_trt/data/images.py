"""Reading images and label maps from files, with the same pixels on every machine.

Decoder: Pillow, here and in the runtime, since Pillow is all that a device has. mmsegmentation decodes with OpenCV
(`IMREAD_COLOR`). Both wheels carry libjpeg-turbo with its default accurate integer DCT and smooth chroma upsampling,
and they give the same pixels: compared on 469 JPEGs (CamVid's 468 and one of ADE20K, Pillow 13.0 and OpenCV 5.0),
none differs in any pixel. A Pillow linked against another JPEG library may differ by a grey level here and there. The
other conventions below (alpha dropped rather than blended, 16 bits cut to the high byte, EXIF orientation applied) are
those of `IMREAD_COLOR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twins_trt.errors import DataError, ImageError

UInt8Array = npt.NDArray[np.uint8]

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# Lossless only: a label map that went through JPEG has values that no annotator wrote.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file to uint8 [H, W, 3], RGB, upright.

    EXIF orientation is applied; grey and palette images become RGB; alpha is dropped; of 16 bits the high byte stays.
    Raises ImageError, naming the file, if it is missing, not an image, truncated or of floating-point pixels.
    """
    picture = _open(path)
    if picture.mode == "F":
        raise ImageError(f"{path} holds floating-point pixels", "convert it to 8 or 16 bits a channel")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling, which turns a 16-bit image white.
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ImageError(f"{path} holds 32-bit pixels", "convert it to 8 or 16 bits a channel")
        grey = (wide >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def read_label(path: str | Path) -> UInt8Array:
    """Decode a label map to uint8 [H, W], the values as they are in the file (of a palette image: the indices).

    Raises DataError, naming the file, if it is missing, broken, a colour picture or has values over 255.
    """
    picture = _open(path, kind="label map")
    if picture.mode not in ("L", "P", "1", "I") and not picture.mode.startswith("I;16"):
        raise DataError(
            f"{path} is a {picture.mode} picture, not a label map", "store one class index a pixel, as 8-bit PNG"
        )
    values = np.asarray(picture)
    if values.dtype != np.uint8:
        if values.size and (values.min() < 0 or values.max() > 255):
            raise DataError(
                f"{path} has label values up to {values.max()}", "at most 254 classes fit, and 255 for ignored pixels"
            )
        values = values.astype(np.uint8)
    return np.array(values)


def _open(path: str | Path, *, kind: Literal["image", "label map"] = "image") -> Any:
    """The file as a fully decoded PIL image; an image upright, a label map as it lies in the file."""
    from PIL import Image

    failure = ImageError if kind == "image" else DataError
    try:
        with Image.open(path) as picture:
            picture.load()
            return _upright(picture) if kind == "image" else picture
    except FileNotFoundError as error:
        raise failure(f"{kind} {path} does not exist") from error
    except Exception as error:
        # Damaged bytes surface from Pillow's decoders as OSError, SyntaxError, ValueError, struct.error,
        # DecompressionBombError and more; to the reader they all mean this file.
        reason = str(error) or type(error).__name__
        raise failure(f"{kind} {path} cannot be decoded: {reason}", "replace or remove the file") from error


def _upright(picture: Any) -> Any:
    from PIL import ImageOps

    try:
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:
        turned = False  # unreadable EXIF does not spoil the pixels
    return ImageOps.exif_transpose(picture) if turned else picture
