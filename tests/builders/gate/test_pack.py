"""A pack gives back what was written, needs NumPy and zipfile alone, and anything else is refused with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from packs import KEY, change_head, digest_of, members, npy, other_key, rewrite

from twins_trt.builders.gate import PackKey, check_new_pack, open_pack, packing
from twins_trt.builders.gate.images import JudgedImage
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import DataError, PackError
from twins_trt.evaluation import ConfusionMatrix
from twins_trt.models.source import Source

CLASSES = len(KEY.classes)


@dataclass
class Given:
    """Images as they are given, in place of a data set and a model. fails_at: the image that cannot be read."""

    images: list[JudgedImage]
    fails_at: int | None = None
    dataset: str = "folder:x"
    split: str = "val"
    pack: None = None
    seconds: None = None
    miou: float | None = None
    read: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[JudgedImage]:
        for i, each in enumerate(self.images):
            if i == self.fails_at:
                raise OSError(5, "the data set's disk is gone")
            self.read.append(each.name)
            yield each

    def samples(self) -> Iterator[JudgedImage]:
        return iter(self.images)


def judged(name: str, image: Any, label: Any, reference: Any) -> JudgedImage:
    return JudgedImage(name, image, label, reference, ConfusionMatrix.of(reference, label, num_classes=CLASSES))


def some(count: int = 3, *, size: tuple[int, int] = (4, 6), seed: int = 0) -> Given:
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        label = rng.integers(0, CLASSES, size).astype(np.uint8)
        label[0, 0] = 255
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        images.append(judged(f"im {i}", image, label, rng.integers(0, CLASSES, size).astype(np.uint8)))
    return Given(images)


def write(path: Path, images: Given, key: PackKey = KEY, **more: Any) -> Path:
    with packing(path, images, key, limit=more.pop("limit", None), **more) as written:  # type: ignore[arg-type]
        for _ in written:
            pass
    return path


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write(tmp_path / "x.pack", some())


def same(a: JudgedImage, b: JudgedImage) -> bool:
    arrays = ("image", "label", "reference")
    equal = all(np.array_equal(getattr(a, each), getattr(b, each)) for each in arrays)
    kinds = all(getattr(a, each).dtype == getattr(b, each).dtype == np.uint8 for each in arrays)
    return a.name == b.name and equal and kinds and a.counts == b.counts


@st.composite
def anything(draw: st.DrawFn) -> Given:
    names = draw(st.lists(st.text("abz9-_ ñ图", min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
    images = []
    for name in names:
        size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        label = draw(hnp.arrays(np.uint8, size, elements=st.sampled_from([*range(CLASSES), 255])))
        reference = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, CLASSES - 1)))
        images.append(judged(name, draw(hnp.arrays(np.uint8, (*size, 3))), label, reference))
    return Given(images)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything(), st.integers(1, 4) | st.none())
def test_what_is_read_is_what_was_written(tmp_path: Path, images: Given, limit: int | None) -> None:
    key = other_key(size=None, preprocessing=Preprocessing(test_scale=(2048, 512)), source=Source(seeded=True))
    path = tmp_path / "x.pack"
    path.unlink(missing_ok=True)
    found = open_pack(write(path, images, key, limit=limit))
    assert (found.head.key, found.head.limit, found.dataset, found.split) == (key, limit, "folder:x", "val")
    assert len(found) == len(images.images)
    assert all(same(a, b) for a, b in zip(found, images.images, strict=True))
    first = found.first(1)
    assert len(first) == 1 and [each.name for each in first] == [images.images[0].name]


def test_numpy_and_zipfile_read_it(pack: Path) -> None:
    head = json.loads(members(pack)["pack.json"])
    assert (head["format_version"], head["num_classes"], head["size"], head["padding"]) == (1, 5, [4, 6], "parity")
    assert (head["source"]["sha256"], head["dataset"], head["split"]) == ("ab" * 32, "folder:x", "val")
    assert not {"thresholds", "graph_sha256", "precision"} & set(head)
    with np.load(pack, allow_pickle=False) as arrays:
        wanted = some().images[1]
        assert arrays["images/000001"].tolist() == wanted.image.tolist()
        assert arrays["labels/000001"].tolist() == wanted.label.tolist()
        assert arrays["references/000001"].tolist() == wanted.reference.tolist()
        assert arrays["counts/000001"].tolist() == wanted.counts.counts.tolist()


def test_the_same_images_give_the_same_file(pack: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "y.pack", some()).read_bytes() == pack.read_bytes()
    assert write(tmp_path / "z.pack", some(seed=1)).read_bytes() != pack.read_bytes()


def test_memory_is_that_of_one_image(tmp_path: Path) -> None:
    size = (300, 400)
    images = some(12, size=size)
    key = other_key(size=size)
    one = sum(each.nbytes for each in (images.images[0].image, images.images[0].label, images.images[0].reference))
    tracemalloc.start()
    try:
        path = write(tmp_path / "x.pack", images, key)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in open_pack(path):
            pass
        read = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert written < 4 * one and read < 4 * one, (written / one, read / one)


# --- what is refused


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)]) and None


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: rewrite(path, {**members(path), name: content})


def without(name: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, {key: value for key, value in members(path).items() if key != name})


def head(change: Callable[[dict[str, Any]], object], *, digests: bool = False) -> Callable[[Path], None]:
    return lambda path: change_head(path, change, digests=digests)


def twice(path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("labels/000000.npy", b"another")


def squeezed(path: Path) -> None:
    """The head compressed by a method without a bound on memory."""
    found = members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content, zipfile.ZIP_BZIP2 if name == "pack.json" else zipfile.ZIP_STORED)


HUGE = {"height": 1_000_000, "width": 1_000_000}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "is no pack, or only a part of one"),
        (lambda path: path.write_bytes(b"\0" * 4000), "is no pack, or only a part of one"),
        (cut(0.5), "is no pack, or only a part of one"),
        (cut(0.99), "is no pack, or only a part of one"),
        (lambda path: rewrite(path, {}), "pack.json cannot be read"),
        (without("pack.json"), "pack.json cannot be read"),
        (replaced("pack.json", b"{"), "pack.json cannot be read"),
        (replaced("pack.json", b"[" * 100_000), "pack.json cannot be read"),
        (replaced("pack.json", b"[]"), "it holds list, not an object"),
        (replaced("pack.json", b"\xff\xfe"), "pack.json cannot be read"),
        (replaced("pack.json", b'{"model": "x"}'), "format_version is None"),
        (squeezed, "compressed by method 12"),
        (head(lambda it: it.update(format_version=2)), "format_version is 2, this twins-trt reads 1"),
        (head(lambda it: it.update(format_version=True)), "format_version is True"),
        (head(lambda it: it.update(cutoff=1)), "has the field 'cutoff'"),
        (head(lambda it: it.pop("padding")), "lacks the field 'padding'"),
        (head(lambda it: it.update(size=[4.5, 6])), "size"),
        (head(lambda it: it.update(size=[4, 7])), "size is (4, 7)"),
        (head(lambda it: it.update(num_classes=6)), "it says that there are 6 classes, and names 5"),
        (head(lambda it: it.update(images=[])), "images is empty"),
        (head(lambda it: it["images"][1].update(name="im 0")), "images has a name twice"),
        (head(lambda it: it["images"][0].update(name="../../etc/x")), "'../../etc/x', which is no plain name"),
        (head(lambda it: it["images"][0].update(name="/x")), "'/x', which is no plain name"),
        (head(lambda it: it["images"][0].update(name="a\x1b[31m")), "no plain name"),
        (head(lambda it: it["images"][0].update(name="c:x")), "no plain name"),
        (head(lambda it: it["images"][0].update(height=-4)), "has -4x6 pixels"),
        (head(lambda it: (it.update(size=None), it["images"][0].update(HUGE))), "has 1000000x1000000 pixels"),
        (head(lambda it: (it.update(size=None), it["images"][0].update(height=400))), "has 200 bytes"),
        (head(lambda it: it["images"][0].update(image="0" * 64)), "data_sha256 is"),
        (head(lambda it: it["images"].pop(), digests=True), "holds counts/000002.npy, which pack.json does not name"),
        (without("labels/000001.npy"), "it lacks labels/000001.npy"),
        (twice, "it holds labels/000000.npy twice"),
        (replaced("../outside.npy", b"x"), "it holds ../outside.npy, which pack.json does not name"),
        (replaced("labels/000000.npy", b"\0" * 10_000_000), "labels/000000.npy has 10000000 bytes"),
        (replaced("labels/000000.npy", b""), "labels/000000.npy has 0 bytes"),
    ],
)
def test_what_is_no_pack_is_not_opened(pack: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(pack)
    with pytest.raises(PackError) as raised:
        open_pack(pack)
    assert words in raised.value.cause and str(pack) in raised.value.cause
    assert "--pack" in (raised.value.fix or "")


def swap(kind: str, array: np.ndarray) -> Callable[[Path], None]:
    """The first image's member becomes another array, and the head has its sha256."""

    def change(path: Path) -> None:
        replaced(f"{kind}/000000.npy", npy(array))(path)
        change_head(
            path,
            lambda it: it["images"][0].update({kind.removesuffix("s") if kind != "counts" else kind: digest_of(array)}),
            digests=True,
        )

    return change


