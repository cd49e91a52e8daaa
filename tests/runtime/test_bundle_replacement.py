"""A bundle is replaced under readers, by writers that are killed, and amended by several at once."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_graphs import MakeBundle, tensors, tiny_manifest

from twins_trt import exchange
from twins_trt.errors import BundleError
from twins_trt.runtime import Bundle, EngineFile, GraphInterface, Manifest, Segmenter, open_bundle, write_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.engines import KINDS

WAYS = ("exchanged", "renamed twice")
"""How a folder takes another's place: with the system's exchange, and as on a system that has none."""

CHILD = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from twins_trt import exchange
from twins_trt.runtime import Figure, open_bundle, write_bundle
from twins_trt.runtime.bundle import amend_bundle

if sys.argv[1] == "renamed twice":
    exchange._renameat2 = lambda source, target, flags: False
path = Path(sys.argv[2])
"""

REPLACE = """
sources = [open_bundle(each) for each in sys.argv[4:6]]
end, done = time.monotonic() + float(sys.argv[3]), 0
print("ready", flush=True)
while time.monotonic() < end:
    source = sources[done % 2]
    write_bundle(path, source.manifest, {name: source.file(name) for name in source.files}, overwrite=True)
    done += 1
print(done)
"""

AMEND = """
bundle, me = open_bundle(path), sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[4])):
    figure = Figure(me, float(number), "ms", "a test", False)
    change = lambda manifest: replace(manifest, figures=(*manifest.figures, figure))
    amend_bundle(bundle, {f"{me}.json": str(number).encode()}, change=change)
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + script, *map(str, arguments)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "renamed twice":
        monkeypatch.setattr(exchange, "_renameat2", lambda source, target, flags: False)
    return str(request.param)


@pytest.fixture
def manifest() -> Manifest:
    return tiny_manifest(*tensors(24, 32, 1, ("mask",), "uint8"))


def content(name: str) -> dict[str, bytes | Path]:
    """Each with a file that no other has, and graphs of one size, which only their content tells apart."""
    return {"graph.onnx": name.encode() * 4000, f"{name}.json": b"{}", "below/same.bin": name.encode()}


def write(path: Path, manifest: Manifest, name: str) -> Bundle:
    return write_bundle(path, replace(manifest, tools={"name": name}), content(name), overwrite=True)


def name_of(bundle: Bundle) -> str:
    """Which of them it is; all of it."""
    name = bundle.manifest.tools["name"]
    assert set(bundle.files) == set(content(name))
    assert {each.relative_to(bundle.path).as_posix() for each in bundle.path.rglob("*") if each.is_file()} == {
        *bundle.files,
        "manifest.json",
    }
    return name


def killed(work: Callable[[], object], step: int) -> bool:
    """Does `work` in a child that is killed before its step number `step` of the file system; False if it has fewer."""
    pid = os.fork()
    if pid == 0:
        try:
            done = 0

            def counted(call: Callable[..., object]) -> Callable[..., object]:
                def counting(*given: object, **named: object) -> object:
                    nonlocal done
                    done += 1
                    if done == step:
                        os._exit(9)
                    return call(*given, **named)

                return counting

            for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
                setattr(os, name, counted(getattr(os, name)))
            exchange._renameat2 = counted(exchange._renameat2)  # type: ignore[assignment]
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


def kills(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Every step at which `work` was killed, each after `prepare`."""
    step = 1
    prepare()
    while killed(work, step):
        yield step
        step += 1
        prepare()


@pytest.mark.parametrize("then", ["open", "write", "amend"])
def test_killed_at_any_step_the_old_or_the_new_opens(tmp_path: Path, manifest: Manifest, way: str, then: str) -> None:
    path = tmp_path / "x.bundle"
    found: list[str] = []
    for step in kills(lambda: write(path, manifest, "new"), lambda: write(path, manifest, "old")):
        if then == "open":
            found.append(name_of(open_bundle(path)))
        if then == "amend":
            opened = open_bundle(path)
            assert amend_bundle(opened, {"gate.json": b"{}"}).read_json("gate.json") == {}
            found.append(opened.manifest.tools["name"])
        write(path, manifest, "newest")
        assert name_of(open_bundle(path)) == "newest"
        assert [each.name for each in tmp_path.iterdir()] == ["x.bundle"], f"litter after step {step}"
    if then != "write":
        assert found == sorted(found, reverse=True) and {*found} == {"old", "new"}, Counter(found)
        assert len(found) > 15


def test_killed_at_any_step_a_first_bundle_is_whole_or_absent(tmp_path: Path, manifest: Manifest, way: str) -> None:
    path = tmp_path / "x.bundle"

    def remove() -> None:
        shutil.rmtree(path, ignore_errors=True)

    found = []
    for _ in kills(lambda: write(path, manifest, "new"), remove):
        try:
            found.append(name_of(open_bundle(path)))
        except BundleError as error:
            assert "does not exist" in error.cause
            found.append("")
        remove()
        write(path, manifest, "newest")
        assert [each.name for each in tmp_path.iterdir()] == ["x.bundle"]
    assert found == sorted(found) and {*found} == {"", "new"}, Counter(found)


