"""A canvas that draws picture and label at once, in the perspective of a straight street."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE = range(8)


def shade(colour: Sequence[float], light: float) -> Colour:
    """A colour made darker (below 1) or lighter."""
    red, green, blue = (int(min(max(each * light, 0), 255)) for each in colour)
    return red, green, blue


@dataclass(frozen=True)
class View:
    """Where things on the ground appear. height, width: of the canvas, pixels.

    A place is (across, near): `near` is 0 at the horizon and 1 at the lower edge; `across` is the distance from the
    middle of the street, in picture widths at the lower edge. Sizes shrink in proportion to `near`.
    """

    height: int
    width: int
    horizon: float
    vanishing: float
    middle: float

    def x(self, across: float, near: float) -> float:
        return self.width * (self.vanishing + (self.middle - self.vanishing) * near + across * near)

    def y(self, near: float, up: float = 0.0) -> float:
        """up: above the ground, in picture heights at the lower edge."""
        return self.height * (self.horizon + (1 - self.horizon) * near - up * near)

    def point(self, across: float, near: float, up: float = 0.0) -> Point:
        return self.x(across, near), self.y(near, up)


@dataclass
class Canvas:
    """Picture and label of one size. What is drawn without a class changes only the picture."""

    view: View
    haze: Colour
    thickness: float
    picture: Image.Image = field(init=False)
    label: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        size = (self.view.width, self.view.height)
        self.picture, self.label = Image.new("RGB", size), Image.new("L", size, SKY)
        self._paint, self._mark = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.label)

    def hazy(self, colour: Sequence[float], near: float) -> Colour:
        """A colour as it looks through the air between."""
        share = self.thickness * max(1 - near, 0.0) ** 2
        return shade([(1 - share) * own + share * air for own, air in zip(colour, self.haze, strict=True)], 1.0)

    def polygon(self, corners: Sequence[Point], colour: Colour, kind: int | None = None) -> None:
        self._paint.polygon(list(corners), fill=colour)
        if kind is not None:
            self._mark.polygon(list(corners), fill=kind)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, kind: int | None) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour, kind)

    def ellipse(self, x: float, y: float, wide: float, tall: float, colour: Colour, kind: int | None) -> None:
        """wide, tall: half axes."""
        corners = (x - wide, y - tall, x + wide, y + tall)
        self._paint.ellipse(corners, fill=colour)
        if kind is not None:
            self._mark.ellipse(corners, fill=kind)

    def shadow(self, x: float, y: float, wide: float, tall: float) -> None:
        """Darkens what lies there; the label keeps what is lit less."""
        box = tuple(int(each) for each in (x - wide, y - tall, x + wide, y + tall))
        if box[2] - box[0] < 2 or box[3] - box[1] < 2:
            return
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=110)
        self.picture.paste((14, 14, 22), (box[0], box[1]), mask)


def draw_tree(canvas: Canvas, rng: np.random.Generator, across: float, near: float) -> None:
    """A trunk and a crown of overlapping leaves; some trees are bare or autumnal."""
    x, y = canvas.view.point(across, near)
    tall = rng.uniform(0.45, 0.95) * near * canvas.view.height
    wide = rng.uniform(0.16, 0.3) * tall
    canvas.shadow(x, y, wide, 0.12 * wide)
    canvas.box(x - 0.03 * tall, y - 0.5 * tall, x + 0.03 * tall, y, canvas.hazy((78, 62, 48), near), TREE)
    leaf = ((66, 84, 46), (88, 104, 52), (52, 70, 48), (126, 96, 44))[int(rng.choice(4, p=(0.4, 0.25, 0.25, 0.1)))]
    for _ in range(70):
        angle, radius = rng.uniform(0, 2 * np.pi), wide * np.sqrt(rng.random())
        size = rng.uniform(0.12, 0.34) * wide
        middle = (x + radius * np.cos(angle), y - 0.66 * tall + 1.25 * radius * np.sin(angle))
        light = rng.uniform(0.6, 1.2) - 0.2 * np.sin(angle)
        canvas.ellipse(*middle, size, size, canvas.hazy(shade(leaf, light), near), TREE)


def draw_pole(canvas: Canvas, rng: np.random.Generator, across: float, near: float) -> None:
    """A street lamp, or a traffic sign on its post."""
    x, y = canvas.view.point(across, near)
    unit = near * canvas.view.height
    grey = canvas.hazy(shade((96, 98, 102), rng.uniform(0.6, 1.5)), near)
    half = max(0.011 * unit, 1.2)
    if rng.random() < 0.5:
        top, arm = y - rng.uniform(0.7, 1.0) * unit, (-1 if across > 0 else 1) * 0.12 * unit
        canvas.box(x - half, top, x + half, y, grey, POLE)
        canvas.box(min(x, x + arm), top - half, max(x, x + arm), top + half, grey, POLE)
        canvas.ellipse(x + arm, top, 2.2 * half, 1.2 * half, canvas.hazy((224, 214, 180), near), POLE)
        return
    top, plate = y - rng.uniform(0.34, 0.5) * unit, rng.uniform(0.05, 0.075) * unit
    canvas.box(x - half, top, x + half, y, grey, POLE)
    rim, face = (((186, 36, 38), (232, 232, 228)), ((34, 70, 150), (60, 96, 180)))[int(rng.integers(2))]
    canvas.ellipse(x, top, plate, plate, canvas.hazy(rim, near), POLE)
    canvas.ellipse(x, top, 0.68 * plate, 0.68 * plate, canvas.hazy(face, near), POLE)


def draw_car(canvas: Canvas, rng: np.random.Generator, across: float, near: float) -> None:
    """From behind, or, oncoming, from the front."""
    x, y = canvas.view.point(across, near)
    wide = rng.uniform(0.2, 0.26) * near * canvas.view.width
    tall, roof = rng.uniform(0.34, 0.46) * wide, rng.uniform(0.26, 0.4) * wide
    paint = rng.choice(
        [(150, 30, 34), (40, 60, 110), (190, 192, 196), (58, 60, 64), (210, 206, 190), (48, 92, 70), (166, 124, 40)]
    )
    body = canvas.hazy(shade(paint, rng.uniform(0.8, 1.15)), near)
    canvas.shadow(x, y, 0.56 * wide, 0.12 * wide)
    for side in (-0.46, 0.28):
        canvas.box(x + side * wide, y - 0.2 * wide, x + (side + 0.18) * wide, y, canvas.hazy((24, 24, 27), near), CAR)
    canvas.box(x - 0.5 * wide, y - 0.1 * wide - tall, x + 0.5 * wide, y - 0.08 * wide, body, CAR)
    waist = y - 0.1 * wide - tall
    outline = ((-0.43, 0.0), (-0.31, 1.0), (0.31, 1.0), (0.43, 0.0))
    canvas.polygon([(x + a * wide, waist - up * roof) for a, up in outline], shade(body, 0.86), CAR)
    glass = canvas.hazy(shade((60, 70, 82), rng.uniform(0.7, 1.5)), near)
    canvas.polygon([(x + 0.86 * a * wide, waist - (0.1 + 0.76 * up) * roof) for a, up in outline], glass, None)
    lamps = (214, 48, 40) if across > 0 else (244, 240, 214)
    for side in (-0.47, 0.33):
        box = (x + side * wide, waist + 0.18 * tall, x + (side + 0.14) * wide, waist + 0.45 * tall)
        canvas.box(*box, canvas.hazy(lamps, near), None)


def draw_person(canvas: Canvas, rng: np.random.Generator, across: float, near: float) -> None:
    """Standing or walking, in a coat."""
    x, y = canvas.view.point(across, near)
    tall = rng.uniform(0.27, 0.36) * near * canvas.view.height
    stride = rng.uniform(0.0, 0.09) * tall
    coat = canvas.hazy(rng.integers(30, 205, 3).tolist(), near)
    trousers = canvas.hazy(rng.integers(25, 110, 3).tolist(), near)
    canvas.shadow(x, y, 0.2 * tall, 0.05 * tall)
    for side in (-1, 1):
        foot = x + side * (0.05 * tall + stride)
        hip = x + side * 0.055 * tall
        corners = [(hip - 0.06 * tall, y - 0.48 * tall), (hip + 0.06 * tall, y - 0.48 * tall)]
        corners += [(foot + 0.045 * tall, y), (foot - 0.045 * tall, y)]
        canvas.polygon(corners, trousers, PERSON)
    canvas.box(x - 0.14 * tall, y - 0.84 * tall, x + 0.14 * tall, y - 0.42 * tall, coat, PERSON)
    skin = canvas.hazy(shade((206, 164, 138), rng.uniform(0.45, 1.1)), near)
    canvas.ellipse(x, y - 0.92 * tall, 0.075 * tall, 0.09 * tall, skin, PERSON)


def noise_field(rng: np.random.Generator, height: int, width: int, cell: int) -> npt.NDArray[np.float32]:
    """Smooth noise, float32 [height, width], about -1 to 1, that varies over `cell` pixels."""
    rows, columns = -(-height // cell) + 1, -(-width // cell) + 1
    grid = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32)
