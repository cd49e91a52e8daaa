from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twins_trt.data import ADE20K_CLASSES, ADE20K_PALETTE, generated_palette, open_dataset
from twins_trt.errors import DataError, ImageError, UsageError


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(value: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def label(*values: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), size)


@pytest.fixture
def camvid_like(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    for index, name in enumerate(["b-1", "a", "b"]):
        for split in ("train", "val"):
            write(tmp_path / split / "images" / f"{name}.png", picture(10 * index))
            write(tmp_path / split / "labels" / f"{name}.png", label(0, 1, 2, 3))
    return tmp_path


@pytest.fixture
def ade_like(tmp_path: Path) -> Path:
    for split in ("training", "validation"):
        write(tmp_path / "images" / split / "ADE_00000002.jpg", picture(2))
        write(tmp_path / "images" / split / "ADE_00000001.jpg", picture(1))
        write(tmp_path / "annotations" / split / "ADE_00000001.png", label(0, 1, 150, 255))
        write(tmp_path / "annotations" / split / "ADE_00000002.png", label(7))
    return tmp_path


def test_camvid_is_read_in_the_order_of_names_and_its_void_is_ignored(camvid_like: Path) -> None:
    dataset = open_dataset(f"camvid:{camvid_like}", split="val")
    assert len(dataset) == 3
    assert dataset.names == ("a", "b", "b-1")
    assert [sample.name for sample in dataset] == ["a", "b", "b-1"]
    assert [int(sample.image[0, 0, 0]) for sample in dataset] == [10, 20, 0]
    assert dataset.classes == ("sky", "road", "car")
    assert dataset.palette == ((128, 128, 128), (128, 64, 128), (64, 0, 128))  # CamVid's own colours
    assert dataset.ignore_index == 255
    sample = dataset[-1]
    assert (sample.name, sample.image.shape, sample.label.dtype) == ("b-1", (6, 8, 3), np.uint8)
    assert np.array_equal(sample.label, label(0, 1, 2, 255))


def test_ade20k_counts_classes_from_one_and_ignores_zero(ade_like: Path) -> None:
    for split in ("val", "validation", "train"):
        dataset = open_dataset(f"ade20k:{ade_like}", split=split)
        assert dataset.names == ("ADE_00000001", "ADE_00000002")
        assert np.array_equal(dataset[0].label, label(255, 0, 149, 255))
        assert np.array_equal(dataset[1].label, label(6))
    assert (dataset.classes, dataset.palette) == (ADE20K_CLASSES, ADE20K_PALETTE)


def test_ade20k_opens_from_the_folder_above_too(tmp_path: Path) -> None:
    write(tmp_path / "ADEChallengeData2016/images/validation/x.jpg", picture(1))
    write(tmp_path / "ADEChallengeData2016/annotations/validation/x.png", label(1))
    assert open_dataset(f"ade20k:{tmp_path}").names == ("x",)


def test_ade20k_names_and_colours() -> None:
    assert len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    assert len(ADE20K_PALETTE) == 150
    assert all(len(colour) == 3 and all(0 <= c <= 255 for c in colour) for colour in ADE20K_PALETTE)
    assert all(name == name.strip() for name in ADE20K_CLASSES)
    # The ends and two in between, so that a dropped or swapped entry shows.
    assert [ADE20K_CLASSES[i] for i in (0, 12, 20, 149)] == ["wall", "person", "car", "flag"]
    assert [ADE20K_PALETTE[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]


def test_a_generated_palette_has_distinct_colours_and_grows_at_the_end() -> None:
    colours = generated_palette(255)
    assert len(set(colours)) == 255
    assert (0, 0, 0) not in colours
    assert generated_palette(3) == colours[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))


def test_folder_layouts(tmp_path: Path) -> None:
    flat, by_split, split_first, plain = (tmp_path / name for name in ("flat", "by_split", "split_first", "plain"))
    write(flat / "images/x.PNG", picture(1))
    write(flat / "labels/x.png", label(9))
    (flat / "images/.hidden.png").write_bytes(b"")
    (flat / "images/readme.txt").write_text("not an image")
    for split in ("train", "val"):
        write(by_split / "images" / split / f"{split}.jpg", picture(1))
        write(by_split / "labels" / split / f"{split}.png", label(0))
        write(split_first / split / "images" / f"{split}.jpg", picture(1))
        write(split_first / split / "labels" / f"{split}.png", label(0))
    (by_split / "classes.txt").write_text("\ufeffa\n\n b \n", encoding="utf-8")
    write(plain / "y.jpg", picture(1))

    dataset = open_dataset(f"folder:{flat}", split="anything")
    assert (dataset.names, dataset.classes, dataset.palette) == (("x",), (), ())
    assert dataset.labelled
    assert np.array_equal(dataset[0].label, label(9))  # no classes.txt: any value will do
    for root in (by_split, split_first):
        assert open_dataset(f"folder:{root}", split="train").names == ("train",)
        assert open_dataset(f"folder:{root}").names == ("val",)
    assert open_dataset(f"folder:{by_split}").classes == ("a", "b")
    unlabelled = open_dataset(f"folder:{plain}")
    assert (unlabelled.names, unlabelled.labelled, unlabelled[0].label) == (("y",), False, None)


def test_first_cuts_and_keeps_everything_else(camvid_like: Path) -> None:
    dataset = open_dataset(f"camvid:{camvid_like}")
    assert dataset.first(2).names == ("a", "b")
    assert dataset.first(None) == dataset
    assert dataset.first(99) == dataset
    assert dataset.first(1).classes == dataset.classes
    for count in (0, -1):
        with pytest.raises(UsageError, match="limit"):
            dataset.first(count)


def breakage(root: Path, name: str) -> None:
    """Damages a CamVid-like folder in one way."""
    images, labels = root / "val/images", root / "val/labels"
    if name == "no such folder":
        root.rename(root.with_name("elsewhere"))
    elif name == "no split":
        images.parent.rename(root / "test")
    elif name == "no labels folder":
        labels.rename(root / "val/masks")
    elif name == "no classes file":
        (root / "classes.txt").unlink()
    elif name == "no class in the file":
        (root / "classes.txt").write_text("\n \n")
    elif name == "a class twice":
        (root / "classes.txt").write_text("sky\nroad\nsky\n")
    elif name == "classes not text":
        (root / "classes.txt").write_bytes(b"\xff\xfe\x00sky")
    elif name == "missing label":
        (labels / "a.png").unlink()
    elif name == "JPEG label":
        (labels / "a.png").rename(labels / "a.jpg")
    elif name == "no images":
        for path in images.iterdir():
            path.unlink()
    elif name == "two images of one name":
        write(images / "a.jpg", picture(1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no such folder", "there is no folder"),
        ("no split", "splits found: test, train"),
        ("no labels folder", "labels"),
        ("no classes file", "classes.txt is missing"),
        ("no class in the file", "1 to 255 different classes"),
        ("a class twice", "1 to 255 different classes"),
        ("classes not text", "UTF-8"),
        ("missing label", r"a\.png has no label"),
        ("JPEG label", r"a\.png has no label"),
        ("no images", "no images for split val"),
        ("two images of one name", "share one name"),
    ],
)
def test_a_folder_that_is_not_of_the_layout_is_refused_with_the_mend(camvid_like: Path, name: str, said: str) -> None:
    breakage(camvid_like, name)
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(f"camvid:{camvid_like}")
    assert caught.value.fix


def test_a_missing_split_of_a_folder_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "images/train/x.jpg", picture(1))
    with pytest.raises(DataError, match="splits found: train"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("source", ["", "camvid", "camvid:", "cityscapes:/data", "/data/camvid", ":x"])
def test_a_source_of_another_form_is_a_usage_error(source: str) -> None:
    with pytest.raises(UsageError, match=r"camvid:PATH, ade20k:PATH, folder:PATH"):
        open_dataset(source)


@pytest.mark.parametrize("split", ["", "../val", "val/images", "."])
def test_a_split_is_the_name_of_one_folder(camvid_like: Path, split: str) -> None:
    with pytest.raises(UsageError, match="split"):
        open_dataset(f"camvid:{camvid_like}", split=split)


def test_what_is_wrong_inside_the_files_is_said_when_they_are_read(camvid_like: Path, ade_like: Path) -> None:
    dataset = open_dataset(f"camvid:{camvid_like}")
    a, b, c = (item.label for item in dataset.items)
    write(a, label(0, 4))  # classes 0-2, void 3
    write(b, label(0, size=(8, 6)))
    write(c, np.zeros((6, 8, 3), np.uint8))
    for index, said in ((0, "value 4.* 3 classes"), (1, "8x6 but its image is 6x8"), (2, "RGB picture")):
        with pytest.raises(DataError, match=said) as caught:
            dataset[index]
        assert str(dataset.items[index].label) in caught.value.cause
    dataset.items[0].image.write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"a\.png"):
        dataset[0]
    with pytest.raises(IndexError):
        dataset[3]

    ade = open_dataset(f"ade20k:{ade_like}")
    write(ade.items[0].label, label(151))
    with pytest.raises(DataError, match="value 151"):
        ade[0]


