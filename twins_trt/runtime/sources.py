"""From what a user names (files, folders, patterns) to image paths, and from a file to pixels."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import IMAGE_SUFFIXES
from twins_trt.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

UInt8Array = npt.NDArray[np.uint8]

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


def expand_sources(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """The image files that `sources` name, each once.

    A file is taken as it is; a folder gives the images directly in it, a pattern (`frames/*.png`, `**` for all levels)
    those it matches, both sorted as people count (`2.png` before `10.png`) and without hidden files. The order of
    `sources` is kept. Raises ImageError for a source that does not exist or gives no image.
    """
    named = [sources] if isinstance(sources, (str, Path)) else list(sources)
    paths: dict[Path, None] = {}
    for source in named:
        paths.update(dict.fromkeys(_expand(source)))
    return list(paths)


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file to uint8 [H, W, 3], RGB, upright.

    See `to_rgb` for what becomes of other kinds of pixels. Raises ImageError, naming the file, if it is missing, empty,
    truncated, not an image, or so large that Pillow takes it for a decompression bomb.
    """
    file = Path(path)
    pillow = _pillow()
    try:
        with pillow.open(file) as picture:
            picture.load()
            return to_rgb(picture, name=str(path))
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder, not an image") from error
    except ImageError:
        raise
    except pillow.DecompressionBombError as error:
        raise ImageError(
            f"{path} is too large: {error}", "cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:
        # Damaged bytes surface from Pillow's decoders as OSError, SyntaxError, ValueError, struct.error and more.
        raise ImageError(f"{path} cannot be decoded: {_reason(file, error)}", "replace or remove the file") from error


def to_rgb(picture: PillowImage, *, name: str = "the image") -> UInt8Array:
    """A Pillow image as uint8 [H, W, 3], RGB, upright: what OpenCV's `IMREAD_COLOR` gives, which mmsegmentation uses.

    EXIF orientation is applied, grey, palette and CMYK pictures become RGB, alpha is dropped (not blended), of 16 bits
    the high byte stays. Raises ImageError, with `name` in it, for floating-point or 32-bit pixels.
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
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts names as people count: digits by value, the rest without case, ties by the exact name."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if i % 2 else (1, 0, part.casefold()) for i, part in enumerate(parts)], str(path)


def _expand(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = [child for child in path.iterdir() if _is_image(child)]
        if not found:
            raise ImageError(f"{path} holds no images", f"images end in {', '.join(IMAGE_SUFFIXES)}")
    elif path.exists():
        found = [path]
    elif glob.has_magic(str(source)):
        found = [match for match in map(Path, glob.iglob(str(source), recursive=True)) if _is_image(match)]
        if not found:
            raise ImageError(f"no image matches {source}", f"images end in {', '.join(IMAGE_SUFFIXES)}")
    else:
        raise ImageError(f"{path} does not exist")
    return sorted(found, key=natural_key)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


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
