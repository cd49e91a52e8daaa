"""Files, folders and patterns to paths; every kind of image file to RGB pixels or an error that names it."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import UInt8Array

from twins_trt.data import read_image as read_sample
from twins_trt.errors import ImageError, MissingDependencyError
from twins_trt.runtime import expand_sources, read_image
from twins_trt.runtime.sources import to_rgb


@pytest.fixture
def pixels(rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10.png", "2.png", "1.JPG", "b/3.png", "b/20.jpeg", "B.bmp", ".hidden.png", "notes.txt", "[x].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def named(folder: Path, *sources: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in expand_sources([folder / source for source in sources])]


def test_a_folder_gives_its_own_images_as_people_count(folder: Path) -> None:
    assert named(folder, ".") == ["1.JPG", "2.png", "10.png", "[x].png", "B.bmp"]


def test_patterns_and_all_levels(folder: Path) -> None:
    assert named(folder, "*.png") == ["2.png", "10.png", "[x].png"]
    assert named(folder, "**/*") == ["1.JPG", "2.png", "10.png", "[x].png", "B.bmp", "b/3.png", "b/20.jpeg"]


def test_a_file_is_taken_as_it_is_even_if_it_looks_like_a_pattern(folder: Path) -> None:
    assert named(folder, "notes.txt", "[x].png") == ["notes.txt", "[x].png"]
    assert expand_sources(str(folder / "2.png")) == [folder / "2.png"]


def test_each_image_comes_once_in_the_order_named(folder: Path) -> None:
    assert named(folder, "b", "10.png", "*.png") == ["b/3.png", "b/20.jpeg", "10.png", "2.png", "[x].png"]


@pytest.mark.parametrize(
    ("source", "said"),
    [("absent.png", r"absent\.png does not exist"), ("*.webp", r"no image matches"), ("empty", r"holds no images")],
)
def test_a_source_that_gives_nothing_is_named(folder: Path, source: str, said: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=said):
        expand_sources([folder / "2.png", folder / source])


def test_rgb_files_come_back_exactly(pixels: UInt8Array, tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "ppm"):
        Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
        image = read_image(tmp_path / f"x.{suffix}")
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous and image.flags.writeable
        assert np.array_equal(image, pixels)


def test_grey_palette_and_transparent_files_become_rgb(pixels: UInt8Array, tmp_path: Path) -> None:
    grey = pixels[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, 2))

    Image.fromarray(np.dstack([pixels, grey])).save(tmp_path / "rgba.png")
    assert np.array_equal(read_image(tmp_path / "rgba.png"), pixels)  # alpha dropped, not blended

    Image.fromarray(np.dstack([grey, pixels[:, :, 1]])).save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png"), np.repeat(grey[:, :, None], 3, 2))

    indexed = Image.fromarray(grey % 4)
    indexed.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9, 200, 210, 220])
    indexed.save(tmp_path / "palette.png", transparency=0)
    table = np.array([[1, 2, 3], [40, 50, 60], [7, 8, 9], [200, 210, 220]], np.uint8)
    assert np.array_equal(read_image(tmp_path / "palette.png"), table[grey % 4])

    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[:, :, 1], np.where(grey > 127, 255, 0))


def test_of_sixteen_bits_the_high_byte_stays(rng: np.random.Generator, tmp_path: Path) -> None:
    wide = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, 2))


def png_rgb16(wide: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = wide.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_of_colour(rng: np.random.Generator, tmp_path: Path) -> None:
    wide = rng.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(png_rgb16(wide))
    assert np.array_equal(read_image(tmp_path / "x.png"), (wide >> 8).astype(np.uint8))


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    solid = np.empty((16, 16, 3), np.uint8)
    solid[:] = (200, 40, 90)
    Image.fromarray(solid).convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - solid).max() <= 3


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(pixels: UInt8Array, tmp_path: Path, orientation: int) -> None:
    """TURNED stores what a camera held that way writes: applying the tag has to give the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](pixels)))
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), pixels)
    with Image.open(tmp_path / "x.png") as picture:
        assert np.array_equal(to_rgb(picture), pixels)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_changes_nothing(pixels: UInt8Array, tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), pixels)


def test_broken_files_are_named(pixels: UInt8Array, tmp_path: Path) -> None:
    Image.fromarray(np.tile(pixels, (40, 40, 1))).save(tmp_path / "whole.jpg")
    Image.fromarray(np.tile(pixels, (40, 40, 1))).save(tmp_path / "whole.png")
    for name in ("jpg", "png"):
        whole = (tmp_path / f"whole.{name}").read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "int.tif")
    for name, said in (
        ("cut.jpg", "cannot be decoded"),
        ("cut.png", "cannot be decoded"),
        ("empty.png", "cannot be decoded: it is empty"),
        ("text.png", "cannot be decoded: it is not an image that Pillow knows"),
        ("folder.png", "is a folder, not an image"),
        ("absent.png", "does not exist"),
        ("float.tif", "holds floating-point pixels"),
        ("int.tif", "holds 32-bit pixels"),
    ):
        with pytest.raises(ImageError, match=said) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in caught.value.cause


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    pixels: UInt8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"x\.png is too large: .*35 pixels.*exceeds limit"):
        read_image(tmp_path / "x.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission_is_named(pixels: UInt8Array, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(ImageError, match=r"x\.png cannot be decoded: no permission"):
        read_image(tmp_path / "x.png")


def test_the_runtime_sees_the_pixels_that_the_evaluation_sees(rng: np.random.Generator, tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((88, 72)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=85, exif=exif)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(smooth).convert("P").save(tmp_path / "c.png")
    for path in expand_sources(tmp_path):
        assert np.array_equal(read_image(path), read_sample(path))


def test_without_pillow_reading_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="Pillow"):
        read_image(tmp_path / "x.png")