@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_reader_finds_a_bundle_while_another_replaces_it(
    tmp_path: Path, manifest: Manifest, way: str, seconds: float
) -> None:
    path = tmp_path / "x.bundle"
    sources = [write(tmp_path / f"{name}.bundle", manifest, name).path for name in ("one", "two")]
    write(path, manifest, "one")
    writer = child(REPLACE, way, path, seconds, *sources)
    found: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    while writer.poll() is None:
        try:
            opened = open_bundle(path, verify=(found.total() % 4 != 0))
        except BundleError as error:
            failed[error.cause] += 1
            continue
        found[opened.manifest.tools["name"]] += 1
        assert set(opened.files) == set(content(opened.manifest.tools["name"]))
    assert writer.stdout is not None
    replaced = int(writer.stdout.read())
    counts = f"{replaced} replacements, opened {dict(found)}, failed {dict(failed)}"
    assert writer.returncode == 0 and not failed, counts
    assert replaced > 10 * seconds and min(found["one"], found["two"]) > 10 * seconds, counts
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.bundle", "two.bundle", "x.bundle"], counts


@pytest.mark.parametrize("times", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_amenders_queue_and_lose_nothing(tmp_path: Path, manifest: Manifest, way: str, times: int) -> None:
    path = tmp_path / "x.bundle"
    write(path, manifest, "old")
    names = ("gate", "profile")
    amenders = [child(AMEND, way, path, name, times) for name in names]
    for each in amenders:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.close()
    assert [each.wait(300) for each in amenders] == [0, 0]
    amended = open_bundle(path)
    figures = [(figure.name, figure.value) for figure in amended.manifest.figures]
    for name in names:  # every one of them, in order
        assert [value for which, value in figures if which == name] == list(range(times))
        assert amended.read_json(f"{name}.json") == times - 1
    assert len(figures) == 2 * times
    if times >= 100:  # few may all be done before the other is awake
        assert figures != sorted(figures), "they took no turns: nothing was tried"
    assert [each.name for each in tmp_path.iterdir()] == ["x.bundle"]


def test_an_amendment_is_to_the_graph_it_is_about(tmp_path: Path, manifest: Manifest) -> None:
    opened = write(tmp_path / "x.bundle", manifest, "old")
    write(opened.path, manifest, "new")
    with pytest.raises(BundleError, match=r"x\.bundle holds another graph or other engines than when it was opened"):
        amend_bundle(opened, {"gate.json": b"{}"})
    assert name_of(open_bundle(opened.path)) == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["x.bundle"]


def test_an_amendment_is_to_the_engines_it_is_about(tmp_path: Path, manifest: Manifest) -> None:
    """The same graph, compiled anew: a verdict on the first engine is none on the second."""
    engine = EngineFile("engines/x.engine", "tensorrt", "10.3.0", ("sm_87",))
    named = replace(manifest, engines=(engine,))
    files = {"graph.onnx": b"graph", engine.file: b"one"}
    opened = write_bundle(tmp_path / "x.bundle", named, files)
    write_bundle(opened.path, named, {**files, engine.file: b"two"}, overwrite=True)
    assert opened.replaced
    with pytest.raises(BundleError, match="holds another graph or other engines than when it was opened"):
        amend_bundle(opened, {"gate.json": b"{}"}, change=lambda now: replace(now, gate="passed"))
    assert open_bundle(opened.path).manifest.gate == "ungated"


def test_an_amendment_is_to_the_bundle_as_it_is_by_now(tmp_path: Path, manifest: Manifest) -> None:
    opened = write(tmp_path / "x.bundle", manifest, "old")
    amend_bundle(opened, {"gate.json": b"1"}, change=lambda now: replace(now, gate="failed"))
    amend_bundle(opened, {"profile.json": b"2"})
    again = open_bundle(opened.path)
    assert (again.manifest.gate, again.read_json("gate.json"), again.read_json("profile.json")) == ("failed", 1, 2)
    assert set(again.files) == {*opened.files, "gate.json", "profile.json"}


def test_an_amendment_does_not_vouch_for_a_damaged_file(tmp_path: Path, manifest: Manifest) -> None:
    opened = write(tmp_path / "x.bundle", manifest, "old")
    (opened.path / "below" / "same.bin").write_bytes(b"odd")
    with pytest.raises(BundleError, match=r"sha256 of below/same\.bin is [0-9a-f]{64}, the file has"):
        amend_bundle(opened, {"gate.json": b"{}"})
    assert "gate.json" not in open_bundle(opened.path, verify=False).files


def test_a_bundle_that_was_replaced_gives_no_files_of_the_other(tmp_path: Path, manifest: Manifest) -> None:
    opened = write(tmp_path / "x.bundle", manifest, "old")
    read = open_bundle(opened.path)
    judged = replace(read, manifest=replace(read.manifest, gate="passed"))  # as the gate holds it
    assert judged.graph == read.graph == opened.graph
    write(opened.path, manifest, "new")
    for stale in (opened, read, judged):
        assert stale.replaced
        for use in (lambda: stale.graph, lambda: stale.file("below/same.bin"), lambda: stale.read_json("old.json")):  # noqa: B023
            with pytest.raises(BundleError, match="was replaced since it was opened") as caught:
                use()
            assert caught.value.fix == "open it again"
    assert open_bundle(opened.path) != read and not open_bundle(opened.path).replaced
    assert not Bundle(tmp_path / "graph.onnx", manifest).replaced  # not read from a folder


def test_a_file_that_an_amendment_keeps_is_still_there(tmp_path: Path, manifest: Manifest) -> None:
    opened = amend_bundle(write(tmp_path / "x.bundle", manifest, "old"), {"gate.json": b"1"})
    amend_bundle(opened, {"gate.json": b"2"})
    assert opened.graph.read_bytes() == content("old")["graph.onnx"] and not opened.replaced
    with pytest.raises(BundleError, match=r"gate\.json was replaced since it was opened"):
        opened.read_json("gate.json")
    shutil.rmtree(opened.path)
    with pytest.raises(BundleError, match=r"graph\.onnx was replaced since it was opened"):
        _ = opened.graph


def test_a_bundle_replaced_by_one_with_the_same_file_number_is_told_apart(tmp_path: Path, manifest: Manifest) -> None:
    """ext4 gives the number of a file that is gone to the next one."""
    opened = write(tmp_path / "x.bundle", manifest, "old")
    for name in ("two", "three", "four", "five"):
        write(opened.path, manifest, name)
        assert opened.replaced


def test_a_segmenter_opens_a_path_again_and_refuses_an_opened_bundle(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, other = make_bundle(), make_bundle(20, 32, tools={"name": "other"})
    first = {"graph.onnx": bundle.graph.read_bytes()}
    second = {"graph.onnx": other.graph.read_bytes()}
    replaced = {1: (other.manifest, second), 3: (bundle.manifest, first)}
    sessions: list[weakref.ref[Any]] = []
    real_session = onnxruntime.InferenceSession

    def open_session(*given: Any, **named: Any) -> Any:
        session = real_session(*given, **named)
        sessions.append(weakref.ref(session))
        if len(sessions) in replaced:  # while an engine opens
            write_bundle(bundle.path, *replaced[len(sessions)], overwrite=True)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with Segmenter(bundle.path, "onnxruntime") as segmenter:
        assert segmenter.bundle is not None and segmenter.bundle.manifest.tools == {"name": "other"}
        assert segmenter(np.zeros((20, 32, 3), np.uint8)).mask.shape == (20, 32)
        gc.collect()
        assert [session() is None for session in sessions] == [True, False]
    opened = open_bundle(bundle.path)
    for _ in range(2):  # it is replaced while its engine opens, and then before
        with pytest.raises(BundleError, match="was replaced since it was opened"):
            Segmenter(opened, "onnxruntime")
    gc.collect()
    assert [session() for session in sessions] == [None] * 3


class StandIn:
    """An engine that gives the class of each pixel by its red alone, and tells whether it was closed."""

    name, concurrent = "stand-in", True

    def __init__(self, interface: GraphInterface) -> None:
        self.inputs, self.outputs = interface.inputs, interface.outputs
        self.closed = False

    def __call__(self, image: Any, *, outputs: object = None, out: object = None) -> dict[str, Any]:
        return {"mask": image[..., 0] // 64}

    def close(self) -> None:
        self.closed = True


def test_the_engine_of_a_bundle_that_is_replaced_meanwhile_is_closed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, other = make_bundle(), make_bundle(20, 32, tools={"name": "other"})
    files = {"graph.onnx": other.graph.read_bytes()}
    engines: list[StandIn] = []

    def open_engine(source: Bundle, options: object) -> StandIn:
        engines.append(StandIn(source.interface))
        if len(engines) == 1:  # while the first opens
            write_bundle(bundle.path, other.manifest, files, overwrite=True)
        return engines[-1]

    kind = ModuleType("stand_in")
    vars(kind).update(open_engine=open_engine)
    monkeypatch.setitem(sys.modules, "stand_in", kind)
    monkeypatch.setitem(KINDS, "stand-in", "stand_in")
    with Segmenter(bundle.path, "stand-in") as segmenter:
        assert segmenter.engine is engines[1]
        assert segmenter(np.zeros((20, 32, 3), np.uint8)).mask.shape == (20, 32)
        assert [engine.closed for engine in engines] == [True, False]
    with pytest.raises(BundleError, match="was replaced since it was opened"):
        Segmenter(bundle, "stand-in")
    assert [engine.closed for engine in engines] == [True] * 3


def test_what_stays_away_does_not_exist(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "x.bundle")
    assert time.monotonic() - began < 0.5