def moved(counts: np.ndarray) -> np.ndarray:
    """More pixels of one prediction than a label has, fewer than none of another: every label's sum is right."""
    changed = counts.copy()
    changed[0, 0] += 100
    changed[0, 1] -= 100
    return changed


def label(*, value: int) -> np.ndarray:
    changed = some().images[0].label.copy()
    changed[1, 1] = value
    return changed


def flip(path: Path) -> None:
    """One bit of the first image's label, and the zip's own checksum is that of the changed member."""
    content = bytearray(members(path)["labels/000000.npy"])
    content[-1] ^= 1
    replaced("labels/000000.npy", bytes(content))(path)


def flip_raw(path: Path) -> None:
    """One bit of the file, inside of the first image."""
    content = bytearray(path.read_bytes())
    content[content.index(b"images/000000.npy") + 60] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "sha256 of labels/000000.npy (im 0) is"),
        (flip_raw, "images/000000.npy (im 0) cannot be read"),
        (replaced("labels/000000.npy", npy(np.zeros((6, 4), np.uint8))), "it is uint8 [6, 4], not uint8 [4, 6]"),
        (replaced("labels/000000.npy", npy(np.zeros((4, 6), np.int8))), "it is int8 [4, 6], not uint8 [4, 6]"),
        (replaced("labels/000000.npy", npy(np.zeros((4, 6), np.uint8, order="F"))), "not uint8 [4, 6]"),
        (replaced("labels/000000.npy", npy(np.array([None] * 3, object))), "labels/000000.npy (im 0) cannot be read"),
        (replaced("labels/000000.npy", b"x" * 152), "labels/000000.npy (im 0) cannot be read"),
        (replaced("labels/000000.npy", npy(np.zeros((4, 6), np.uint8))[:-3]), "has 21 bytes where 24 are announced"),
        (replaced("labels/000000.npy", npy(np.zeros((4, 6), np.uint8)) + b"x"), "24 are announced, or more"),
        (swap("labels", label(value=CLASSES)), "the label of im 0 has class 5, but there are 5 classes"),
        (swap("labels", label(value=254)), "the label of im 0 has class 254"),
        (swap("references", np.full((4, 6), 7, np.uint8)), "the reference's mask of im 0 has class 7"),
        (swap("counts", np.zeros((5, 5), np.int64)), "the counts of im 0 are not of its label"),
        (swap("counts", np.full((5, 5), -1, np.int64)), "the counts of im 0 are not of its label"),
        (swap("counts", moved(some().images[0].counts.counts)), "the counts of im 0 are not of its label"),
    ],
)
def test_a_member_that_is_not_the_heads_is_not_used(pack: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(pack)
    with pytest.raises(PackError) as raised:
        list(open_pack(pack))
    assert words in raised.value.cause and str(pack) in raised.value.cause


def test_a_bomb_takes_no_memory(pack: Path) -> None:
    """A member that is announced as small and inflates to 200 MB."""
    replaced("labels/000000.npy", npy(np.zeros((4, 6), np.uint8)) + bytes(200_000_000))(pack)
    content = bytearray(pack.read_bytes())
    announced = (200_000_152).to_bytes(4, "little")
    assert content.count(announced) == 2  # before the member, and in the directory
    pack.write_bytes(content.replace(announced, (152).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        with pytest.raises(PackError, match=r"labels/000000\.npy"):
            list(open_pack(pack))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_head_without_an_end_is_not_read(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twins_trt.builders.gate.pack.MAX_HEAD", 100)
    with pytest.raises(PackError, match=r"pack\.json cannot be read: it has \d+ bytes, more than 100"):
        open_pack(pack)


def test_reading_takes_numpy_and_nothing_that_a_device_lacks(pack: Path) -> None:
    absent = "torch onnx onnx_graphsurgeon onnxruntime openvino cv2 scipy torchvision triton"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent.split()!r}))\n"
        "from twins_trt.builders.gate import check_fits, gate_bundle, open_pack, packing, record_gate\n"
        "import twins_trt.verbs.gate, twins_trt.cli.gate\n"
        "print(*[each.name for each in open_pack(sys.argv[1])], sep=',')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, pack], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "im 0,im 1,im 2\n"), ran.stderr


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"x\.pack does not exist"):
        open_pack(tmp_path / "x.pack")
    with pytest.raises(PackError, match="is a folder"):
        open_pack(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PackError, match="pipe is no file"):  # and nothing waits for who writes into it
        open_pack(tmp_path / "pipe")