@pytest.mark.shared
def test_the_real_camvid(camvid: Path) -> None:
    train, val = (open_dataset(f"camvid:{camvid}", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    assert val.names == tuple(sorted(val.names))
    assert len(val.classes) == 11
    sample = val[0]
    assert (sample.image.shape, sample.label.shape) == ((360, 480, 3), (360, 480))
    assert set(np.unique(sample.label)) <= {*range(11), 255}


@pytest.mark.shared
def test_the_checkpoints_palette_is_ours(camvid: Path, camvid_checkpoint: Path) -> None:
    from twins_trt.models.checkpoint import read_checkpoint

    meta = read_checkpoint(camvid_checkpoint).meta
    dataset = open_dataset(f"camvid:{camvid}")
    assert dataset.classes == meta.classes
    assert dataset.palette == meta.palette


@pytest.mark.shared
def test_the_real_ade20k_image(shared: Path) -> None:
    dataset = open_dataset(f"ade20k:{shared / 'data/ade20k'}")
    sample = dataset[0]
    raw = np.asarray(Image.open(dataset.items[0].label))
    assert sample.image.shape == (512, 683, 3)
    assert np.array_equal(sample.label[raw > 0], raw[raw > 0] - 1)
    assert (sample.label[raw == 0] == 255).all()
    present = {dataset.classes[i] for i in np.unique(sample.label) if i != 255}
    assert "building" in present or "wall" in present, json.dumps(sorted(present))


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    write(tmp_path / "images" / "a.png", picture(1))
    write(tmp_path / "labels" / "a.png", label(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    return tmp_path


def test_a_folders_labels_are_read_as_the_checkpoint_says(plain_folder: Path) -> None:
    dataset = open_dataset(f"folder:{plain_folder}")
    with pytest.raises(DataError, match="has the value 2"):
        dataset[0]  # unless they count from 1
    reduced = dataset.with_conventions(reduce_zero_label=True)
    assert np.array_equal(reduced[0].label, label(255, 0, 1, 255))
    ignored = dataset.with_conventions(reduce_zero_label=None, ignore_index=2)
    assert np.array_equal(ignored[0].label, label(0, 1, 255, 255))
    both = dataset.with_conventions(reduce_zero_label=True, ignore_index=1)  # mmsegmentation reduces first
    assert np.array_equal(both[0].label, label(255, 0, 255, 255))
    assert reduced.with_conventions(reduce_zero_label=None) == reduced
    assert reduced.with_conventions(reduce_zero_label=False) == dataset


def test_data_sets_with_a_convention_of_their_own_keep_it(camvid_like: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(f"camvid:{camvid_like}")
    agreed = ((None, 255), (False, 255), (False, 3))
    for reduce_zero, ignore in agreed:
        assert dataset.with_conventions(reduce_zero_label=reduce_zero, ignore_index=ignore) == dataset
    assert not caplog.messages
    assert dataset.with_conventions(reduce_zero_label=True, ignore_index=0) == dataset
    for message, value, held in zip(
        caplog.messages, ("reduce_zero_label=True", "ignore_index=0"), ("False", "3 and 255"), strict=True
    ):
        assert value in message and message.endswith(f"which holds: {held}")


def test_ade20ks_labels_count_from_one_whatever_is_said(ade_like: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_dataset(f"ade20k:{ade_like}")
    assert dataset.with_conventions(reduce_zero_label=True) == dataset and not caplog.messages
    assert dataset.with_conventions(reduce_zero_label=False) == dataset
    assert [message.rsplit(": ", 1)[1] for message in caplog.messages] == ["True"]
