"""Writes packs: while a gate runs, or on its own."""

from __future__ import annotations

import io
import logging
import shlex
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.images import GateImages, JudgedImage
from twins_trt.builders.gate.pack import (
    HEAD,
    KINDS,
    Pack,
    PackedImage,
    PackHead,
    array_sha256,
    data_sha256,
    member,
    open_pack,
    plain_name,
)
from twins_trt.builders.gate.pack_key import PackKey
from twins_trt.errors import DataError, PackError
from twins_trt.files import whole_file
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.builders.gate.reference import ModelImages
    from twins_trt.runtime import Bundle

log = logging.getLogger("twins_trt")


def check_fits(pack: Pack, bundle: Bundle) -> None:
    """Raises PackError, naming the field and both values, for a pack that was made for another checkpoint, padding,
    preprocessing, size or other classes than the bundle's."""
    for field, packed, wanted in pack.head.key.differences(PackKey.of_bundle(bundle)):
        raise PackError(
            f"{pack.path} was made for another bundle: its {field} is {packed}, that of {bundle.path} is {wanted}",
            f"make one for it: twins-trt gate {shlex.quote(str(bundle.path))} --data KIND:PATH --checkpoint FILE "
            "--pack NEW.pack",
        )


def check_new_pack(path: Path, key: PackKey, *, overwrite: bool = False, outside: Path | None = None) -> None:
    """Raises PackError where no pack of this key may be written, before any work is done for it.

    overwrite: a pack of another key may be replaced. outside: a bundle, whose folder holds only what its manifest
    lists.
    """
    if path.is_dir():
        raise PackError(f"{path} is a folder", f"name the file to write in it, such as {path / 'gate.pack'}")
    if outside is not None and outside.absolute() in path.absolute().parents:
        raise PackError(
            f"{path} lies in {outside}, which holds only what its manifest lists",
            f"name a file beside it, such as {outside.with_suffix('.pack')}",
        )
    if not path.absolute().parent.is_dir():
        raise PackError(f"there is no folder {path.absolute().parent}", shlex.join(["mkdir", "-p", str(path.parent)]))
    if not path.exists() or overwrite:
        return
    try:
        there = open_pack(path)
    except PackError as error:
        raise PackError(f"{path} exists, and is no sound pack ({error.cause})", _elsewhere(path)) from error
    for field, packed, wanted in there.head.key.differences(key):
        raise PackError(f"{path} exists, and its {field} is {packed}, not {wanted}", _elsewhere(path))


def _elsewhere(path: Path) -> str:
    return f"name another file, or remove it: {shlex.join(['rm', str(path)])}"


@contextmanager
def packing(
    path: Path, images: ModelImages, key: PackKey, *, limit: int | None, overwrite: bool = False
) -> Iterator[GateImages]:
    """The same images, which are written into the pack at `path` while they are read.

    The file appears when the block ends, and only if all images were read and nothing was raised: whole or not at all.
    A pack of the same key and the same images that is there already is left as it is. limit: how many images were
    asked for, for the head. overwrite: replace another pack.
    Raises PackError as `check_new_pack` does, for a pack of other images, and where the disk refuses.
    """
    check_new_pack(path, key, overwrite=overwrite)
    if _same(path, images, key, overwrite=overwrite):
        log.info("%s holds these images and masks already, and stays", path)
        yield images
        return
    failed: BaseException | None = None
    try:
        with whole_file(path) as file:
            writer = _Writer(file, path, images)
            try:
                try:
                    yield writer
                except BaseException as error:
                    failed = error
                    raise
                writer.finish(key, limit)
            except BaseException:
                writer.abandon()
                raise
    except OSError as error:
        if error is failed:
            raise
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> PackError:
    return PackError(f"{path} cannot be written: {error}", "make room, or name another file")


def _same(path: Path, images: ModelImages, key: PackKey, *, overwrite: bool) -> bool:
    """Whether the pack that is there holds the same. Raises PackError if it does not and is not to be replaced."""
    if not path.exists():
        return False
    try:
        there = open_pack(path)
    except PackError:
        if overwrite:
            return False
        raise
    if list(there.head.key.differences(key)):
        return False  # which may be replaced, or `check_new_pack` would have refused it
    found = data_sha256([(array_sha256(each.image), array_sha256(each.label)) for each in images.samples()])
    if there.head.data_sha256 == found:
        return True
    if not overwrite:
        raise PackError(
            f"{path} exists, and its images are others: data_sha256 is {there.head.data_sha256}, not {found}",
            _elsewhere(path),
        )
    return False


class _Writer:
    """`GateImages` that are written as they are read. Holds one image at a time."""

    def __init__(self, file: Any, path: Path, images: ModelImages) -> None:
        self.dataset, self.split, self.pack, self.miou = images.dataset, images.split, None, images.miou
        self._path, self._images = path, images
        self._archive = zipfile.ZipFile(file, "w")
        self._entries: list[PackedImage] = []

    def __len__(self) -> int:
        return len(self._images)

    @property
    def seconds(self) -> float | None:
        return self._images.seconds

    def __iter__(self) -> Iterator[JudgedImage]:
        for judged in self._images:
            try:
                self._add(judged)
            except OSError as error:
                raise _refused(self._path, error) from error
            yield judged

    def _add(self, judged: JudgedImage) -> None:
        if not plain_name(judged.name):
            raise DataError(f"the image {judged.name!r} has a name that no pack can hold", "rename the image")
        arrays = (judged.image, judged.label, judged.reference, judged.counts.counts.astype("<i8"))
        for kind, array in zip(KINDS, arrays, strict=True):
            self._write(member(len(self._entries), kind), _npy(array))
        height, width = judged.label.shape
        image, label, reference, counts = map(array_sha256, arrays)
        self._entries.append(
            PackedImage(
                judged.name,
                height,
                width,
                image=image,
                label=label,
                reference=reference,
                counts=counts,
                outside=judged.outside,
                highest=judged.highest,
            )
        )

    def finish(self, key: PackKey, limit: int | None) -> None:
        """Writes the head. Raises OSError, and PackError if images are left that were not read."""
        if len(self._entries) != len(self):
            raise PackError(f"{len(self._entries)} of {len(self)} images were read for {self._path}", "read them all")
        digests = [(entry.image, entry.label) for entry in self._entries]
        entries, sha256 = tuple(self._entries), data_sha256(digests)
        head = PackHead(key, self.dataset, self.split, limit, sha256, entries, __version__, self.miou)
        self._write(HEAD, head.dumps())
        self._archive.close()

    def abandon(self) -> None:
        """Lets go of the file, which will be removed."""
        with suppress(OSError, ValueError):
            self._archive.close()

    def _write(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name)  # of 1980, so that the same images give the same file
        info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
        self._archive.writestr(info, content)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
