"""The half hour on a GPU, rehearsed: by an interpreter that has torch, Triton, numpy and pytest alone, on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import bare_python
import pytest
from processes import wait_until_gone

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import unattended
from benchmarks.gpu.account import NOT_BEGUN, NOT_PLANNED, of, why_not
from benchmarks.gpu.costs import predicted
from benchmarks.gpu.jobs import Job, list_jobs
from benchmarks.gpu.runner import UNFINISHED
from benchmarks.gpu.store import Store
from benchmarks.gpu.workload import full

MINUTES = "30"


@pytest.mark.slow
def test_the_whole_plan_is_rehearsed_without_the_projects_environment(tmp_path: Path) -> None:
    if not (bare_python.ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the repository's files")
    tree = bare_python.copy_tree(tmp_path / "tree")
    python = bare_python.make(tmp_path / "python")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
        )

    for absent in ("twins_trt", "onnx", "xdist", "hypothesis", "PIL", "pip"):
        code = f"import sys, importlib.util as u; sys.path.remove(''); sys.exit(u.find_spec({absent!r}) is not None)"
        assert call("-c", code).returncode == 0, absent

    before = {path.name for path in (tree / "benchmarks" / "results").glob("*gpu*")}
    out = tmp_path / "out"
    printed = call("-m", "benchmarks.gpu", "--plan", MINUTES, "--copy-to", str(out), "--smoke").stdout
    commands = [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#")]
    assert len(commands) >= 4 and all(words[0] == str(python) and words[-1] == "--smoke" for words in commands)

    done = call("-m", "benchmarks.gpu.unattended", "--minutes", MINUTES, "--copy-to", str(out), "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    begun = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith(str(python))]
    assert begun[: len(commands)] == commands and begun[len(commands) :] == commands  # told, then done
    rows = json.loads((out / f"{program.REHEARSAL}.json").read_text(encoding="utf-8"))["rows"]
    assert {"checks", "ceilings", "kernels", "models", "traces"} <= {row["section"] for row in rows}
    assert all(row.get("passed", True) for row in rows) and all("took_s" in row for row in rows)
    told = (out / "unattended.txt").read_text(encoding="utf-8")
    assert "\nmeasured or green: " in told and NOT_PLANNED in told and NOT_BEGUN not in told
    kept = {path.name for path in (tree / "benchmarks" / "results").glob("*gpu*")}
    assert kept == before  # a rehearsal is kept in DIR alone


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "gpu_name", lambda: None)
    assert unattended.main(["--minutes", "1", "--copy-to", str(tmp_path)]) == program.NO_GPU
    assert "--smoke" in capsys.readouterr().err


def test_a_run_that_is_ended_tells_its_account_and_leaves_no_process(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.gpu.unattended", "--minutes", MINUTES, "--copy-to", str(tmp_path), "--smoke"]
    run = subprocess.Popen([sys.executable, *words], cwd=bare_python.ROOT, stdout=subprocess.DEVNULL)
    results = tmp_path / f"{program.REHEARSAL}.json"
    while not results.is_file() and run.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text(encoding="utf-8").split()
    run.terminate()
    assert run.wait() == UNFINISHED
    told = (tmp_path / "unattended.txt").read_text(encoding="utf-8")
    assert "interrupted by SIGTERM about at checks: " in told and NOT_BEGUN not in told
    assert children and all(wait_until_gone(int(child)) for child in children)


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    start = time.monotonic()
    assert unattended.execute([sys.executable, "-c", code], log=log, limit_s=2) == -9
    assert time.monotonic() - start < 20
    assert wait_until_gone(int(log.read_text(encoding="utf-8")))


def test_what_a_command_says_is_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(7)"
    assert unattended.execute([sys.executable, "-c", code], log=tmp_path / "log", limit_s=60) == 7
    assert capsys.readouterr().out == "one\ntwo\n" == (tmp_path / "log").read_text(encoding="utf-8")


def test_the_account_says_what_was_not_measured_and_why(tmp_path: Path) -> None:
    names = ("measured", "excluded", "failed", "hung", "never")
    jobs = [Job(name, dict, section="models", form="ours", seconds=60.0) for name in names]
    jobs.append(Job("check", dict, section="checks"))
    store = Store("gpu-x", {}, fingerprint="one", fresh=True, folder=tmp_path)
    store.put("models", "measured", {"ms": 1.0})
    store.put("models", "excluded", {"excluded": "it rests on lsa, and the check 'check' is red"})
    store.put("models", "failed", {"error": "RuntimeError: out of memory"})
    store.put("models", "hung", {"error": "given up after 9 s", "given_up": True})
    store.put("checks", "check", {"passed": False, "said": "2 failed"})
    said, left = of(jobs, jobs, store, begin="2000-01-01T00:00:00Z", seconds=predicted)
    assert said.splitlines()[0] == "measured or green: 1 models"
    for line in (
        "not measured: 1 rows: it rests on lsa, and the check 'check' is red\n  models: excluded",
        "not measured: 1 rows: RuntimeError: out of memory\n  models: failed",
        "not measured: 1 rows: given up after 9 s\n  models: hung",
        f"not measured: 1 rows, predicted 1 minutes: {NOT_BEGUN}\n  models: never",
        "not measured: 1 rows: red: 2 failed\n  checks: check",
    ):
        assert line in said
    assert [job.name for job in left] == ["hung", "never"]  # the others were tried
    assert why_not({"passed": True}) is None


class Commands:
    """Stands for `execute`: what each command does, one after another, in a rehearsal in `folder`."""

    def __init__(self, folder: Path, *steps: Callable[[Path], int]) -> None:
        self.folder, self.steps, self.logs = folder, list(steps), [""]

    def __call__(self, words: Sequence[str], *, log: Path, limit_s: float) -> int:
        self.logs.append(log.name)
        assert "under way" in (self.folder / "unattended.txt").read_text(encoding="utf-8")
        return self.steps.pop(0)(log) if self.steps else UNFINISHED


def rehearse(monkeypatch: pytest.MonkeyPatch, folder: Path, *steps: Callable[[Path], int]) -> tuple[int, str, Commands]:
    """Exit code, account and commands of an unattended run whose commands do nothing but these steps."""
    commands = Commands(folder, *steps)
    monkeypatch.setattr(unattended, "execute", commands)
    code = unattended.main(["--minutes", MINUTES, "--copy-to", str(folder), "--smoke"])
    return code, (folder / "unattended.txt").read_text(encoding="utf-8"), commands


def test_the_account_gives_the_true_reason_and_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(log: Path) -> int:
        log.write_text("Traceback (most recent call last):\nOSError: No space left on device\n", encoding="utf-8")
        return 1

    def interrupted(log: Path) -> int:
        raise unattended.Stopped("interrupted by SIGTERM")

    code, told, _ = rehearse(monkeypatch, tmp_path, crashes, lambda log: UNFINISHED, interrupted)
    assert code == UNFINISHED
    assert re.match(r"begun 20\S+Z\nended 20\S+Z\nmeasured or green: nothing\n", told)
    lines = told.splitlines()
    reasons = [line.partition(" minutes: ")[2] for line in lines if line.startswith("not measured: ")]
    assert sorted(reasons)[0] == "command 1 ended with exit code 1: OSError: No space left on device"
    assert any(reason.startswith("interrupted by SIGTERM about at ") for reason in reasons)
    assert NOT_PLANNED in reasons and NOT_BEGUN not in reasons


def test_logs_of_earlier_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step-2.log", "step-11.log", "step-x.log"):
        (tmp_path / name).write_text("earlier", encoding="utf-8")
    _, _, commands = rehearse(monkeypatch, tmp_path)
    assert commands.logs[1:3] == ["step-12.log", "step-13.log"]


def test_a_run_that_has_too_little_time_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--minutes", "0.5", "--copy-to", str(tmp_path), "--smoke"]
    assert unattended.main(words) == UNFINISHED
    said = "nothing was planned: 0.5 minutes are too few"
    assert said in capsys.readouterr().out and said in (tmp_path / "unattended.txt").read_text(encoding="utf-8")


def test_afresh_sets_aside_what_there_is_and_counts_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(smoke=True, copy_to=tmp_path, fresh=False)
    store = program.open_store(options, None)
    assert store is not None
    store.put("kernels", "before", {"ms": 1.0})
    check = next(job for job in list_jobs(full()) if job.section == "checks")

    def measures(log: Path) -> int:
        store = program.open_store(options, None)
        assert store is not None and store.get("kernels", "before") is None
        store.put(*check.key, {"passed": True})
        return UNFINISHED

    monkeypatch.setattr(unattended, "execute", Commands(tmp_path, measures))
    unattended.main(["--minutes", MINUTES, "--copy-to", str(tmp_path), "--smoke", "--fresh"])
    told = (tmp_path / "unattended.txt").read_text(encoding="utf-8")
    (aside,) = tmp_path.glob("old-*")
    assert "measured or green: 1 checks" in told and f"set aside: 1 rows of before: {aside}" in told
    assert "before" in aside.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_ends_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('one', flush=True); print('two', flush=True)"
    assert unattended.execute([sys.executable, "-c", code], log=tmp_path / "absent" / "log", limit_s=60) == 0
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n" and said.err.startswith("warning: cannot write ")
