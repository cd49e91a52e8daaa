"""Street scenes drawn from a seed: a picture and the class of each of its pixels. They need no download.

The task is easy but not trivial: light, haze, weather, colours and textures vary more within a class than between some
classes, things hide each other, and poles are a pixel or two wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from twins_trt.demo.drawing import (
    BUILDING,
    PAVEMENT,
    ROAD,
    Canvas,
    Colour,
    View,
    draw_car,
    draw_person,
    draw_pole,
    draw_tree,
    noise_field,
    shade,
)
from twins_trt.files import whole_file
from twins_trt.progress import Progress, silent

CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole")
PALETTE: tuple[Colour, ...] = (
    (116, 172, 223),
    (178, 112, 78),
    (110, 86, 148),
    (222, 128, 190),
    (84, 158, 74),
    (36, 68, 196),
    (222, 48, 62),
    (244, 196, 48),
)

_DETAIL = 2  # drawn this much larger, then reduced: smooth edges
_ROUGHNESS = (0.02, 0.10, 0.06, 0.08, 0.16, 0.04, 0.06, 0.04)  # of the texture, by class
_WALLS = ((150, 106, 88), (186, 172, 148), (128, 122, 118), (168, 140, 112), (140, 128, 132), (196, 190, 182))


@dataclass(frozen=True)
class Scene:
    """image: uint8 [H, W, 3], RGB. label: uint8 [H, W], an index of `CLASSES` a pixel."""

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]


def draw_scene(height: int, width: int, *, seed: int = 0) -> Scene:
    """A street of height × width pixels. The same seed and versions of NumPy and Pillow give the same pixels."""
    rng = np.random.default_rng(seed)
    view = View(
        height * _DETAIL,
        width * _DETAIL,
        horizon=rng.uniform(0.36, 0.54),
        vanishing=rng.uniform(0.36, 0.64),
        middle=rng.uniform(0.4, 0.6),
    )
    air = shade((214, 220, 228), rng.uniform(0.75, 1.08))
    canvas = Canvas(view, air, thickness=rng.uniform(0.05, 0.75))
    left, right = -rng.uniform(0.28, 0.6), rng.uniform(0.28, 0.6)
    kerbs = (left, right)
    walls = (left - rng.uniform(0.14, 0.42), right + rng.uniform(0.14, 0.42))
    _sky(canvas, rng)
    _ground(canvas, rng, kerbs)
    for side, wall in zip((-1, 1), walls, strict=True):
        _houses(canvas, rng, wall, side)
    _things(canvas, rng, kerbs, walls)
    return _photograph(canvas, rng, height, width)


def write_scenes(
    folder: str | Path,
    split: str,
    seeds: Sequence[int],
    *,
    size: tuple[int, int],
    progress: Progress = silent,
) -> str:
    """Writes one scene a seed as PNG files, and returns the data set's name, `folder:PATH`.

    They go to `folder/split/images` and `folder/split/labels`, the names of the classes to `folder/classes.txt`.
    size: (height, width), pixels. progress: called after every scene.
    """
    root = Path(folder)
    for kind in ("images", "labels"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    with whole_file(root / "classes.txt", durable=False) as file:
        file.write(("\n".join(CLASSES) + "\n").encode())
    for done, seed in enumerate(seeds, start=1):
        scene = draw_scene(*size, seed=seed)
        for kind, pixels in (("images", scene.image), ("labels", scene.label)):
            with whole_file(root / split / kind / f"scene{seed:06}.png", durable=False) as file:
                Image.fromarray(pixels).save(file, "PNG")
        progress("scenes", f"{done} of {len(seeds)}", done / len(seeds))
    return f"folder:{root}"


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    h, w = canvas.view.height, canvas.view.width
    overcast = rng.random() < 0.4
    top = np.array((150, 156, 164) if overcast else (104, 150, 206), np.float32) * rng.uniform(0.7, 1.15)
    bottom = np.array(canvas.haze, np.float32)
    rows = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    clouds = np.clip(noise_field(rng, h, w, h // 5) + 0.4 * noise_field(rng, h, w, h // 12), 0, 1)[..., None]
    pixels = top + (bottom - top) * rows**0.6 + clouds * rng.uniform(0, 40)
    canvas.picture.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def _ground(canvas: Canvas, rng: np.random.Generator, kerbs: tuple[float, float]) -> None:
    view = canvas.view
    far, near = 0.02, 1.1
    paving = shade((150, 144, 136), rng.uniform(0.7, 1.2))
    canvas.box(0, view.y(0), view.width, view.height, canvas.hazy(paving, 0.5), PAVEMENT)
    asphalt = shade((92, 92, 96), rng.uniform(0.65, 1.35))
    corners = [view.point(kerbs[0], far), view.point(kerbs[1], far), view.point(kerbs[1], near)]
    canvas.polygon([*corners, view.point(kerbs[0], near)], asphalt, ROAD)
    stone = shade(paving, 1.18)
    for side, kerb in zip((-1, 1), kerbs, strict=True):
        edge = [view.point(kerb, far), view.point(kerb, near), view.point(kerb + side * 0.022, near)]
        canvas.polygon([*edge, view.point(kerb + side * 0.022, far)], stone, PAVEMENT)
    if rng.random() < 0.8:  # a broken line; squares put far dashes close together
        middle, half = (kerbs[0] + kerbs[1]) / 2, 0.008
        for dash in range(9):
            begin, end = (((dash + share) / 8.5) ** 2 for share in (0.55, 1.0))
            ends = ((-half, begin), (half, begin), (half, end), (-half, end))
            canvas.polygon([view.point(middle + across, at) for across, at in ends], (214, 214, 206))
    if rng.random() < 0.25:  # a crossing
        begin, end = rng.uniform(0.35, 0.6), rng.uniform(0.65, 0.85)
        for across in np.arange(kerbs[0] + 0.04, kerbs[1] - 0.05, 0.1):
            ends = ((across, begin), (across + 0.05, begin), (across + 0.05, end), (across, end))
            canvas.polygon([view.point(*each) for each in ends], (206, 206, 200))


def _houses(canvas: Canvas, rng: np.random.Generator, wall: float, side: int) -> None:
    """Fronts along one side of the street, the farthest first; a gap here and there, with trees in it."""
    view = canvas.view
    edges = [3.2]
    while edges[-1] > 0.1:
        edges.append(edges[-1] * rng.uniform(0.55, 0.8))
    for near, far in reversed(list(pairwise(edges))):
        if rng.random() < 0.15:
            if far < 1:
                draw_tree(canvas, rng, wall + side * 0.1, far)
            continue
        tall = rng.uniform(0.45, 1.35)
        middle = min((near + far) / 2, 1.0)
        paint = shade(_WALLS[int(rng.integers(len(_WALLS)))], rng.uniform(0.6, 1.15) * (0.9 if side > 0 else 1.0))

        def front(low: float, high: float, begin: float, end: float) -> list[tuple[float, float]]:
            return [view.point(wall, at, up) for at, up in ((begin, low), (begin, high), (end, high), (end, low))]

        canvas.polygon(front(0, tall, near, far), canvas.hazy(paint, middle), BUILDING)
        canvas.polygon(front(tall, tall * 1.06, near, far), canvas.hazy(shade(paint, 0.7), middle), BUILDING)
        storeys, columns = max(int(tall / 0.26), 1), int(rng.integers(2, 5))
        for storey in range(storeys):
            low, high = (tall * (storey + share) / storeys for share in (0.3, 0.78))
            for column in range(columns):
                begin, end = (near + (far - near) * (column + share) / columns for share in (0.25, 0.75))
                glass = shade((84, 96, 110), rng.uniform(0.6, 1.7))
                canvas.polygon(front(low, high, begin, end), canvas.hazy(glass, middle))


def _things(canvas: Canvas, rng: np.random.Generator, kerbs: tuple[float, float], walls: tuple[float, float]) -> None:
    """Trees, poles, people and cars, far ones first."""
    things = []
    for kind, most in ((draw_tree, 4), (draw_pole, 6), (draw_person, 7), (draw_car, 5)):
        for _ in range(int(rng.integers(0 if kind is draw_tree else 1, most + 1))):
            side = int(rng.integers(2))
            near = float(rng.uniform(0.14, 0.95) ** 1.15)
            if kind is draw_car:
                across = kerbs[side] * (rng.uniform(0.25, 0.75) if rng.random() < 0.7 else 0.85)
            elif kind is draw_person and rng.random() < 0.15:
                across = rng.uniform(*kerbs)
            else:
                across = kerbs[side] + (walls[side] - kerbs[side]) * rng.uniform(0.1, 0.85)
            things.append((near, kind, float(across)))
    for near, kind, across in sorted(things, key=lambda thing: thing[0]):
        kind(canvas, rng, across, near)


def _photograph(canvas: Canvas, rng: np.random.Generator, height: int, width: int) -> Scene:
    """Light, texture, lens and sensor."""
    picture = canvas.picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6)))
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    label = np.asarray(canvas.label.resize((width, height), Image.Resampling.NEAREST))
    rough = np.array(_ROUGHNESS, np.float32)[label]
    texture = 0.7 * noise_field(rng, height, width, 2) + 0.6 * noise_field(rng, height, width, 7)
    light = rng.uniform(0.65, 1.2) + 0.12 * noise_field(rng, height, width, max(height // 2, 2))
    warmth = rng.normal(0, 0.05)
    pixels = pixels * (1 + rough * texture)[..., None] * light[..., None] * (1 + warmth, 1.0, 1 - warmth)
    grain = rng.uniform(2, 7)
    pixels += rng.normal(0, grain, (height, width, 1)) + rng.normal(0, 0.5 * grain, (height, width, 3))
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), label)
