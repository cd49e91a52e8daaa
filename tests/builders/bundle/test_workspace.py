"""A work folder belongs to one build at a time, has one key, and exists while a build is in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from twins_trt.builders.bundle.workspace import (
    EARLIER,
    HOLDER,
    KEY,
    PARTS,
    REFERENCE,
    RESULTS,
    STATE,
    temporary,
    workspace,
)
from twins_trt.errors import BundleError, GateError
from twins_trt.folders import held


def names(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


def fill(folder: Path) -> None:
    """Writes what a build leaves: its state, half-written files, masks, and results."""
    for name in ("fp32.onnx", "calibration.partial", "search.json", ".fp32.onnx.0123abcd.partial", *RESULTS):
        (folder / name).write_text(name)
    for name in ("candidate.bundle", ".candidate.bundle.0123abcd.partial", REFERENCE):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)


def cut_off(folder: Path, key: str) -> None:
    with pytest.raises(KeyboardInterrupt), workspace(folder, key) as work:
        fill(work)
        raise KeyboardInterrupt


def test_it_vanishes_after_success_and_stays_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "x.bundle.work"
    with workspace(folder, "key") as work:
        assert work == folder and names(folder) == {KEY, HOLDER}
        (folder / "fp32.onnx").touch()
    assert names(tmp_path) == set()
    with pytest.raises(GateError), workspace(folder, "key"):
        (folder / "plan.json").touch()
        raise GateError("it fails its gate")
    assert names(folder) == {KEY, "plan.json"}


def test_a_temporary_one_never_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary() as work:
        fill(work)
        assert work.parent == tmp_path and work.name.startswith("twins-trt-")
    with pytest.raises(KeyboardInterrupt), temporary():
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_the_same_key_goes_on_with_its_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Parts that are made anew and half-written files are removed without a warning."""
    folder = tmp_path / "x.work"
    cut_off(folder, "key")
    assert {"fp32.onnx", "candidate.bundle", ".fp32.onnx.0123abcd.partial"} < names(folder)
    with workspace(folder, "key"):
        assert names(folder) == {KEY, HOLDER, REFERENCE, *STATE, *RESULTS}
        assert not caplog.messages


