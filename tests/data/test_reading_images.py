from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twins_trt.data import open_dataset, read_image, read_label
from twins_trt.errors import DataError, ImageError, TwinsError


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth RGB picture in which no two rows, columns or channels are alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 255 // (width + 2 * height)], 2).astype(
        np.uint8
    )


def test_png_pixels_come_back_as_they_were(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert np.array_equal(image, gradient())
    image[0, 0] = 7  # a reader may write into what it got
    assert image[0, 0].tolist() == [7, 7, 7]


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """The array transform of every orientation, written out from the EXIF standard's row/column table."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }
    stored = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), undo[orientation](stored))


def test_other_pixel_formats_become_rgb(tmp_path: Path) -> None:
    rgb = gradient()
    grey = rgb[:, :, 0]
    wide = (grey.astype(np.uint16) << 8) | 0x5A
    alpha = np.dstack([rgb, np.full(grey.shape, 3, np.uint8)])
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([grey, alpha[:, :, 3]]), "LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(rgb // 128 * 128).quantize(8).save(tmp_path / "palette.png")
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")

    for name in ("grey.png", "wide.png", "wide.tif", "grey_alpha.png"):
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8, name
        assert np.array_equal(image, np.dstack([grey] * 3)), name
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgb)  # dropped, not blended into black
    assert np.array_equal(read_image(tmp_path / "palette.png"), rgb // 128 * 128)
    assert np.array_equal(read_image(tmp_path / "bits.png")[:, :, 1], np.where(grey > 99, 255, 0))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header", "crc", "missing", "folder", "float"])
def test_a_broken_image_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "street.png"
    Image.fromarray(gradient(64, 64)).save(path)
    data = bytearray(path.read_bytes())
    if damage == "crc":
        data[len(data) // 2] ^= 0xFF
    contents = {"empty": b"", "text": b"not an image", "cut": data[: len(data) // 2], "header": data[:20], "crc": data}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "missing":
        path.unlink()
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path = tmp_path / "street.tif"
        Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert path.name in caught.value.cause


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
    for name, said in (("colour.png", "RGB"), ("large.png", "300"), ("cut.png", "decoded"), ("none.png", "not exist")):
        with pytest.raises(DataError, match=said) as caught:
            read_label(tmp_path / name)
        assert name in caught.value.cause
        assert isinstance(caught.value, TwinsError)
