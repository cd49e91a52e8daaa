"""Draws a street scene from simple shapes: a picture to segment that is free to use.

    python examples/draw_scene.py scene.png [--size 360x480] [--seed 0]

needs numpy and Pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

DETAIL = 2  # drawn this much larger, then reduced: smooth edges
HORIZON = 0.47


def draw_scene(height: int, width: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3], RGB. The same seed gives the same picture."""
    rng = np.random.default_rng(seed)
    h, w = height * DETAIL, width * DETAIL
    picture = Image.fromarray(_sky(h, w))
    draw = ImageDraw.Draw(picture)
    horizon, centre = int(HORIZON * h), int(0.52 * w)
    _ground(draw, h, w, horizon, centre)
    _row_of_houses(draw, rng, h, w, horizon, centre, side=-1)
    _row_of_houses(draw, rng, h, w, horizon, centre, side=1)
    for x, depth in ((0.30, 0.50), (0.375, 0.72), (0.70, 0.6)):
        _tree(picture, rng, int(x * w), horizon, h, depth)
    for x, depth in ((0.16, 0.15), (0.845, 0.3)):
        _lamp(draw, int(x * w), horizon, h, depth)
    _car(draw, int(0.585 * w), int(0.56 * h), int(0.115 * w), (150, 30, 34))
    _car(draw, int(0.40 * w), int(0.535 * h), int(0.075 * w), (40, 60, 110))
    for x, colour in ((0.115, (70, 60, 90)), (0.205, (120, 70, 50))):
        _person(draw, int(x * w), int(0.72 * h), int(0.2 * h), colour)
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)).resize((width, height), Image.Resampling.LANCZOS))
    grain = rng.normal(0, 5, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
    shade = np.linspace(1.04, 0.9, height)[:, None, None]
    return np.clip(pixels * shade + grain, 0, 255).astype(np.uint8)


def _sky(h: int, w: int) -> npt.NDArray[np.uint8]:
    top, bottom = np.array([176, 196, 222.0]), np.array([236, 238, 240.0])
    rows = np.linspace(0, 1, h)[:, None, None]
    return np.broadcast_to(top + (bottom - top) * rows**0.6, (h, w, 3)).astype(np.uint8)


def _ground(draw: ImageDraw.ImageDraw, h: int, w: int, horizon: int, centre: int) -> None:
    draw.rectangle((0, horizon, w, h), fill=(148, 142, 136))  # pavement
    road = [(centre - w // 60, horizon), (centre + w // 60, horizon), (int(1.02 * w), h), (int(0.12 * w), h)]
    draw.polygon(road, fill=(92, 92, 96))
    for side, foot in ((-1, 0.12), (1, 1.02)):  # kerbs
        near, far = int(foot * w), centre + side * w // 60
        kerb = [(far, horizon), (near, h), (near + side * w // 40, h), (far + side * w // 600, horizon)]
        draw.polygon(kerb, fill=(176, 172, 166))
    for k in range(7):  # broken line in the middle of the road
        begin, end = (((k + share) / 7.5) ** 2 for share in (0.6, 1.0))
        corners = []
        for depth, half in ((begin, 1), (end, 1), (end, -1), (begin, -1)):
            middle = centre + (0.57 * w - centre) * depth
            corners.append((middle + half * 0.007 * w * depth, horizon + (h - horizon) * depth))
        draw.polygon(corners, fill=(222, 222, 216))


def _row_of_houses(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, h: int, w: int, horizon: int, centre: int, *, side: int
) -> None:
    """Fronts along the street, in perspective towards (centre, horizon)."""
    outer = 0 if side < 0 else w
    edges = [1.0, 0.74, 0.52, 0.36, 0.24, 0.15]  # distance from the vanishing point, 1 is the picture's edge
    walls = [(150, 106, 88), (186, 172, 148), (128, 122, 118), (168, 140, 112), (140, 128, 132)]
    for near, far, wall in reversed(list(zip(edges, edges[1:], walls, strict=False))):
        storeys = int(rng.integers(3, 5))
        tall = rng.uniform(0.9, 1.15)

        def at(distance: float, level: float, tall: float = tall) -> tuple[float, float]:
            x = centre + (outer - centre) * distance
            ground = horizon + 0.27 * h * distance
            return x, ground - level * tall * (0.27 + 0.5) * h * distance

        draw.polygon([at(near, 0), at(near, 1), at(far, 1), at(far, 0)], fill=wall)
        dark = tuple(int(c * 0.72) for c in wall)
        draw.polygon([at(near, 1), at(near, 1.05), at(far, 1.05), at(far, 1)], fill=dark)
        columns = 4
        for storey in range(storeys):
            low, high = (storey + 0.3) / storeys, (storey + 0.78) / storeys
            for column in range(columns):
                a, b = (near + (far - near) * (column + share) / columns for share in (0.25, 0.75))
                glass = (70, 82, 94) if rng.random() < 0.7 else (120, 132, 140)
                draw.polygon([at(a, low), at(a, high), at(b, high), at(b, low)], fill=glass)


def _tree(picture: Image.Image, rng: np.random.Generator, x: int, horizon: int, h: int, depth: float) -> None:
    draw = ImageDraw.Draw(picture)
    scale = (1 - depth) * h
    foot = horizon + int(0.32 * scale)
    draw.rectangle((x - 0.016 * scale, foot - 0.45 * scale, x + 0.016 * scale, foot), fill=(78, 62, 48))
    for _ in range(260):
        angle, radius = rng.uniform(0, 2 * np.pi), 0.22 * scale * np.sqrt(rng.random())
        cx, cy = x + radius * np.cos(angle), foot - 0.58 * scale + 1.1 * radius * np.sin(angle)
        size = rng.uniform(0.015, 0.05) * scale
        light = rng.uniform(0.6, 1.25)
        fill = tuple(int(c * light) for c in (66, 84, 46))
        draw.ellipse((cx - size, cy - size, cx + size, cy + size), fill=fill)


def _lamp(draw: ImageDraw.ImageDraw, x: int, horizon: int, h: int, depth: float) -> None:
    scale = (1 - depth) * h
    foot = horizon + int(0.4 * scale)
    draw.rectangle((x - 0.006 * scale, foot - 0.85 * scale, x + 0.006 * scale, foot), fill=(74, 76, 78))
    draw.rectangle((x - 0.006 * scale, foot - 0.86 * scale, x + 0.08 * scale, foot - 0.845 * scale), fill=(74, 76, 78))


def _car(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, colour: tuple[int, int, int]) -> None:
    """Seen from behind; (x, y) is the middle of the bumper's height."""
    half, tall = width // 2, int(0.42 * width)
    draw.ellipse((x - half, y + 0.7 * tall, x + half, y + 1.0 * tall), fill=(58, 58, 60))  # shadow
    for wheel in (x - int(0.42 * width), x + int(0.26 * width)):
        draw.rectangle((wheel, y + 0.4 * tall, wheel + 0.16 * width, y + 0.92 * tall), fill=(26, 26, 28))
    draw.rounded_rectangle((x - half, y - 0.35 * tall, x + half, y + 0.72 * tall), radius=width // 12, fill=colour)
    roof = [(x - 0.42 * width, y - 0.3 * tall), (x - 0.3 * width, y - 1.05 * tall)]
    roof += [(x + 0.3 * width, y - 1.05 * tall), (x + 0.42 * width, y - 0.3 * tall)]
    draw.polygon(roof, fill=tuple(int(c * 0.85) for c in colour))
    glass = [(x - 0.35 * width, y - 0.34 * tall), (x - 0.26 * width, y - 0.94 * tall)]
    glass += [(x + 0.26 * width, y - 0.94 * tall), (x + 0.35 * width, y - 0.34 * tall)]
    draw.polygon(glass, fill=(56, 64, 74))
    for lamp in (x - 0.47 * width, x + 0.33 * width):
        draw.rectangle((lamp, y - 0.12 * tall, lamp + 0.14 * width, y + 0.14 * tall), fill=(214, 48, 40))
    draw.rectangle((x - 0.14 * width, y + 0.2 * tall, x + 0.14 * width, y + 0.4 * tall), fill=(226, 206, 90))


def _person(draw: ImageDraw.ImageDraw, x: int, y: int, tall: int, coat: tuple[int, int, int]) -> None:
    """Standing; (x, y) is between the feet."""
    draw.rectangle((x - 0.09 * tall, y - 0.46 * tall, x - 0.01 * tall, y), fill=(44, 46, 58))
    draw.rectangle((x + 0.01 * tall, y - 0.46 * tall, x + 0.09 * tall, y), fill=(38, 40, 52))
    draw.rounded_rectangle((x - 0.14 * tall, y - 0.84 * tall, x + 0.14 * tall, y - 0.42 * tall), tall // 14, fill=coat)
    draw.ellipse((x - 0.07 * tall, y - tall, x + 0.07 * tall, y - 0.85 * tall), fill=(200, 160, 134))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--size", default="360x480", help="HEIGHTxWIDTH (default 360x480)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    height, width = (int(extent) for extent in arguments.size.lower().split("x"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_scene(height, width, seed=arguments.seed)).save(arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