@pytest.mark.parametrize("spoilt", [None, b"", b"\x00" * 40, b'{"format": 1, "key": "ke', b"[1]", b'{"format": 2}'])
def test_another_key_keeps_results_and_masks_alone(
    tmp_path: Path, spoilt: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """So does a damaged file of the key."""
    folder = tmp_path / "x.work"
    cut_off(folder, "key")
    why = "is of a build with other ranges" if spoilt is None else "does not say whose it is (key.json is damaged)"
    if spoilt is not None:
        (folder / KEY).write_bytes(spoilt)
    with workspace(folder, "key" if spoilt is not None else "other"):
        assert names(folder) == {KEY, HOLDER, REFERENCE, *RESULTS}
        assert (folder / REFERENCE / "file").read_text() == REFERENCE
        assert all((folder / name).read_text() == name for name in RESULTS)
        assert json.loads((folder / KEY).read_text())["key"] == ("key" if spoilt is not None else "other")
    assert caplog.messages == [f"{folder} {why}: calibration.partial, search.json cannot be used, and is dropped"]


def test_a_second_build_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    with workspace(folder, "key"):
        (folder / "fp32.onnx").touch()
        with pytest.raises(BundleError) as caught, workspace(folder, "other"):
            pass
        who = (
            rf"x\.work is in use by another build, process {os.getpid()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
        )
        assert re.search(who, caught.value.cause)
        assert caught.value.fix == "wait until it is done, or choose another out"
        assert names(folder) == {KEY, HOLDER, "fp32.onnx"}
    assert names(tmp_path) == set()


@pytest.mark.parametrize("said", [None, b"", b"3", b"{}"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, said: bytes | None) -> None:
    if said is not None:
        (tmp_path / HOLDER).write_bytes(said)
    with held(tmp_path), pytest.raises(BundleError, match=r"in use by another build\n"), workspace(tmp_path, "key"):
        pass


def test_a_killed_build_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from twins_trt.builders.bundle.workspace import workspace\n"
        "with workspace(Path(sys.argv[1]), 'key') as work:\n"
        "    (work / 'search.json').touch(); print('there', flush=True); time.sleep(60)"
    )
    folder = tmp_path / "x.work"
    running = subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "there\n"
    with pytest.raises(BundleError, match=f"process {running.pid}, since"), workspace(folder, "key"):
        pass
    running.send_signal(signal.SIGKILL)
    running.wait()
    with workspace(folder, "key"):
        assert names(folder) == {KEY, HOLDER, "search.json"}
        assert json.loads((folder / HOLDER).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_folder_that_its_holder_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = tmp_path / "x.work"
    module, name = (os, "open") if when == "before it is opened" else (fcntl, "flock")
    real = getattr(module, name)

    def late(first: object, *more: object, **named: object) -> object:
        if when == "before it is locked" or first == folder:
            monkeypatch.setattr(module, name, real)
            shutil.rmtree(folder)
        return real(first, *more, **named)

    monkeypatch.setattr(module, name, late)
    with workspace(folder, "key") as work:
        assert getattr(module, name) is real
        assert names(work) == {KEY, HOLDER}
        with pytest.raises(BundleError, match="in use"), workspace(folder, "key"):
            pass
    assert names(tmp_path) == set()


def test_many_builds_one_after_another(tmp_path: Path) -> None:
    """Each build ends by removing the folder that others are trying to take: one at a time has it, and it exists."""
    folder, end = tmp_path / "x.work", time.monotonic() + 1.5
    inside: list[int] = []
    counts = {"done": 0, "refused": 0}
    wrong: list[str] = []

    def build(number: int) -> None:
        while time.monotonic() < end:
            try:
                with workspace(folder, f"key {number % 2}"):
                    inside.append(number)
                    (folder / "fp32.onnx").write_text(str(number))
                    time.sleep(0.001)
                    if inside != [number] or (folder / "fp32.onnx").read_text() != str(number):
                        wrong.append(f"{number} among {inside}")
                    inside.remove(number)
                    counts["done"] += 1
            except BundleError as error:
                counts["refused"] += 1
                if "in use" not in error.cause:
                    wrong.append(error.cause)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and min(counts.values()) > 20, (counts, wrong[:3])
    assert names(tmp_path) == set()


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for folder in (tmp_path / "file", tmp_path / "file" / "x.work", tmp_path / "link"):
        with pytest.raises(BundleError, match="cannot be made"), workspace(folder, "key"):
            pass


def test_a_folder_that_merely_has_the_name_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine.work"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter.tex").write_text("text")
    with pytest.raises(BundleError, match="holds thesis, which no build made there"), workspace(folder, "key"):
        pass
    assert names(folder) == {"thesis"} and (folder / "thesis" / "chapter.tex").read_text() == "text"


def test_what_a_user_puts_beside_the_results_stays(tmp_path: Path) -> None:
    folder = tmp_path / "x.work"
    cut_off(folder, "key")
    (folder / "my plan.json").write_text("mine")
    for key in ("key", "other"):
        with workspace(folder, key):
            assert (folder / "my plan.json").read_text() == "mine"
            (folder / "fp32.onnx").touch()
        assert names(folder) == {"my plan.json"}
        (folder / KEY).write_text("{}")  # as a build leaves one


@pytest.mark.parametrize("name", [KEY, HOLDER, REFERENCE, *PARTS, *EARLIER, *STATE, *RESULTS])
@pytest.mark.parametrize("damage", ["another kind", "a dangling link"])
def test_whatever_stands_in_the_place_of_a_part_stops_no_build(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "x.work"
    cut_off(folder, "key")
    place = folder / name
    folders = place.is_dir()
    shutil.rmtree(place) if folders else place.unlink(missing_ok=True)
    if damage == "a dangling link":
        place.symlink_to("nowhere")
    elif folders:
        place.write_text("a file")
    else:
        (place / "inside").mkdir(parents=True)
    with workspace(folder, "key"):
        fresh = {KEY, HOLDER} if name == KEY else {KEY, HOLDER, *STATE}
        assert names(folder) == (fresh | {REFERENCE, *RESULTS}) - ({name} - {KEY, HOLDER})
        assert (folder / KEY).is_file() and (folder / HOLDER).is_file()
    assert names(tmp_path) == set()


def test_where_a_folder_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, flock needs a descriptor that is open for writing."""
    real, inside = fcntl.flock, []

    def flock(descriptor: object, operation: int) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()  # type: ignore[attr-defined]
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        real(number, operation)

    monkeypatch.setattr(fcntl, "flock", flock)

    def build(number: int) -> None:
        with workspace(tmp_path / "x.work", "key"):
            inside.append(number)
            time.sleep(0.05)
            assert inside[-1] == number
            inside.append(-number)

    threads = [threading.Thread(target=build, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [first + second for first, second in zip(inside[::2], inside[1::2], strict=True)] == [0, 0, 0]
