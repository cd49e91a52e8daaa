"""Every kind of image and label file to pixels, or to an error that names it."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from twins_trt import runtime
from twins_trt.data import open_dataset, read_image, read_label
from twins_trt.data.images import to_rgb
from twins_trt.errors import DataError, ImageError, MissingDependencyError, TwinsError

UInt8Array = npt.NDArray[np.uint8]


@pytest.fixture
def pixels(rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth RGB picture in which no two rows, columns or channels are alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 255 // (width + 2 * height)], 2).astype(
        np.uint8
    )


def test_jpeg_pixels_are_opencvs(tmp_path: Path) -> None:
    """mmsegmentation decodes with OpenCV; 4:2:0 chroma, odd sizes and a progressive file are where decoders part."""
    cv2 = pytest.importorskip("cv2")
    for name, size, options in (
        ("plain", (24, 40), {"quality": 90}),
        ("odd", (33, 51), {"quality": 75, "subsampling": 2}),
        ("progressive", (48, 64), {"quality": 60, "progressive": True}),
        ("full_chroma", (17, 19), {"quality": 95, "subsampling": 0}),
    ):
        path = tmp_path / f"{name}.jpg"
        noisy = gradient(*size).astype(int) + np.random.default_rng(1).integers(-20, 20, (*size, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, **options)
        assert np.array_equal(read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1]), name


@pytest.mark.shared
def test_real_jpegs_are_opencvs_pixel_for_pixel(camvid: Path, shared: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    items = open_dataset(f"camvid:{camvid}").items[::10] + open_dataset(f"ade20k:{shared / 'data/ade20k'}").items
    differing = [i.name for i in items if not np.array_equal(read_image(i.image), cv2.imread(str(i.image))[:, :, ::-1])]
    assert len(items) == 12
    assert differing == []


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
    damaged = bytearray((tmp_path / "whole.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "checksum.png").write_bytes(damaged)
    for name, said in (
        ("cut.jpg", "cannot be decoded"),
        ("cut.png", "cannot be decoded"),
        ("empty.png", "cannot be decoded: it is empty"),
        ("text.png", "cannot be decoded: it is not an image that Pillow knows"),
        ("folder.png", "is a folder, not an image"),
        ("absent.png", "does not exist"),
        ("float.tif", "holds floating-point pixels"),
        ("int.tif", "holds 32-bit pixels"),
        ("checksum.png", "cannot be decoded"),
    ):
        with pytest.raises(ImageError, match=said) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in caught.value.cause


def test_pixels_that_pillow_cannot_convert_are_refused() -> None:
    with pytest.raises(ImageError, match="the image has La pixels"):
        to_rgb(Image.new("La", (2, 2)))


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


def test_without_pillow_reading_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="Pillow"):
        read_image(tmp_path / "x.png")


def test_labels_keep_their_values(tmp_path: Path) -> None:
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(label).save(tmp_path / "grey.png")
    indexed = Image.fromarray(label, "P")
    indexed.putpalette([255 - value // 3 for value in range(768)])
    indexed.save(tmp_path / "indexed.png")
    Image.fromarray(label.astype(np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(label % 2 > 0).save(tmp_path / "bits.png")
    for name in ("grey.png", "indexed.png", "wide.png"):
        read = read_label(tmp_path / name)
        assert read.dtype == np.uint8, name
        assert np.array_equal(read, label), name
    assert np.array_equal(read_label(tmp_path / "bits.png"), label % 2)


def test_labels_that_cannot_be_class_indices_are_refused(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "colour.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:60])
    for name, said in (
        ("colour.png", "RGB"),
        ("large.png", "300"),
        ("cut.png", "decoded"),
        ("none.png", "not exist"),
        (".", "folder"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_label(tmp_path / name)
        assert str(tmp_path / name) in caught.value.cause
        assert isinstance(caught.value, TwinsError)


def test_the_runtime_reads_with_the_same_code() -> None:
    assert runtime.read_image is read_image
