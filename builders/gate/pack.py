"""A pack: one file with all that a gate needs beside the bundle, so that a device without torch can judge its engine.

It is a zip file of `.npy` members, for each image its pixels, its label, the float32 reference's mask and that mask's
confusion matrix, and of `pack.json`, the head, which says what they are and has the sha256 of each. NumPy and `zipfile`
read it. A pack belongs to a checkpoint, its preprocessing, a size and the images, not to a graph: the FP16 and the INT8
bundle of one checkpoint take the same one. `pack_writing.py` writes it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.images import JudgedImage
from twins_trt.builders.gate.pack_key import PackKey
from twins_trt.codec import decode, encode
from twins_trt.data.images import IGNORE_INDEX
from twins_trt.errors import PackError
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.files import sha256_of
from twins_trt.inference.interface import MASK_HOLDS, MAX_CLASSES

FORMAT_VERSION = 1
HEAD = "pack.json"
KINDS = ("image", "label", "reference", "counts")
"""The members of an image, in the order in which they lie in the file."""

MAX_HEAD = 64 << 20
"""Bytes of a head that is read. A head of 100 000 images has 40 million."""
MAX_PIXELS = 178_956_970
"""Pixels of an image that is read: Pillow decodes none that is larger, so no data set has one."""
_MAX_NPY_HEADER = 4096  # bytes; NumPy writes 128
_AGAIN = "copy the pack again, or make it again: twins-trt gate BUNDLE --data KIND:PATH --checkpoint FILE --pack NEW"


@dataclass(frozen=True)
class PackedImage:
    """One image in the head. height, width: pixels. sha256: of the content of each of its members, by kind. outside,
    highest: as in `JudgedImage`; left out where every label is a class."""

    name: str
    height: int
    width: int
    image: str
    label: str
    reference: str
    counts: str
    outside: int = 0
    highest: int = 0


@dataclass(frozen=True)
class PackHead:
    """The content of `pack.json`.

    key: what a bundle must share with the pack; in the file its fields stand beside the others. dataset, split, limit:
    what the images were read from. data_sha256: of all images and labels. twins_trt: the version that wrote the pack.
    miou: see `GateImages`; left out where nothing was recorded.
    Raises ValueError, naming the field, if the parts contradict each other.
    """

    key: PackKey
    dataset: str
    split: str
    limit: int | None
    data_sha256: str
    images: tuple[PackedImage, ...]
    twins_trt: str
    miou: float | None = None

    def __post_init__(self) -> None:
        for fault in _faults(self):
            raise ValueError(fault)

    def dumps(self) -> bytes:
        """The bytes of `pack.json`."""
        plain = encode(self)
        if self.miou is None:
            del plain["miou"]  # what says nothing is left out, so that earlier versions read the pack
        for entry in plain["images"]:
            if not entry["outside"]:
                del entry["outside"], entry["highest"]
        key = self.key.to_json()
        del plain["key"]
        whole = {"format_version": FORMAT_VERSION, **key, "num_classes": len(self.key.classes), **plain}
        return (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def loads(cls, content: bytes) -> PackHead:
        """The inverse of `dumps`. Raises ValueError with the field that is missing, unknown, mistyped or newer."""
        plain = json.loads(content)
        if not isinstance(plain, dict):
            raise ValueError(f"it holds {type(plain).__name__}, not an object")
        version = plain.pop("format_version", None)
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r}, this twins-trt reads {FORMAT_VERSION}")
        count = plain.pop("num_classes", None)
        key = {name: plain.pop(name) for name in PackKey.__dataclass_fields__ if name in plain}
        head = decode(cls, {**plain, "key": key})
        if type(count) is not int or count != len(head.key.classes):
            raise ValueError(f"it says that there are {count!r} classes, and names {len(head.key.classes)}")
        return head


def data_sha256(digests: list[tuple[str, str]]) -> str:
    """sha256 of all images and labels: it changes with any pixel and with their order. digests: of image and label."""
    return hashlib.sha256("".join(image + label for image, label in digests).encode()).hexdigest()


def array_sha256(array: npt.NDArray[Any]) -> str:
    """sha256 of an array's element type, shape and content, as 64 hex digits."""
    hashed = hashlib.sha256(f"{array.dtype.str} {list(array.shape)} ".encode())
    hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def member(index: int, kind: str) -> str:
    """The name of a member of the image at `index`."""
    return f"{kind}s/{index:06}.npy" if kind != "counts" else f"{kind}/{index:06}.npy"


