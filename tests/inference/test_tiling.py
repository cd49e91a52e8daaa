"""Tiles against slow code after their definition: every tile alone, summed over the whole grid, then resized."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.errors import EngineError, UsageError
from twins_trt.inference.logits import resize_logits
from twins_trt.inference.tiling import Tiles, tiled_mask

CLASSES = 4
MIX = np.random.default_rng(5).standard_normal((CLASSES, 3)).astype(np.float32)


def network(pixels: Any, *, scale: int = 4) -> Any:
    """Logits that depend on the pixels and on where in the tile they lie, so that averaging shows."""
    blocks = pixels[:, :, ::scale, ::scale].astype(np.float32) / 64
    y, x = np.mgrid[: blocks.shape[2], : blocks.shape[3]].astype(np.float32)
    return np.einsum("cf,nfhw->nchw", MIX, blocks) + 0.3 * np.sin(y + 2 * x)[None, None]


def cutter(image: Any) -> Callable[[slice, slice], Any]:
    def cut(rows: slice, columns: slice) -> Any:
        tile = np.zeros((1, 3, rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        part = image[rows, columns].transpose(2, 0, 1)
        tile[0, :, : part.shape[1], : part.shape[2]] = part
        return tile

    return cut


def starts(side: int, tile: int, step: int) -> list[int]:
    found = [0]
    while found[-1] + tile < side:
        found.append(min(found[-1] + step, side - tile))
    return found


def whole_grid(image: Any, tile: tuple[int, int], overlap: int, scale: int, predict: Any = network) -> Any:
    """Averaged logits at full size, [C, H, W]."""
    grid = [-(-max(side, t) // scale) for side, t in zip(image.shape[:2], tile, strict=True)]
    height, width = (t // scale for t in tile)
    total, count = np.zeros((CLASSES, *grid)), np.zeros(grid)
    cut = cutter(image)
    for top in starts(grid[0], height, max(1, (tile[0] - overlap) // scale)):
        for left in starts(grid[1], width, max(1, (tile[1] - overlap) // scale)):
            rows = slice(top * scale, top * scale + tile[0])
            pixels = cut(rows, slice(left * scale, left * scale + tile[1]))
            total[:, top : top + height, left : left + width] += predict(pixels)[0]
            count[top : top + height, left : left + width] += 1
    own = [-(-side // scale) for side in image.shape[:2]]  # without the padding of tiles that stick out
    mean = (total / count)[None, :, : own[0], : own[1]].astype(np.float32)
    full = resize_logits(mean, (own[0] * scale, own[1] * scale))[0]
    return full[:, : image.shape[0], : image.shape[1]]


def assert_same(mask: Any, scores: Any) -> None:
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.95
    assert (mask.dtype, mask.shape) == (np.uint8, scores.shape[1:])
    assert np.array_equal(mask[clear], scores.argmax(0)[clear])


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.sampled_from([8, 16, 32]), st.sampled_from([8, 24, 32])),
    st.sampled_from([0, 4, 7]),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_tiles_are_the_average_of_what_they_say(
    size: tuple[int, int], tile: tuple[int, int], overlap: int, batch: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    batches: list[int] = []

    def predict(pixels: Any) -> Any:
        batches.append(len(pixels))
        return network(pixels)

    mask = tiled_mask(predict, cutter(image), size, tile=tile, overlap=overlap, batch=batch)
    assert_same(mask, whole_grid(image, tile, overlap, 4))
    assert max(batches) <= batch


def test_logits_that_are_no_whole_fraction_of_the_tile_are_resized_to_it(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (41, 37, 3)).astype(np.uint8)

    def predict(pixels: Any) -> Any:
        return resize_logits(network(pixels, scale=1), (11, 11))

    mask = tiled_mask(predict, cutter(image), (41, 37), tile=(16, 16), overlap=5)
    assert_same(mask, whole_grid(image, (16, 16), 5, 1, lambda pixels: resize_logits(predict(pixels), (16, 16))))


def test_where_the_network_sees_each_pixel_alone_tiles_change_nothing(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (75, 130, 3)).astype(np.uint8)

    def predict(pixels: Any) -> Any:
        return np.einsum("cf,nfhw->nchw", MIX, pixels.astype(np.float32))

    whole = predict(image.transpose(2, 0, 1)[None])[0].argmax(0)
    assert np.array_equal(tiled_mask(predict, cutter(image), (75, 130), tile=(16, 32)), whole)


def test_memory_does_not_grow_with_the_height() -> None:
    """Beside the image and the mask: a strip of tiles. Ten times the height, the same peak."""

    def peak(height: int) -> int:
        image = np.broadcast_to(np.uint8(90), (height, 256, 3))
        tracemalloc.start()
        mask = tiled_mask(network, cutter(image), (height, 256), tile=(64, 64))
        highest = tracemalloc.get_traced_memory()[1] - mask.nbytes
        tracemalloc.stop()
        return highest

    low, high = peak(512), peak(5120)
    assert high < 1.05 * low
    assert high < 20 * CLASSES * 64 * 256 * 4  # logits of one strip at full size, a few times


def test_what_is_no_network_or_no_tiling_is_refused() -> None:
    with pytest.raises(EngineError, match="must return logits"):
        tiled_mask(lambda pixels: pixels[0], cutter(np.zeros((8, 8, 3), np.uint8)), (8, 8), tile=(8, 8))
    for words, tiles in (("0x8 pixels", ((0, 8), 0)), ("overlap by -1", (None, -1)), ("overlap by 8", ((8, 16), 8))):
        with pytest.raises(UsageError, match=words):
            Tiles(*tiles)
