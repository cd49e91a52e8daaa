"""Rows are measured in a process that can be ended: in time, when it dies, and when the program itself is killed."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until_gone

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu.jobs import Job, list_jobs
from benchmarks.gpu.runner import RED
from benchmarks.gpu.worker import Worker, is_spoiled, measured
from benchmarks.gpu.workload import smoke

ROOT = Path(__file__).resolve().parents[2]
STUBS = {"checks": "stub_checks", "models": "stub_rows"}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    """The stand-ins' rows by name."""
    monkeypatch.setenv("STUB_FOLDER", str(tmp_path))
    return {job.name: job for job in list_jobs(smoke(), STUBS)}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(smoke(), STUBS) as made:
        yield made


def test_a_row_that_takes_too_long_is_given_up_with_all_that_it_started(
    rows: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Worker(smoke(), STUBS) as worker:
        assert worker.do(rows["quick 0"])["ms"] == 1.0
        start = time.monotonic()
        assert worker.do(rows["slow"], 3.0) == {"error": "given up after 3 s", "given_up": True}
        assert time.monotonic() - start < 30
        assert wait_until_gone(int((tmp_path / "child").read_text(encoding="utf-8")))
        assert worker.do(rows["quick 1"])["ms"] == 1.0  # the next row has a new process


def test_a_row_that_kills_its_process_is_one_row_lost(rows: dict[str, Job], worker: Worker) -> None:
    assert worker.do(rows["dies"]) == {"error": "its process died with exit code 3"}
    assert worker.do(rows["quick 0"])["ms"] == 1.0


def test_an_error_keeps_the_process_and_a_failed_capture_ends_it(rows: dict[str, Job], worker: Worker) -> None:
    first = worker.do(rows["process"])["process"]
    assert worker.do(rows["raises"]) == {"error": "RuntimeError: no kernel"}
    assert worker.do(rows["process"])["process"] == first
    row = worker.do(rows["captures"])
    assert row["capture_failed"] and row["error"].startswith("CaptureError: operation not permitted")
    assert worker.do(rows["process"])["process"] != first
    assert first != os.getpid()


def test_on_a_gpu_the_results_file_lies_with_the_others_and_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of the program but what touches the GPU."""
    monkeypatch.setattr(program, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("STUB_RED", "gsa")
    words = ["--forms", "process", "slow", "--copy-to", str(tmp_path / "out"), "--budget", "300"]
    assert program.main(words, sections=STUBS) == RED
    content = results.read_results("gpu-nvidia-h200", folder=tmp_path / "results")
    assert content["settings"]["gpu"] == "NVIDIA H200" and content["settings"]["size"] == [512, 512]
    found = {row["name"]: set(row) & {"ms", "passed", "excluded"} for row in content["rows"]}
    checked = {"of lsa": {"passed"}, "of gsa": {"passed"}}  # all of them, where no section is named
    assert found == {**checked, "slow": {"excluded"}, "process": {"ms"}}
    copy = tmp_path / "out" / "gpu-nvidia-h200.json"
    assert copy.read_bytes() == (tmp_path / "results" / copy.name).read_bytes()
    assert "slow: EXCLUDED" in capfd.readouterr().out


def start_program(folder: Path, *, form: str = "ours") -> subprocess.Popen[bytes]:
    """The program with the stand-ins' rows of a form, in a process of its own."""
    code = (
        "import sys; from benchmarks.gpu import __main__ as program\n"
        f"if __name__ == '__main__': sys.exit(program.main(sys.argv[1:], sections={STUBS!r}))"
    )
    script = folder / "start.py"
    script.write_text(code, encoding="utf-8")
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    words = ["--smoke", "--forms", form, "--copy-to", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, str(script), *words], env=environment, stdout=subprocess.DEVNULL)


def written(folder: Path) -> list[str]:
    """Names of the figures in the copy of the results file, which is always whole."""
    path = folder / "out" / f"{program.REHEARSAL}.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row["name"] for row in rows if row["section"] == "models" and "ms" in row]


def test_a_killed_program_loses_one_row_at_most_and_the_next_goes_on(tmp_path: Path) -> None:
    killed = start_program(tmp_path)
    while len(written(tmp_path)) < 2 and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = written(tmp_path)
    assert before == [f"quick {number}" for number in range(len(before))] and 2 <= len(before) < 6
    path = tmp_path / "out" / f"{program.REHEARSAL}.json"
    kept = {row["name"]: row["at"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    time.sleep(1.1)  # rows say to the second when they were written

    assert start_program(tmp_path).wait() == 0
    assert written(tmp_path) == [f"quick {number}" for number in range(6)]
    after = {row["name"]: row["at"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert {name: after[name] for name in kept} == kept  # what there was is not measured again
    assert after["quick 5"] > max(kept.values())


def test_who_is_killed_in_the_middle_of_a_row_takes_the_process_that_measures_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FOLDER", str(tmp_path))
    killed = start_program(tmp_path, form="slow")
    below = tmp_path / "child"
    while not (below.is_file() and below.read_text(encoding="utf-8")) and killed.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text(encoding="utf-8").split()
    assert children
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    gone = [wait_until_gone(int(child)) for child in children]
    os.kill(int(below.read_text(encoding="utf-8")), signal.SIGKILL)  # what a row starts is its own business
    assert all(gone)


def test_what_was_started_and_not_ended_ends_with_its_process() -> None:
    said = measured("models", functools.partial(subprocess.run, ["sleep", "60"], timeout=0.1))
    assert said["timed_out"] and is_spoiled(said)
    assert not is_spoiled({"ms": 1.0}) and not is_spoiled({"error": "RuntimeError: no kernel"})