@dataclass(frozen=True)
class Pack:
    """An opened pack: `GateImages`. Its images are read one at a time, and each is compared with the head.

    sha256: of the whole file.
    """

    path: Path
    head: PackHead
    sha256: str
    limit: int | None = field(default=None)

    @property
    def dataset(self) -> str:
        return self.head.dataset

    @property
    def split(self) -> str:
        return self.head.split

    @property
    def pack(self) -> str | None:
        """See `GateImages`."""
        return self.sha256

    @property
    def seconds(self) -> float | None:
        """See `GateImages`: no model runs here."""
        return None

    @property
    def miou(self) -> float | None:
        """See `GateImages`."""
        return self.head.miou

    def first(self, count: int | None) -> Pack:
        """The same pack with its first `count` images only; None keeps all."""
        return replace(self, limit=count)

    def __len__(self) -> int:
        images = len(self.head.images)
        return images if self.limit is None else min(self.limit, images)

    def __iter__(self) -> Iterator[JudgedImage]:
        """The images in order. Raises PackError for one that is not what the head says."""
        classes = len(self.head.key.classes)
        with _opened(self.path) as archive:
            for index, entry in enumerate(self.head.images[: len(self)]):
                arrays = {kind: self._read(archive, index, entry, kind) for kind in KINDS}
                counts = ConfusionMatrix(classes)
                counts.counts = arrays["counts"]
                pixels = (arrays["image"], arrays["label"], arrays["reference"])
                judged = JudgedImage(entry.name, *pixels, counts, entry.outside, entry.highest)
                if fault := _content_fault(judged):
                    raise PackError(f"{self.path}: {fault}", _AGAIN)
                yield judged

    def _read(self, archive: zipfile.ZipFile, index: int, entry: PackedImage, kind: str) -> Any:
        name = member(index, kind)
        try:
            array = _read_array(archive, name, *_layout(entry, kind, len(self.head.key.classes)))
        except Exception as error:  # zip, zlib and npy each raise their own
            raise PackError(f"{self.path}: {name} ({entry.name}) cannot be read: {error}", _AGAIN) from error
        if (found := array_sha256(array)) != (said := getattr(entry, kind)):
            raise PackError(f"{self.path}: sha256 of {name} ({entry.name}) is {said}, its content has {found}", _AGAIN)
        return array


def open_pack(path: str | Path) -> Pack:
    """Opens the pack in the file `path`: reads its head and checks that it holds exactly the members that this names,
    each of its size. The members are read, and their sha256 compared, when the images are asked for.

    Raises PackError for a file that is missing, damaged, no pack, or of a newer version.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
        raise PackError(
            f"{file} {what}",
            f"make one: twins-trt gate BUNDLE --data KIND:PATH --checkpoint FILE --pack {shlex.quote(file.name)}",
        )
    with _opened(file) as archive:
        try:
            head = PackHead.loads(_read_head(archive))
        except Exception as error:  # zip, zlib and JSON each raise their own
            raise PackError(f"{file}: {HEAD} cannot be read: {error}", _AGAIN) from error
        if fault := _member_fault(archive, head):
            raise PackError(f"{file}: {fault}", _AGAIN)
    try:
        return Pack(file, head, sha256_of(file))
    except OSError as error:
        raise PackError(f"{file} cannot be read: {error}", _AGAIN) from error


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory raises more than BadZipFile: struct.error, ValueError, ...
        raise PackError(f"{path} is no pack, or only a part of one: {error}", _AGAIN) from error


def _read_head(archive: zipfile.ZipFile) -> bytes:
    info = archive.getinfo(HEAD)
    _check_info(info)
    if info.file_size > MAX_HEAD:
        raise ValueError(f"it has {info.file_size} bytes, more than {MAX_HEAD}")
    with archive.open(info) as file:
        content = file.read(MAX_HEAD + 1)
    if len(content) != info.file_size:
        raise ValueError(f"it has {len(content)} bytes where {info.file_size} are announced")
    return content


def _check_info(info: zipfile.ZipInfo) -> None:
    """Other methods have no bound on the memory that they take to decompress, or are not there on every device."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")


