"""Reading images and label maps from files, with the same pixels on every machine.

Pillow decodes, for data sets and for the runtime alike: a device may have no other decoder. mmsegmentation decodes with
OpenCV (`IMREAD_COLOR`). Both wheels carry libjpeg-turbo with its default accurate integer DCT and smooth chroma
upsampling, and they give the same pixels in 469 JPEGs (CamVid's 468 and one of ADE20K, Pillow 13.0 and OpenCV 5.0). A
Pillow linked against another JPEG library may differ by a grey level in places. The other conventions
(alpha is dropped, 16 bits are cut to the high byte, EXIF orientation is applied) are those of `IMREAD_COLOR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.errors import DataError, ImageError, MissingDependencyError, TwinsError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

UInt8Array = npt.NDArray[np.uint8]

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
# Lossless only: a label map that went through JPEG has values that no annotator wrote.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file to uint8 [H, W, 3], RGB, upright.

    `to_rgb` says how other kinds of pixels are converted. Raises ImageError, naming the file, if it is missing, empty,
    truncated, not an image, or so large that Pillow takes it for a decompression bomb; MissingDependencyError without
    Pillow.
    """
    return to_rgb(_open(path, "an image", ImageError), name=str(path))


def to_rgb(picture: PillowImage, *, name: str = "the image") -> UInt8Array:
    """A Pillow image as uint8 [H, W, 3], RGB, upright: what OpenCV's `IMREAD_COLOR` gives, which mmsegmentation uses.

    EXIF orientation is applied. Grey, palette and CMYK pictures become RGB. Alpha is dropped, not blended. 16 bits are
    cut to the high byte. Raises ImageError, with `name` in it, for any other pixels.
    """
    upright = _upright(picture)
    if upright.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels", "convert it to 8 or 16 bits a channel")
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling, which turns a 16-bit image white.
        wide = np.asarray(upright).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 0xFFFF):
            raise ImageError(f"{name} holds 32-bit pixels", "convert it to 8 or 16 bits a channel")
        return np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    try:
        return np.array(upright.convert("RGB"), dtype=np.uint8)
    except ValueError as error:
        raise ImageError(
            f"{name} has {upright.mode} pixels, which Pillow cannot convert", "convert it to RGB"
        ) from error


def read_label(path: str | Path) -> UInt8Array:
    """Decode a label map to uint8 [H, W]: the values in the file, which are the indices of a palette image.

    EXIF orientation is not applied. Raises DataError, naming the file, if it is missing, broken, a colour picture or
    has values over 255.
    """
    picture = _open(path, "a label map", DataError)
    if picture.mode not in ("L", "P", "1", "I") and not picture.mode.startswith("I;16"):
        raise DataError(
            f"{path} is a {picture.mode} picture, not a label map", "store one class index a pixel, as 8-bit PNG"
        )
    values = np.asarray(picture)
    if values.dtype != np.uint8:
        if values.size and (values.min() < 0 or values.max() > 255):
            raise DataError(
                f"{path} has label values from {values.min()} to {values.max()}",
                "at most 255 classes fit, 0 to 254, and 255 for ignored pixels",
            )
        values = values.astype(np.uint8)
    return np.array(values)


def _open(path: str | Path, kind: str, failure: type[TwinsError]) -> PillowImage:
    """The file as a fully decoded Pillow image, not converted or turned. Raises `failure`, naming the file."""
    file = Path(path)
    pillow = _pillow()
    try:
        with pillow.open(file) as picture:
            picture.load()
            opened: PillowImage = picture
            return opened
    except FileNotFoundError as error:
        raise failure(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise failure(f"{path} is a folder, not {kind}") from error
    except pillow.DecompressionBombError as error:
        raise failure(
            f"{path} is too large: {error}", "cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:
        # Damaged bytes surface from Pillow's decoders as OSError, SyntaxError, ValueError, struct.error and more.
        raise failure(f"{path} cannot be decoded: {_reason(file, error)}", "replace or remove the file") from error


def _upright(picture: PillowImage) -> PillowImage:
    try:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        orientation = 1  # unreadable EXIF does not spoil the pixels
    if orientation not in _UPRIGHT:
        return picture
    return picture.transpose(getattr(_pillow().Transpose, _UPRIGHT[orientation]))


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if file.is_file() and file.stat().st_size == 0:
        return "it is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is not an image that Pillow knows"
    return str(error) or type(error).__name__


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "reading images needs Pillow, which is not installed", "pip install pillow"
        ) from error
    return Image
