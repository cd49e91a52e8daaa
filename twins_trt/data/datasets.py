"""Segmentation data sets named by a string: `camvid:PATH`, `ade20k:PATH`, `folder:PATH`.

A data set is a sorted list of (name, image file, label file); files are read when a sample is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twins_trt.data.ade20k import ADE20K_CLASSES, ADE20K_PALETTE
from twins_trt.data.images import IGNORE_INDEX, IMAGE_SUFFIXES, LABEL_SUFFIXES, UInt8Array, read_image, read_label
from twins_trt.data.loading import load_in_order
from twins_trt.data.palette import Colour, camvid_palette, generated_palette
from twins_trt.errors import DataError, UsageError

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Sample:
    """One image, and its labels where the data set has any.

    name: file name without suffix. image: uint8 [H, W, 3], RGB. label: uint8 [H, W], 255 = ignore; None if unlabelled.
    """

    name: str
    image: UInt8Array
    label: UInt8Array | None


@dataclass(frozen=True)
class Item:
    """The files of a sample."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """A sequence of samples in the order of their names.

    source: what was opened, such as `camvid:PATH`. classes, palette: empty if the data set does not name its classes.
    void: a label value beside 255 that means "no class", or None. reduce_zero: label 0 means "no class", and the labels
    of the classes start at 1.
    """

    source: str
    split: str
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    void: int | None = None
    reduce_zero: bool = False

    ignore_index = IGNORE_INDEX

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample. Raises ImageError on a broken image and DataError on a label that does not fit."""
        return self.read(self.items[index])

    def __iter__(self) -> Iterator[Sample]:
        return self.load()

    @property
    def labelled(self) -> bool:
        """True if every sample comes with labels."""
        return all(item.label is not None for item in self.items)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)

    def read(self, item: Item) -> Sample:
        """Read the files of one item. Raises as indexing does."""
        image = read_image(item.image)
        return Sample(item.name, image, None if item.label is None else self._label(item.label, image.shape[:2]))

    def load(self, *, workers: int = 0) -> Iterator[Sample]:
        """All samples in order. workers: processes that read ahead; 0 reads in this process, one sample at a time.

        Processes are spawned: a script that uses them needs the usual `if __name__ == "__main__":`.
        """
        # The reader is pickled with every item: without the list of items it is a few kilobytes.
        return load_in_order(replace(self, items=()).read, self.items, workers=workers)

    def first(self, count: int | None) -> Dataset:
        """The same data set with its first `count` samples only; None keeps all."""
        if count is not None and count < 1:
            raise UsageError(f"cannot take {count} samples of a data set", "give a limit of at least 1")
        return replace(self, items=self.items[:count])

    def thinned(self, count: int) -> Dataset:
        """The same data set with `count` samples at even distances; 0, or more than there are, keeps all."""
        if count < 0:
            raise UsageError(f"cannot take {count} samples of a data set", "give how many, or 0 for all")
        kept = min(count or len(self), len(self))
        return replace(self, items=tuple(self.items[index * len(self) // kept] for index in range(kept)))

    def with_conventions(
        self, *, reduce_zero_label: bool | None, ignore_index: int = IGNORE_INDEX, binary: bool = False
    ) -> Dataset:
        """The same data set with labels read as a checkpoint says. Only `folder:PATH` follows it.

        `camvid:PATH` and `ade20k:PATH` have conventions of their own, and a contradiction is logged.
        reduce_zero_label: whether label 0 means "no class"; None says nothing. ignore_index: the label of pixels that
        do not count. binary: the classes are those of a head with one logit (`with_background`).
        """
        if binary:
            return self.with_background().with_conventions(
                reduce_zero_label=reduce_zero_label, ignore_index=ignore_index
            )
        if self.source.startswith("folder:"):
            reduced = self.reduce_zero if reduce_zero_label is None else reduce_zero_label
            return replace(self, reduce_zero=reduced, void=self.void if ignore_index == IGNORE_INDEX else ignore_index)
        if reduce_zero_label is not None and reduce_zero_label != self.reduce_zero:
            log.warning(
                "the checkpoint says reduce_zero_label=%s, and %s has its own convention, which holds: %s",
                reduce_zero_label,
                self.source,
                self.reduce_zero,
            )
        if ignore_index not in (IGNORE_INDEX, self.void):
            log.warning(
                "the checkpoint says ignore_index=%d, and %s has its own convention, which holds: %s",
                ignore_index,
                self.source,
                IGNORE_INDEX if self.void is None else f"{self.void} and {IGNORE_INDEX}",
            )
        return self

    def with_background(self) -> Dataset:
        """The same data set for a head with one logit: one named class is the foreground, and label 0 is the rest.

        A data set that names other than one class stays as it is.
        """
        if len(self.classes) != 1:
            return self
        return replace(self, classes=("background", *self.classes), palette=((0, 0, 0), *generated_palette(2)[1:]))

    def _label(self, path: Path, size: tuple[int, ...]) -> UInt8Array:
        label = read_label(path)
        if label.shape != size:
            raise DataError(
                f"label {path} is {label.shape[0]}x{label.shape[1]} but its image is {size[0]}x{size[1]}",
                "resize the labels with nearest neighbour to the size of the upright image",
            )
        if self.reduce_zero:
            # In uint8, 0 - 1 is 255. A 255 in the file stays "ignore" and does not become class 254.
            label = np.where(label == IGNORE_INDEX, IGNORE_INDEX, label - np.uint8(1)).astype(np.uint8)
        if self.void is not None:
            label[label == self.void] = IGNORE_INDEX
        if self.classes:
            wrong = label[(label != IGNORE_INDEX) & (label >= len(self.classes))]
            if wrong.size:
                value = int(wrong.max()) + int(self.reduce_zero)  # as it is in the file
                raise DataError(
                    f"label {path} has the value {value}, but {self.source} has {len(self.classes)} classes",
                    "correct the label, mark those pixels 255, or name every class in classes.txt",
                )
        return label


def open_dataset(source: str, *, split: str = "val") -> Dataset:
    """Open a data set by name.

    source: one of
        `camvid:PATH`  PATH/{train,val,...}/{images,labels}, PATH/classes.txt; the label one past the classes is void
        `ade20k:PATH`  the ADEChallengeData2016 layout: images/{training,validation}, annotations/{...}
        `folder:PATH`  images/, optionally labels/ (same file names) and classes.txt (one name a line); with a split as
                       PATH/SPLIT/images or PATH/images/SPLIT if it exists. PATH may itself be a folder of images.
    split: `train`, `val` or another folder of the data set.

    Raises UsageError for a source of another form, DataError for a folder of another layout, an empty folder, or an
    image without a label.
    """
    kind, colon, folder = source.partition(":")
    if not colon or kind not in _LAYOUTS or not folder:
        known = ", ".join(f"{name}:PATH" for name in _LAYOUTS)
        raise UsageError(f"{source!r} does not name a data set", f"write one of {known}")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{source}: there is no folder {root}", "give the path of the data set's top folder")
    if not split or Path(split).name != split:
        raise UsageError(f"{split!r} does not name a split", "write the name of one folder, such as val")
    dataset = _LAYOUTS[kind](source, root, split)
    if not dataset.items:
        raise DataError(f"{source} has no images for split {split}", f"supported: {', '.join(IMAGE_SUFFIXES)}")
    return dataset


def _camvid(source: str, root: Path, split: str) -> Dataset:
    names = root / "classes.txt"
    if not names.is_file():
        raise DataError(f"{source}: {names} is missing", "write the class names there, one a line, in label order")
    classes = _read_classes(names)
    images, labels = root / split / "images", root / split / "labels"
    _require(source, split, images, splits=_subfolders(root, with_images=True))
    _require(source, split, labels, splits=())
    items = _pair(images, labels)
    return Dataset(source, split, items, classes, camvid_palette(classes), void=len(classes))


def _ade20k(source: str, root: Path, split: str) -> Dataset:
    if not (root / "images").is_dir() and (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = {"val": "validation", "train": "training"}.get(split, split)
    images, labels = root / "images" / folder, root / "annotations" / folder
    _require(source, split, images, splits=_subfolders(root / "images"))
    _require(source, split, labels, splits=())
    return Dataset(source, split, _pair(images, labels), ADE20K_CLASSES, ADE20K_PALETTE, reduce_zero=True)


def _folder(source: str, root: Path, split: str) -> Dataset:
    classes = _read_classes(root / "classes.txt") if (root / "classes.txt").is_file() else ()
    if (root / split / "images").is_dir():
        images, labels = root / split / "images", root / split / "labels"
    elif (root / "images" / split).is_dir():
        images, labels = root / "images" / split, root / "labels" / split
    elif (root / "images").is_dir():
        images, labels = root / "images", root / "labels"
    else:
        images, labels = root, root / "labels"
    items = _pair(images, labels if labels.is_dir() else None)
    splits = _subfolders(root / "images") or _subfolders(root, with_images=True)
    if not items and split not in splits:
        _require(source, split, root / "images" / split, splits=splits)
    return Dataset(source, split, items, classes, generated_palette(len(classes)))


_LAYOUTS: dict[str, Callable[[str, Path, str], Dataset]] = {"camvid": _camvid, "ade20k": _ade20k, "folder": _folder}


def _require(source: str, split: str, folder: Path, *, splits: tuple[str, ...]) -> None:
    if not folder.is_dir():
        fix = f"splits found: {', '.join(splits)}" if splits else "see open_dataset for the layout that is expected"
        raise DataError(f"{source} has no split {split}: there is no folder {folder}", fix)


def _subfolders(folder: Path, *, with_images: bool = False) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    folders = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return tuple(sorted(entry.name for entry in folders if not with_images or (entry / "images").is_dir()))


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "store it as UTF-8 text, one class name a line") from error
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes or len(set(classes)) != len(classes) or len(classes) > IGNORE_INDEX:
        raise DataError(f"{path} must name 1 to 255 different classes, it has {len(classes)} lines", "one name a line")
    return classes


def _pair(images: Path, labels: Path | None) -> tuple[Item, ...]:
    """Every image of a folder with the label file of the same stem, sorted by name."""
    pictures = _by_stem(images, IMAGE_SUFFIXES)
    if labels is None:
        return tuple(Item(stem, path, None) for stem, path in pictures.items())
    maps = _by_stem(labels, LABEL_SUFFIXES)
    if lacking := [stem for stem in pictures if stem not in maps]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{pictures[lacking[0]]}{more} has no label in {labels}",
            f"add {lacking[0]}.png there (one class index a pixel), or remove the image",
        )
    return tuple(Item(stem, path, maps[stem]) for stem, path in pictures.items())


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    # Sorted by stem, not by path: `a-1.png` sorts before `a.png` although `a` sorts before `a-1`.
    for path in sorted(folder.iterdir(), key=lambda entry: (entry.stem, entry.suffix)):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if path.stem in paths:
            raise DataError(f"{paths[path.stem]} and {path} share one name", "keep one of them")
        paths[path.stem] = path
    return paths