# --- whole or not at all


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "the engine's disk")])
def test_an_interrupt_leaves_no_pack(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, packing(tmp_path / "x.pack", some(), KEY, limit=None) as written:  # type: ignore[arg-type]
        next(iter(written))
        raise error
    assert raised.value is error  # not taken for an error of the pack's own disk
    assert left_in(tmp_path) == []


def test_an_image_that_cannot_be_read_leaves_no_pack(tmp_path: Path) -> None:
    images = some()
    images.fails_at = 2
    with pytest.raises(OSError, match="the data set's disk is gone"):
        write(tmp_path / "x.pack", images)
    assert left_in(tmp_path) == [] and images.read == ["im 0", "im 1"]


@pytest.mark.parametrize("at", [3, 14])
def test_a_full_disk_leaves_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Full at a member, and at the directory behind all members."""
    real, written = zipfile.ZipFile.writestr, []

    def refuse(self: Any, *given: Any, **named: Any) -> None:
        written.append(given)
        if len(written) == at:
            raise OSError(28, "No space left on device")
        real(self, *given, **named)

    def refuse_end(self: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", refuse)
    if at == 14:
        monkeypatch.setattr(zipfile.ZipFile, "_write_end_record", refuse_end)
    with pytest.raises(PackError, match=r"x\.pack cannot be written: .*No space left") as raised:
        write(tmp_path / "x.pack", some())
    assert raised.value.fix == "make room, or name another file"
    assert left_in(tmp_path) == []


def test_commands_for_paths_with_spaces_can_be_typed(tmp_path: Path) -> None:
    spaced = write(tmp_path / "my road.pack", some())
    with pytest.raises(PackError) as raised:
        check_new_pack(spaced, other_key(padding="masked"))
    assert raised.value.fix == f"name another file, or remove it: rm '{spaced}'"
    with pytest.raises(PackError) as raised:
        check_new_pack(tmp_path / "no such" / "x.pack", KEY)
    assert raised.value.fix == f"mkdir -p '{tmp_path / 'no such'}'"
    with pytest.raises(PackError, match="does not exist") as raised:
        open_pack(tmp_path / "no such.pack")
    assert str(raised.value.fix).endswith("--pack 'no such.pack'")


def test_images_that_were_not_all_read_are_no_pack(tmp_path: Path) -> None:
    with (
        pytest.raises(PackError, match="1 of 3 images were read"),
        packing(tmp_path / "x.pack", some(), KEY, limit=None) as written,  # type: ignore[arg-type]
    ):
        next(iter(written))
    assert left_in(tmp_path) == []


def test_an_image_whose_name_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    images = some(1)
    images.images[0] = judged("a\nb", images.images[0].image, images.images[0].label, images.images[0].reference)
    with pytest.raises(DataError, match="has a name that no pack can hold"):
        write(tmp_path / "x.pack", images)
    assert left_in(tmp_path) == []


# --- a file that is there already


def test_the_same_pack_stays_and_another_is_not_replaced(pack: Path) -> None:
    before = (pack.read_bytes(), pack.stat().st_mtime_ns)
    again = some()
    write(pack, again, limit=3)
    assert (pack.read_bytes(), pack.stat().st_mtime_ns) == before and again.read == ["im 0", "im 1", "im 2"]
    with pytest.raises(PackError, match="exists, and its images are others: data_sha256 is") as raised:
        write(pack, some(seed=1))
    assert raised.value.fix == f"name another file, or remove it: rm {pack}"
    with pytest.raises(PackError, match="exists, and its padding is parity, not masked"):
        write(pack, some(), other_key(padding="masked"))
    assert (pack.read_bytes(), pack.stat().st_mtime_ns) == before


def test_a_pack_of_other_images_or_another_key_is_replaced_if_that_is_asked_for(pack: Path) -> None:
    before = pack.read_bytes()
    write(pack, some(seed=1), overwrite=True)
    assert open_pack(pack).head.images[0].image == digest_of(some(seed=1).images[0].image)
    write(pack, some(seed=1), other_key(padding="masked"), overwrite=True)
    assert open_pack(pack).head.key.padding == "masked"
    pack.write_bytes(b"damaged")
    write(pack, some(), overwrite=True)
    assert pack.read_bytes() == before


def test_a_place_is_refused_before_the_work(pack: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.pack", "there is no folder"),
        (tmp_path / "x.bundle" / "gate.pack", "lies in .*x.bundle, which holds only what its manifest lists"),
    ):
        with pytest.raises(PackError, match=words):
            check_new_pack(path, KEY, outside=tmp_path / "x.bundle")
    pack.write_bytes(b"photos")
    with pytest.raises(PackError, match="exists, and is no sound pack"):
        check_new_pack(pack, KEY)
    check_new_pack(pack, KEY, overwrite=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "twins_svt-b_fpn"}, "its model is twins_svt-s_fpn, not twins_svt-b_fpn"),
        (
            {"source": Source("x.pth", "cd" * 32)},
            f"its checkpoint is the one with sha256 {'ab' * 32}, not .*{'cd' * 32}",
        ),
        ({"source": Source(seeded=True)}, "its checkpoint is the one with .*, not seeded weights"),
        ({"padding": "masked"}, "its padding is parity, not masked"),
        ({"classes": KEY.classes[:4]}, "its number of classes is 5, not 4"),
        ({"classes": (*KEY.classes[:4], "sea")}, "its class 4 is 'water', not 'sea'"),
        ({"preprocessing": Preprocessing(test_scale=(9, 9))}, r"its preprocessing.test_scale is None, not \[9, 9\]"),
        ({"size": (8, 6)}, "its size is 4x6, not 8x6"),
        ({"size": None}, "its size is 4x6, not dynamic"),
    ],
)
def test_every_field_of_the_key_counts(pack: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(PackError, match=words):
        check_new_pack(pack, other_key(**fields))


def test_the_name_of_the_checkpoints_file_does_not_count(pack: Path) -> None:
    check_new_pack(pack, other_key(source=Source("renamed.pth", "ab" * 32)))
    check_new_pack(pack, other_key(classes=()))  # not known before the weights are loaded
