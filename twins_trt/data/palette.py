"""Colours for classes: CamVid's own for its classes, generated distinct ones for all others."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[int, int, int]

# The data set's colours for the eleven classes of the usual CamVid split. Keys are compared without case and
# separators, since copies of the data set spell them `SignSymbol`, `sign_symbol` and `Sign Symbol`.
CAMVID_COLOURS: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def camvid_palette(classes: Sequence[str]) -> tuple[Colour, ...]:
    """CamVid's colours for `classes` in their order, or a generated palette if one of them is not CamVid's."""
    keys = ["".join(c for c in name.lower() if c.isalnum()) for name in classes]
    if all(key in CAMVID_COLOURS for key in keys):
        return tuple(CAMVID_COLOURS[key] for key in keys)
    return generated_palette(len(classes))


def generated_palette(num_classes: int) -> tuple[Colour, ...]:
    """`num_classes` distinct RGB colours, at most 255, none black. More classes do not change the first colours.

    The bit pattern of PASCAL VOC's colour map: bit 3k of the index goes to bit 7-k of red, bit 3k+1 to green, 3k+2 to
    blue. Counting starts at 1 because VOC's colour 0 is black, which on an overlay reads as "no class".
    """
    return tuple(_voc_colour(index + 1) for index in range(num_classes))


def _voc_colour(index: int) -> Colour:
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> (3 * bit) & 1) << (7 - bit)
        green |= (index >> (3 * bit + 1) & 1) << (7 - bit)
        blue |= (index >> (3 * bit + 2) & 1) << (7 - bit)
    return red, green, blue
