"""The result of a Segmenter for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.errors import ImageError, MissingDependencyError, UsageError
from twins_trt.files import whole_file

if TYPE_CHECKING:
    from twins_trt.data.palette import Colour


@dataclass(frozen=True)
class Segmentation:
    """The classes of one image.

    mask: uint8 [H, W] at the image's own size, one class index per pixel. classes, palette: name and RGB colour by
    index. probability: of the foreground, float32 [H, W], 0 to 1, of a head with one logit whose graph gives it or
    logits; else None, and None for an image that was run in parts.
    image: the image itself, uint8 [H, W, 3] RGB, not copied; None if it is not at hand.
    """

    mask: UInt8Array
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    image: UInt8Array | None = field(default=None, repr=False)
    probability: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    def areas(self) -> dict[str, float]:
        """The share of the image that each class covers, 0 to 1, in the order of `classes`."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return {name: float(counts[i] / self.mask.size) for i, name in enumerate(self.classes)}

    def colours(self) -> UInt8Array:
        """The mask in its palette's colours, uint8 [H, W, 3] RGB."""
        return _table(self.palette)[self.mask]

    def overlay(self, image: UInt8Array | None = None, *, alpha: float = 0.5) -> UInt8Array:
        """The picture with the classes' colours over it, uint8 [H, W, 3] RGB.

        image: uint8 [H, W, 3] RGB; by default the one that was segmented. alpha: 0 shows only the picture, 1 only the
        colours. Raises UsageError for another alpha or without a picture, ImageError if the picture does not have the
        mask's size.
        """
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha is {alpha}", "give 0 (only the picture) to 1 (only the colours)")
        picture = self.image if image is None else image
        if picture is None:
            raise UsageError("this segmentation holds no picture", "pass one: overlay(image)")
        if picture.dtype != np.uint8 or picture.shape != (*self.mask.shape, 3):
            raise ImageError(
                f"the picture is {picture.dtype} {list(picture.shape)}, the mask needs uint8 {[*self.mask.shape, 3]}"
            )
        blended = picture * np.float32(1 - alpha)
        blended += (_table(self.palette) * np.float32(alpha))[self.mask]
        return np.rint(blended).astype(np.uint8)

    def save(self, path: str | Path) -> Path:
        """Writes the mask as an 8-bit PNG with the palette; its pixel values are the class indices.

        Makes the folders of `path`. Raises UsageError if the name does not end in .png, ImageError if it cannot be
        written.
        """
        picture = _pillow().fromarray(self.mask)
        picture.putpalette(_table(self.palette).tobytes())
        return _write_png(picture, path)

    def save_overlay(self, path: str | Path, image: UInt8Array | None = None, *, alpha: float = 0.5) -> Path:
        """Writes `overlay(image, alpha=alpha)` as a PNG. Raises as `overlay` and `save` do."""
        return _write_png(_pillow().fromarray(self.overlay(image, alpha=alpha)), path)


def _table(palette: tuple[Colour, ...]) -> UInt8Array:
    """[256, 3]: a colour for every value of a mask; black after the last class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table


def _write_png(picture: Any, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is not a name for a PNG", "masks and overlays are written as .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=False) as file:
            picture.save(file, "PNG")
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error}") from error
    return path


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "writing pictures needs Pillow, which is not installed", "pip install pillow"
        ) from error
    return Image
