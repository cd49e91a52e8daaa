"""Draws a picture beside its segmentation, with the names of the classes that are in it.

    python examples/draw_overlay.py x.bundle scene.png street.jpg [--columns 5]

draws docs/images/street.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from twins_trt import Segmentation, Segmenter

LINE = 22  # pixels
SMALLEST_SHARE = 0.004  # of the picture; smaller classes are not named


def draw_overlay(result: Segmentation, *, columns: int = 5) -> Image.Image:
    """The picture, the overlay to its right, and the classes below."""
    assert result.image is not None  # a Segmenter keeps the picture it was given
    height, width = result.mask.shape
    areas = [(share, index) for index, share in enumerate(result.areas().values()) if share >= SMALLEST_SHARE]
    shown = [index for _, index in sorted(areas, reverse=True)]
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (2 * width, height + rows * LINE + LINE // 2), "white")
    sheet.paste(Image.fromarray(result.image), (0, 0))
    sheet.paste(Image.fromarray(result.overlay()), (width, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        x, y = 8 + column * (2 * width - 16) // columns, height + LINE // 4 + row * LINE
        draw.rectangle((x, y + 3, x + 16, y + 17), fill=result.palette[index])
        draw.text((x + 24, y + 2), result.classes[index], fill=(40, 40, 40), font=font)
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle")
    parser.add_argument("image")
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=5, help="names in a row (default %(default)s)")
    arguments = parser.parse_args()
    with Segmenter(arguments.bundle) as segmenter:
        sheet = draw_overlay(segmenter(arguments.image), columns=arguments.columns)
    sheet.save(arguments.out, quality=88)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
