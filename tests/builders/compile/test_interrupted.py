"""Compilations that are killed, interrupted, or run twice at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from compiling import Install, ToCompile

from twins_trt import compile_engine
from twins_trt.builders.compile import work
from twins_trt.builders.compile.work import work_folder
from twins_trt.runtime import open_bundle
from twins_trt.runtime.bundle import amend_bundle

KILLED = Path(__file__).with_name("killed.py")
TESTS = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_bundle_whole_and_nothing_is_compiled_twice(
    to_compile: ToCompile, tmp_path: Path
) -> None:
    bundle = to_compile()
    place = bundle.path.rename(tmp_path / "alone.bundle")
    alone = tmp_path / "alone"
    alone.mkdir()
    place = place.rename(alone / "x.bundle")
    path = os.pathsep.join([str(TESTS), str(KILLED.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(KILLED), str(place), str(alone / "home")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    *kills, whole = found
    assert whole["first"] == {"compiled": True, "resumed": False, "built": 1}
    assert len(kills) >= 15  # moments: in the compiler, of the work folder, of the bundle
    for moment, each in enumerate(kills):
        assert each["left"] in ("as it was", "engine"), (moment, each)
        assert each["then"] == "engine", (moment, each)
        # Where nothing had to be written any more, a part that the killed process left waits for the next writer.
        beside = [name for name in each["beside"] if each["second"]["compiled"] or not name.endswith(".partial")]
        assert beside == ["x.bundle"], (moment, each)
        expected = {
            "as it was": (
                {"compiled": True, "resumed": False, "built": 1},
                {"compiled": True, "resumed": True, "built": 0},
            ),
            "engine": ({"compiled": False, "resumed": False, "built": 0},),
        }
        assert each["second"] in expected[each["left"]], (moment, each)
    seconds = [(each["second"]["compiled"], each["second"]["built"]) for each in kills]
    # First it has to compile again, then the engine is kept, at last it is in the bundle.
    assert seconds == sorted(seconds, reverse=True)
    assert {(True, 1), (True, 0), (False, 0)} == set(seconds)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_the_compiler_and_keeps_what_it_has_timed(
    number: int, code: int, install: Install, to_compile: ToCompile
) -> None:
    module, bundle = install("10.3.0"), to_compile()
    before = (bundle.path / "manifest.json").read_bytes()
    module.script.phases = (("Building engine", None, 100),)
    started = threading.Event()

    def step() -> None:
        started.set()
        time.sleep(0.05)

    module.script.during = step
    threading.Thread(target=lambda: (started.wait(10), os.kill(os.getpid(), number))).start()
    assert run_command("compile", bundle.path).code == code
    assert module.script.cancelled
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert not work_folder(bundle.path).exists()
    (cache,) = (Path.home() / ".cache" / "twins-trt" / "timing").glob("*.cache")
    assert cache.read_bytes().endswith(b"+measured")
    module.script.phases = (("Building engine", None, 1),)
    module.script.cancelled = False
    assert compile_engine(bundle.path).compiled
    read = [given for _, name, given in module.calls if name == "create_timing_cache"]
    assert (b"+measured",) in read  # the next compilation begins with it


def test_a_compiler_that_cannot_be_stopped_works_to_its_end_and_its_engine_is_kept(
    install: Install, to_compile: ToCompile, caplog: pytest.LogCaptureFixture
) -> None:
    module, bundle = install("8.6.1"), to_compile()
    module.script.phases = (("Building engine", None, 40),)
    started = threading.Event()

    def step() -> None:
        started.set()
        time.sleep(0.05)

    module.script.during = step
    threading.Thread(target=lambda: (started.wait(10), os.kill(os.getpid(), signal.SIGINT))).start()
    assert run_command("compile", bundle.path).code == 130
    assert "this TensorRT cannot stop a build: waiting for it to end" in caplog.text
    assert open_bundle(bundle.path).engines == ()
    report = compile_engine(bundle.path)
    assert (report.compiled, report.resumed, len(module.built)) == (True, True, 1)


def test_a_second_process_waits_and_finds_the_engine(install: Install, to_compile: ToCompile) -> None:
    module, bundle = install("10.3.0"), to_compile()
    begun, go_on = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        assert go_on.wait(20)

    module.script.during = step
    reports: list[Any] = []
    first = threading.Thread(target=lambda: reports.append(compile_engine(bundle.path)))
    first.start()
    assert begun.wait(20)
    told: list[tuple[str, str]] = []
    waits = threading.Event()

    def progress(step: str, detail: str, share: float | None) -> None:
        told.append((step, detail))
        waits.set()

    second = threading.Thread(target=lambda: reports.append(compile_engine(bundle.path, progress=progress)))
    second.start()
    assert waits.wait(20)
    go_on.set()
    first.join(20)
    second.join(20)
    assert [report.compiled for report in reports] == [True, False]
    assert told[0][0] == "wait" and f"process {os.getpid()}, since" in told[0][1]
    assert len(module.built) == 1 and len(open_bundle(bundle.path).engines) == 1
    assert not work_folder(bundle.path).exists()


def test_a_disk_that_cannot_hold_the_engine_twice_holds_it_in_the_bundle(
    install: Install, to_compile: ToCompile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install()
    bundle = to_compile()
    left: list[bool] = []

    def fills(path: Path, content: bytes) -> tuple[str, int]:
        path.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def amend(*arguments: Any, **options: Any) -> Any:
        left.append((work_folder(bundle.path) / work.ENGINE).exists())
        return amend_bundle(*arguments, **options)

    monkeypatch.setattr("twins_trt.builders.compile.work.write_hashed", fills)
    monkeypatch.setattr("twins_trt.builders.compile.run.amend_bundle", amend)
    assert compile_engine(bundle.path).compiled
    assert left == [False]
    assert "cannot keep the engine until it is in the bundle: No space left on device" in caplog.text
    assert len(open_bundle(bundle.path).engines) == 1 and not work_folder(bundle.path).exists()
