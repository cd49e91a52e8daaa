"""What is measured of a list of rows: not what rests on a red check, and not what the budget has no time for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.runner import RED, UNFINISHED, UNFINISHED_AND_RED, run
from benchmarks.gpu.store import Store, red_checks
from benchmarks.gpu.worker import failed

FIGURE = {"ms": 1.0, "timed": "wall"}
GREEN, RED_ROW = {"passed": True}, {"passed": False}


class Machine:
    """Does rows of a name at once, each in some seconds of a clock that stands still otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.rows: dict[str, dict[str, Any]] = {"check lsa": GREEN, "check gsa": GREEN}
        self.seconds: dict[str, float] = {}
        self.done: list[str] = []

    def store(self) -> Store:
        return Store("gpu-x", {}, fingerprint="one", fresh=False, folder=self.folder)

    def kept(self, name: str) -> dict[str, Any]:
        (row,) = [row for row in results.read_results("gpu-x", folder=self.folder)["rows"] if row["name"] == name]
        return dict(row)

    def do(self, job: Job, limit_s: float | None) -> dict[str, Any]:
        self.done.append(job.name)
        seconds = self.seconds.get(job.name, 10.0)
        if limit_s is not None and seconds > limit_s:
            self.now += limit_s
            return failed(job.section, f"given up after {limit_s:.0f} s", given_up=True)
        self.now += seconds
        return dict(self.rows.get(job.name, FIGURE))

    def run(self, jobs: list[Job], **options: Any) -> tuple[int, list[str]]:
        """Exit code, and the rows that were begun."""
        self.done = []
        return run(jobs, self.store(), do=self.do, now=lambda: self.now, **options), self.done


def job(name: str, *, rests_on: tuple[str, ...] = (), covers: tuple[str, ...] = (), seconds: float = 1.0) -> Job:
    section = "checks" if covers else "models"
    return Job(name, dict, covers=covers, rests_on=rests_on, seconds=seconds, section=section)


