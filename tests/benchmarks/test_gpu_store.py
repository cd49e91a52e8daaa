"""Nothing that was measured is lost: by an edit, by --fresh, by a broken file, by a disk that is full."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import torch

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import files, tables
from benchmarks.gpu import store as store_module
from benchmarks.gpu.account import of
from benchmarks.gpu.costs import predicted
from benchmarks.gpu.files import BrokenFileError, UnwritableError
from benchmarks.gpu.jobs import list_jobs
from benchmarks.gpu.store import ROOT, SOURCES, Store, is_of_others, is_of_ours_alone
from benchmarks.gpu.worker import measured
from benchmarks.gpu.workload import smoke

BROKEN = ["", "{", "[]", "null", "3", "{}", '{"rows": 3}', '{"rows": [1]}', '{"rows": [{"name": "a"}]}', "\udcff"]


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test hears anew what is said once."""
    monkeypatch.setattr(files, "_told", set())


def open_(folder: Path, *, code: str = "one", fresh: bool = False, tests: str = "", out: Path | None = None) -> Store:
    return Store("gpu-x", {}, fingerprint=code, fresh=fresh, tests=tests, folder=folder, copy_to=out)


def rows(path: Path) -> list[str]:
    return [row["name"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


@pytest.mark.parametrize(("code", "fresh", "tests"), [("two", False, ""), ("one", True, ""), ("one", False, "new")])
def test_rows_that_do_not_count_any_more_are_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, fresh: bool, tests: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    before = open_(here, out=there)
    before.put("checks", "tests a", {"passed": True, "tests": "old"})
    before.put("kernels", "b", {"ms": 1.0, "tests": "old"})
    after = open_(here, code=code, fresh=fresh, tests=tests, out=there)
    assert not list(tmp_path.rglob("old-*"))  # looking alone changes nothing
    after.put("kernels", "c", {"ms": 2.0})
    after.put("kernels", "d", {"ms": 2.0})
    said = capsys.readouterr().err.splitlines()
    for folder in (here, there):
        assert rows(folder / "gpu-x.json")[-2:] == ["c", "d"] and "b" not in rows(folder / "gpu-x.json")
        aside = folder / "old-gpu-x-one.json"
        assert rows(aside) == ["tests a", "b"] and len(list(folder.iterdir())) == 2
        (line,) = [line for line in said if str(aside) in line]
        assert line.startswith("2 rows of ")
    assert len(tables.measured(here)) == 1  # no table shows what was set aside
    told, _ = of([], [], after, begin="", seconds=predicted)
    assert told.count("set aside: 2 rows of before: ") == 2


def test_what_is_set_aside_again_does_not_replace_the_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        open_(tmp_path, fresh=True).put("kernels", name, {"ms": 1.0})
        open_(tmp_path, code="two", fresh=True).put("kernels", f"{name} of two", {"ms": 1.0})
    kept = {name for path in tmp_path.glob("*.json") for name in rows(path)}
    assert kept == {"a", "b", "a of two", "b of two"}


def test_the_file_and_the_copy_are_joined_and_the_later_row_counts(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    open_(here).put("kernels", "both", {"ms": 1.0})
    open_(here, code="one").put("kernels", "here", {"ms": 1.0})
    open_(there).put("kernels", "there", {"ms": 1.0})
    late = json.loads((there / "gpu-x.json").read_text(encoding="utf-8"))
    late["rows"].append({"section": "kernels", "name": "both", "ms": 9.0, "at": "9999"})
    (there / "gpu-x.json").write_text(json.dumps(late), encoding="utf-8")
    open_(here, out=there).put("kernels", "new", {"ms": 1.0})
    for folder in (here, there):
        assert sorted(rows(folder / "gpu-x.json")) == ["both", "here", "new", "there"]
        assert not list(folder.glob("old-*"))
    both = open_(here).get("kernels", "both")
    assert both is not None and both["ms"] == 9.0


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_said_in_one_line_set_aside_and_measuring_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "gpu-x.json"
    broken = content.encode("utf-8", "surrogateescape")
    path.write_bytes(broken)
    with pytest.raises(BrokenFileError, match=r"gpu-x.json is broken"):
        files.read(path)
    store = open_(tmp_path)
    store.put("kernels", "a", {"ms": 1.0})
    assert rows(path) == ["a"] and (tmp_path / "broken-gpu-x.json").read_bytes() == broken
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and str(path) in said[0] and "broken-gpu-x.json" in said[1]


@pytest.mark.parametrize("words", [["--plan", "30"], ["--costs"]])
def test_plan_and_costs_go_on_beside_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "gpu-x.json").write_text("{", encoding="utf-8")
    assert program.main(words) == 0
    said = capsys.readouterr()
    assert said.out and len(said.err.splitlines()) == 1 and "gpu-x.json is broken" in said.err
    assert (tmp_path / "gpu-x.json").read_text(encoding="utf-8") == "{"  # nothing is written for a question


def test_a_copy_that_fails_later_ends_nothing_and_leaves_no_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    store = open_(here, out=there)
    store.put("kernels", "a", {"ms": 1.0})
    (there / "gpu-x.json").unlink()
    (there / "gpu-x.json").mkdir()  # nothing can be put in its place
    for name in ("b", "c"):
        store.put("kernels", name, {"ms": 1.0})
    assert rows(here / "gpu-x.json") == ["a", "b", "c"] and [path.name for path in there.iterdir()] == ["gpu-x.json"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: cannot copy the results to {there / 'gpu-x.json'}: ")
    assert store.copy_error is not None and store.copy_error in of([], [], store, begin="", seconds=predicted)[0]
    (there / "gpu-x.json").rmdir()
    store.put("kernels", "d", {"ms": 1.0})
    assert store.copy_error is None and rows(there / "gpu-x.json") == ["a", "b", "c", "d"]


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "gpu-x.json").mkdir()
    with pytest.raises(UnwritableError, match=r"cannot write .*gpu-x.json"):
        open_(tmp_path).put("kernels", "a", {"ms": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-x.json"]  # no half of a file


@pytest.mark.parametrize("is_full", [True, False])
def test_a_folder_that_cannot_be_written_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_full: bool
) -> None:
    from benchmarks.gpu import unattended

    folder = tmp_path / "out"
    if is_full:

        def replace(part: Path, path: Path) -> None:
            assert part.is_file()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", replace)
    else:
        folder.write_text("a file", encoding="utf-8")
    assert program.main(["--smoke", "--copy-to", str(folder)]) == program.UNWRITABLE
    assert unattended.main(["--minutes", "9", "--smoke", "--copy-to", str(folder)]) == program.UNWRITABLE
    said = capsys.readouterr()
    assert said.err.splitlines() == [said.err.splitlines()[0]] * 2 and str(folder) in said.err and not said.out
    assert not folder.is_dir() or not list(folder.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "kernels/layer_norm/op.py",
        "kernels/layer_norm/reference.py",
        "kernels/bias/__init__.py",
        "kernels/a_new_one/op.py",
        "kernels/lsa/launch.py",
        "kernels/postprocess/op.py",
        "twins_trt/models/beside.py",
        "twins_trt/models/fused.py",
        "twins_trt/runtime/engines/torch.py",
        "benchmarks/gpu/traces.py",
    ],
)
def test_a_kernel_that_is_tuned_lets_the_others_figures_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store_module, "ROOT", tmp_path)

    def edited(name: str) -> tuple[bool, bool]:
        """Whether ours and the others' are measured anew."""
        before = [store_module.fingerprint(ours=ours) for ours in (True, False)]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1", encoding="utf-8")
        after = [store_module.fingerprint(ours=ours) for ours in (True, False)]
        return before[0] != after[0], before[1] != after[1]

    assert edited(name) == (True, False)
    for shared in ("kernels/lsa/reference.py", "twins_trt/models/folded.py", "benchmarks/gpu/timing.py"):
        assert edited(shared) == (True, True)


def test_no_form_of_others_runs_a_file_that_only_ours_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module does while it is imported is no part of a figure."""
    ran: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        imported = {of.f_code.co_name for of in (frame, frame.f_back) if of is not None}
        if event == "call" and "<module>" not in imported:
            ran.add(frame.f_code.co_filename)

    jobs = [job for job in list_jobs(replace(smoke(), train_batch=2)) if is_of_others({"form": job.form})]
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # what it would trace is called instead
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        rows = [measured(job.section, job.measure) for job in jobs if job.form is not None]
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    sources = {path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}
    counted = {path for path in sources if str(path) in ran}
    assert sum("error" not in row for row in rows) >= 15  # a CPU has one kind of scaled_dot_product_attention
    assert {ROOT / "kernels" / "lsa" / "op.py", ROOT / "twins_trt" / "training" / "step" / "losses.py"} <= counted
    assert not [path for path in counted if is_of_ours_alone(path)]