def _member_fault(archive: zipfile.ZipFile, head: PackHead) -> str | None:
    """Why the members are not those of the head; None if they are."""
    found = Counter(info.filename for info in archive.infolist())
    if twice := [name for name, count in found.items() if count > 1]:
        return f"it holds {twice[0]} twice"
    wanted = {member(i, kind): (entry, kind) for i, entry in enumerate(head.images) for kind in KINDS}
    if lacking := sorted(set(wanted) - set(found)):
        return f"it lacks {lacking[0]}"
    if strange := sorted(set(found) - set(wanted) - {HEAD}):
        return f"it holds {strange[0]}, which {HEAD} does not name"
    for name, (entry, kind) in wanted.items():
        shape, dtype = _layout(entry, kind, len(head.key.classes))
        content, size = int(np.prod(shape)) * dtype.itemsize, archive.getinfo(name).file_size
        if not content < size <= content + _MAX_NPY_HEADER:
            return f"{name} has {size} bytes, {dtype} {list(shape)} has {content} and a header"
    return None


def _layout(entry: PackedImage, kind: str, classes: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and element type of a member."""
    if kind == "counts":
        return (classes, classes), np.dtype("<i8")
    return (entry.height, entry.width, *((3,) if kind == "image" else ())), np.dtype(np.uint8)


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The array of a member. Its header is compared before memory is taken for it. Raises all that zip and npy do."""
    info = archive.getinfo(name)
    _check_info(info)
    size = int(np.prod(shape)) * dtype.itemsize
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its npy header is not of version 1.0")
        found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        if (found, by_columns, kind) != (shape, False, dtype):
            raise ValueError(f"it is {kind} {list(found)}, not {dtype} {list(shape)}")
        array = np.empty(shape, dtype)
        view, done = array.data.cast("B"), 0
        while done < size and (taken := cast(BufferedIOBase, file).readinto(view[done:])):
            done += taken
        if done != size or file.read(1):  # reading to the end also compares the zip's own checksum
            raise ValueError(f"it has {done} bytes where {size} are announced, or more")
    return array


def _content_fault(judged: JudgedImage) -> str | None:
    """Why an image's label, mask and counts do not belong together; None if they do.

    The mask itself is not counted again: that is what the counts are there for.
    """
    classes = judged.counts.num_classes
    seen = np.bincount(judged.label.ravel(), minlength=IGNORE_INDEX + 1)
    if wrong := np.flatnonzero(seen[classes:IGNORE_INDEX]).tolist():
        return f"the label of {judged.name} has class {classes + wrong[0]}, but there are {classes} classes"
    if (highest := int(judged.reference.max())) >= classes:
        return f"the reference's mask of {judged.name} has class {highest}, but there are {classes} classes"
    counts = judged.counts.counts
    if counts.min() < 0 or not np.array_equal(counts.sum(axis=1), seen[:classes]):
        return f"the counts of {judged.name} are not of its label"
    return None


def _faults(head: PackHead) -> list[str]:
    faults, classes = [], len(head.key.classes)
    if not 1 <= classes <= MAX_CLASSES:
        faults.append(f"there are {classes} classes; {MASK_HOLDS}")
    if not head.images:
        faults.append("images is empty")
    names = [entry.name for entry in head.images]
    if len(set(names)) != len(names):
        faults.append("images has a name twice")
    for i, entry in enumerate(head.images):
        if not plain_name(entry.name):
            faults.append(f"images[{i}].name is {entry.name!r}, which is no plain name")
        if not (entry.height > 0 and entry.width > 0 and entry.height * entry.width <= MAX_PIXELS):
            faults.append(f"images[{i}] has {entry.height}x{entry.width} pixels, and at most {MAX_PIXELS} are read")
        if not 0 <= entry.outside <= MAX_PIXELS or not 0 <= entry.highest < IGNORE_INDEX:
            faults.append(f"images[{i}] has {entry.outside} pixels of no class, up to {entry.highest}")
        if head.key.size not in (None, (entry.height, entry.width)):
            faults.append(f"images[{i}] has {entry.height}x{entry.width} pixels, but size is {head.key.size}")
    if head.data_sha256 != data_sha256([(entry.image, entry.label) for entry in head.images]):
        faults.append(f"data_sha256 is {head.data_sha256}, which is not that of the images")
    return faults


def plain_name(name: str) -> bool:
    """Whether an image's name is safe to print, and as the name of a picture below a folder, on every system."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and not set(name) & set("\\:")
    return plain and name.isprintable() and not PurePosixPath(name).is_absolute()