CHECKS = [job("check lsa", covers=("lsa",)), job("check gsa", covers=("gsa",))]
FIGURES = [job("svt", rests_on=("lsa", "gsa")), job("pcpvt", rests_on=("gsa",)), job("eager")]
NAMES = [each.name for each in (*CHECKS, *FIGURES)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_red_check_excludes_what_rests_on_it_and_nothing_else(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.rows["check lsa"] = RED_ROW
    assert machine.run([*CHECKS, *FIGURES]) == (RED, ["check lsa", "check gsa", "pcpvt", "eager"])
    said = capsys.readouterr()
    assert "models: svt: EXCLUDED: it rests on lsa, and the check 'check lsa' is red" in said.out
    assert "1 checks are red, and 1 rows are excluded for it: check lsa (lsa)" in said.err
    row = machine.kept("svt")
    assert row["excluded"] and "ms" not in row and not machine.store().has("models", "svt")
    machine.rows["check lsa"] = GREEN
    assert machine.run([*CHECKS, *FIGURES]) == (0, ["check lsa", "svt"])  # the rest is kept


def test_a_check_that_an_earlier_run_found_red_still_counts(machine: Machine) -> None:
    machine.rows["check gsa"] = RED_ROW
    assert machine.run(CHECKS) == (RED, ["check lsa", "check gsa"])
    assert machine.run(FIGURES) == (RED, ["eager"])


def test_a_check_may_find_that_less_is_wrong_than_it_covers(machine: Machine) -> None:
    both = job("check both", covers=("lsa", "gsa"))
    machine.rows["check both"] = {"passed": False, "covers": ["lsa"]}
    assert machine.run([both, *FIGURES]) == (RED, ["check both", "pcpvt", "eager"])
    assert red_checks([machine.kept("check both")]) == {"check both": ("lsa",)}


def test_every_row_holds_the_seconds_that_it_took(machine: Machine) -> None:
    machine.seconds = {"svt": 42.5}
    machine.run([*CHECKS, *FIGURES])
    assert [machine.kept(name)["took_s"] for name in NAMES] == [10.0, 10.0, 42.5, 10.0, 10.0]
    assert machine.store().seconds()["models", "svt"] == 42.5


def test_a_budget_stops_it_and_the_next_run_goes_on(machine: Machine) -> None:
    assert machine.run([*CHECKS, *FIGURES], budget_s=25) == (UNFINISHED, ["check lsa", "check gsa", "svt"])
    assert machine.run([*CHECKS, *FIGURES], budget_s=25) == (UNFINISHED, ["pcpvt", "eager", "svt"])
    assert machine.run([*CHECKS, *FIGURES]) == (0, ["svt"])
    assert machine.run([*CHECKS, *FIGURES]) == (0, [])


def test_a_row_that_is_predicted_to_take_longer_than_is_left_is_not_begun(machine: Machine) -> None:
    rows = [job("long", seconds=600), job("short", seconds=5)]
    assert machine.run(rows, budget_s=100) == (UNFINISHED, ["short"])
    assert machine.run(rows) == (0, ["long"])


def test_a_row_is_given_up_in_its_middle_and_is_tried_last(machine: Machine) -> None:
    machine.seconds = {"hangs": 1e6}
    rows = [job("hangs"), job("eager")]
    assert machine.run(rows, budget_s=100) == (UNFINISHED, ["hangs"])
    row = machine.kept("hangs")
    assert row["given_up"] and row["took_s"] == 100 and machine.now == 100
    assert machine.run(rows, budget_s=100) == (UNFINISHED, ["eager", "hangs"])


def test_without_a_budget_a_row_that_hangs_does_not_stop_the_rest(machine: Machine) -> None:
    machine.seconds = {"hangs": 1e6}
    assert machine.run([job("hangs"), job("eager")]) == (0, ["hangs", "eager"])
    assert machine.kept("hangs")["given_up"]


def test_what_rests_on_a_check_that_was_not_made_waits_for_it(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = job("check lsa", covers=("lsa",), seconds=600)
    assert machine.run([slow, CHECKS[1], *FIGURES], budget_s=100) == (UNFINISHED, ["check gsa", "pcpvt", "eager"])
    assert "rows wait for checks that were not made: check lsa" in capsys.readouterr().err
    machine.rows["check lsa"] = {"error": "no test was run: no CUDA GPU"}  # neither green nor red
    assert machine.run([slow, CHECKS[1], *FIGURES]) == (UNFINISHED, ["check lsa"])


def test_a_check_that_the_budget_ends_is_not_red(machine: Machine) -> None:
    machine.seconds = {"check lsa": 1e6}
    assert machine.run([*CHECKS, *FIGURES], budget_s=50) == (UNFINISHED, ["check lsa"])
    assert machine.store().red() == {}
    machine.seconds = {}
    assert machine.run([*CHECKS, *FIGURES]) == (0, ["check gsa", "check lsa", "svt", "pcpvt", "eager"])


def test_a_check_that_hangs_is_red(machine: Machine) -> None:
    machine.seconds = {"check lsa": 1e6}
    assert machine.run([*CHECKS, *FIGURES])[0] == RED
    assert machine.store().red() == {"check lsa": ("lsa",)}
    assert "excluded" in machine.kept("svt")


def test_the_exit_code_says_both(machine: Machine) -> None:
    machine.rows["check lsa"] = RED_ROW
    rows = [*CHECKS, *FIGURES, job("long", seconds=600)]
    assert machine.run(rows, budget_s=100)[0] == UNFINISHED_AND_RED


def test_a_failed_capture_is_not_tried_again_and_another_error_is(machine: Machine) -> None:
    machine.rows["svt"] = failed("models", "CaptureError: not permitted", capture_failed=True)
    machine.rows["pcpvt"] = failed("models", "RuntimeError: out of memory")
    assert machine.run([*CHECKS, *FIGURES]) == (0, NAMES)
    assert machine.run([*CHECKS, *FIGURES]) == (0, ["pcpvt"])


def test_what_failed_is_not_a_new_row_and_a_rehearsal_advises_no_tables(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.rows["svt"] = failed("models", "RuntimeError: out of memory")
    machine.seconds = {"hangs": 1e6}
    machine.run([*FIGURES, job("hangs")], budget_s=100)
    assert "the budget is spent: 2 new rows, 1 failed, 1 are left" in capsys.readouterr().out
    machine.run(FIGURES)
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == (
        "gpu-x.json has 0 new rows, 1 failed; then, in the project's environment: python -m benchmarks.render"
    )
    rehearsal = Store(program.REHEARSAL, {}, fingerprint="one", fresh=False, folder=machine.folder)
    assert run(FIGURES, rehearsal, do=machine.do, now=lambda: machine.now) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{program.REHEARSAL}.json has 2 new rows, 1 failed"


def test_what_a_cpu_does_not_have_is_said_once(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [job(f"sdpa {number}") for number in range(5)]
    machine.rows.update({each.name: failed("models", "RuntimeError: No viable backend") for each in rows})
    assert run([*rows, job("eager")], None, do=machine.do, now=lambda: machine.now) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "No viable" in line] == [
        "[1/6] models: sdpa 0: RuntimeError: No viable backend [10.0 s]",
        "and 4 rows more: RuntimeError: No viable backend",
    ]
    machine.run(rows)  # on a GPU each is named
    assert capsys.readouterr().out.count("No viable") == 5


def test_a_rehearsal_keeps_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    do: Callable[[Job, float | None], dict[str, Any]] = machine.do
    assert run(FIGURES, None, do=do, now=lambda: machine.now) == 0
    assert machine.done == ["svt", "pcpvt", "eager"] and list(tmp_path.iterdir()) == []
