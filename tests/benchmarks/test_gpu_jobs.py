"""Which rows are chosen, in which order, what they cost, and which commands fit into a time."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import costs, schedule, unattended
from benchmarks.gpu.jobs import SECTIONS, WORTH, Job, Selection, choose, list_jobs, worth
from benchmarks.gpu.store import Store, seconds_taken
from benchmarks.gpu.workload import full

JOBS = list_jobs(full())
SMALL = ("twins_svt-s_fpn", "twins_pcpvt-s_fpn")


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")


def test_no_two_rows_have_one_name() -> None:
    assert len({job.key for job in JOBS}) == len(JOBS)


def test_checks_come_first_then_ours_then_the_strongest_and_what_inductor_compiles_last() -> None:
    chosen = choose(JOBS, Selection())
    assert sorted(job.key for job in chosen) == sorted(job.key for job in JOBS)
    kinds = [(job.section, job.kind) for job in chosen]
    first = {kind: kinds.index(kind) for kind in reversed(kinds)}
    last = {kind: place for place, kind in enumerate(kinds)}
    assert last["checks", "ours"] < first["models", "ours"]
    assert last["models", "ours"] < first["kernels", "ours"] < first["models", "strong"] < first["kernels", "strong"]
    assert last["kernels", "strong"] < first["models", "plain"]
    compiled = [place for place, (_, kind) in enumerate(kinds) if kind in ("autotuned", "compiled")]
    assert compiled == list(range(len(kinds) - len(compiled), len(kinds))) and len(compiled) > 100
    assert chosen[-1].section == "training"


def test_every_section_has_its_place_and_its_cost() -> None:
    for job in JOBS:
        assert worth(job) < len(WORTH), job
        assert (job.section, job.kind) in costs.SECONDS or job.seconds is not None, job
    assert {section for step in schedule.STEPS for section in step.sections} >= set(SECTIONS)


def test_models_batches_and_forms_are_chosen_with_the_checks_that_they_rest_on() -> None:
    wanted = Selection(("models",), ("twins_pcpvt-s_fpn",), (1,), ("ours", "eager amp"), tests=False)
    assert [(job.section, job.name) for job in choose(JOBS, wanted)] == [
        *(("checks", f"gsa twins_pcpvt-s_fpn stage {stage} batch 1 forward") for stage in (1, 2, 3, 4)),
        ("checks", "resize_argmax"),
        ("checks", "resize_normalize"),
        ("models", "twins_pcpvt-s_fpn batch 1 ours"),
        ("models", "twins_pcpvt-s_fpn batch 1 eager amp"),
    ]
    with_tests = [job.name for job in choose(JOBS, replace(wanted, tests=True)) if job.name.startswith("tests ")]
    files = ("test_on_gpu", "test_on_gpu_around", "test_on_gpu_between")
    assert with_tests == [f"tests tests/kernels/{file}.py" for file in files]
    # a competitor's time is right whatever our kernels do
    assert {job.section for job in choose(JOBS, replace(wanted, forms=("eager amp",), tests=True))} == {"models"}


def test_checks_alone_are_all_tests_and_what_the_models_need() -> None:
    checks = choose(JOBS, Selection(("checks",), SMALL))
    assert {job.section for job in checks} == {"checks"}
    tests = [job for job in JOBS if job.name.startswith("tests ")]
    assert [job for job in checks if job.name.startswith("tests ")] == tests
    cores = {job.name for job in checks} - {job.name for job in tests}
    assert len(cores) == 2 * 2 * (8 + 4) + 2  # batches, directions; pre- and postprocessing
    assert not any("svt-b" in name or "svt-l" in name for name in cores)


@pytest.mark.parametrize(
    ("words", "unknown", "known"),
    [
        (["--forms", "ours", "theirs"], "'theirs'", "'eager amp'"),
        (["--models", "twins"], "'twins'", "twins_svt-s_fpn"),
        (["--batches", "3"], "3", "1, 16"),
        (["--sections", "kernel"], "'kernel'", "ceilings, kernels, models"),
    ],
)
def test_an_unknown_name_is_a_usage_error_that_lists_the_known(
    words: list[str], unknown: str, known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program.main([*words, "--smoke"])
    said = capsys.readouterr().err
    assert error.value.code == 2 and f"{words[0]}: unknown {unknown}; known are: " in said and known in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((["--plan", text], "is not a finite number above zero") for text in ("nan", "inf", "-3", "0", "soon")),
        (["--budget", "nan"], "is not a finite number above zero"),
        (["--plan", "30", "--per-command", "-1"], "is not a finite number above zero"),
        (["--plan", "30", "--models", "twins_svt-s_fpn"], "leave out --models"),
        (["--plan", "30", "--costs", "--budget", "9", "--no-tests"], "leave out --budget, --no-tests, --costs"),
        (["--sections", "training", "--forms", "flex", "--costs"], "no row has this section"),
    ],
)
def test_options_that_would_not_be_obeyed_are_a_usage_error(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program.main(words)
    assert error.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["nan", "inf", "-3", "0"])
def test_unattended_refuses_minutes_that_are_none(minutes: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        unattended.main(["--minutes", minutes, "--copy-to", str(tmp_path), "--smoke"])
    assert error.value.code == 2 and not list(tmp_path.iterdir())


def test_a_short_plan_has_the_budget_of_its_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--plan", "4.99376"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# 5 minutes; ")
    budgets = [int(part) for part in re.findall(r"--budget (\d+)", said)]
    assert budgets and sum(budgets) < 300
    planned_rows, left = (sum(map(int, re.findall(r"(\d+) [a-z]+(?=[,;\n]|$)", line))) for line in totals(said))
    assert planned_rows + left == len(JOBS)


def totals(said: str) -> tuple[str, str]:
    """What a plan counts: planned, and without time."""
    lines = said.splitlines()
    yields = ", ".join(line.partition("; yields ")[2] for line in lines if "; yields " in line)
    (left,) = [line.partition(": ")[2].partition(";")[0] for line in lines if line.startswith("# no time for")]
    return yields, left


@pytest.mark.parametrize("words", [["--plan", "30"], ["--costs"]])
def test_a_rehearsal_is_planned_by_what_it_has(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--smoke", "--copy-to", str(tmp_path)]
    program.main(words)
    before = capsys.readouterr().out
    store = program.open_store(program.parser().parse_args(words), None)
    assert store is not None
    for job in JOBS[:3]:
        store.put(*job.key, {"passed": True, "took_s": 1.0})
    program.main(words)
    after = capsys.readouterr().out
    if "--plan" in words:
        assert sum(int(n) for n in re.findall(r"(\d+) checks", before)) - 3 == sum(
            int(n) for n in re.findall(r"(\d+) checks", after)
        )
    else:
        (line,) = [line for line in after.splitlines() if line.startswith("all ")]
        assert line.split()[1:3] == [str(len(JOBS)), "3"] and line.split()[4] == "3"


def keep(rows: dict[tuple[str, str], float]) -> None:
    store = Store("gpu-x", {}, fingerprint="one", fresh=True, folder=results.RESULTS)
    for (section, name), seconds in rows.items():
        store.put(section, name, {"ms": 1.0, "took_s": seconds})


def test_costs_are_predicted_and_measured_where_a_results_file_knows(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--costs", "--sections", "models", "--models", "twins_svt-s_fpn", "--forms", "eager amp", "ours compiled"]
    assert program.main(words) == 0
    said = capsys.readouterr().out
    assert "Seconds are predicted" in said
    (line,) = [line for line in said.splitlines() if "eager amp" in line]
    predicted = costs.SECONDS["models", "strong"]
    assert line.split()[-5:] == ["2", "0", f"{2 * predicted:.0f}", "0", f"{2 * predicted:.0f}"]

    keep({("models", "twins_svt-s_fpn batch 1 eager amp"): 100.0, ("models", "another"): 7.0})
    program.main(words)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "eager amp" in line]
    assert line.split()[-5:] == ["2", "0", f"{100 + predicted:.0f}", "100", f"{100 + predicted:.0f}"]


def test_what_failed_early_says_nothing_of_its_cost_and_what_was_given_up_does(tmp_path: Path) -> None:
    rows = [
        {"section": "models", "name": "failed", "error": "RuntimeError: ", "took_s": 0.1},
        {"section": "models", "name": "hung", "error": "given up", "given_up": True, "took_s": 300.0},
    ]
    path = tmp_path / "gpu-x.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert seconds_taken([path]) == {("models", "hung"): 300.0}


def planned(minutes: float, *, per_command: float = 10, jobs: list[Job] = JOBS) -> schedule.Schedule:
    return schedule.make(jobs, minutes=minutes, per_command=per_command, seconds=costs.predicted)


@pytest.mark.parametrize(("minutes", "per_command"), [(5, 10), (30, 10), (30, 4), (240, 10), (600, 60)])
def test_the_commands_fit_and_begin_with_the_checks(minutes: float, per_command: float) -> None:
    made = planned(minutes, per_command=per_command)
    assert made.commands[0].wanted.sections[0] == "checks" and made.commands[0].wanted.tests
    assert not any(command.wanted.tests for command in made.commands[1:])  # what they found counts on
    assert sum(command.seconds for command in made.commands) <= 60 * minutes
    for command in made.commands:
        assert command.seconds <= command.budget_s < 60 * per_command
        assert command.seconds == costs.START_SECONDS + sum(map(costs.predicted, command.jobs))
    names = [job.key for command in made.commands for job in command.jobs]
    assert len(names) == len(set(names))
    # every row there is, the checks too: planned, or without time
    assert sorted(job.key for job in JOBS) == sorted([*names, *(job.key for job in made.left)])
    assert made.commands[-1].limit_s <= 60 * minutes - sum(command.seconds for command in made.commands[:-1])


def test_more_time_gives_more_and_enough_gives_all() -> None:
    taken = [sum(len(command.jobs) for command in planned(minutes).commands) for minutes in (10, 30, 90, 3000)]
    assert taken == sorted(set(taken))
    assert planned(3000).left == () and taken[-1] == len(choose(JOBS, Selection()))


def test_the_first_half_hour_has_ours_and_the_strongest_competitors() -> None:
    done = {job.key for command in planned(30).commands for job in command.jobs}
    first = {job.key for job in planned(30).commands[0].jobs}
    for job in JOBS:
        if job.model in SMALL and job.section == "models" and job.kind == "ours":
            assert job.key in first, job.name  # the figures that matter most, should the machine go away
        if job.model in SMALL and job.section in ("models", "kernels") and job.kind in ("ours", "strong", "plain"):
            assert job.key in done, job.name
        if job.model == SMALL[0] and job.section == "models" and job.kind == "autotuned" and job.batch == 1:
            assert job.key in done, job.name
    assert {"traces", "sanitizer"} <= {section for section, _ in done}


def test_a_command_chooses_the_rows_that_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """Its words are what the program itself reads."""
    assert program.main(["--plan", "30", "--copy-to", "some dir"]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line and not line.startswith("#")]
    before: set[tuple[str, str]] = set()
    for line, command in zip(lines, planned(30).commands, strict=True):
        words = shlex.split(line)
        assert words[:3] == [sys.executable, "-m", "benchmarks.gpu"]
        options = program.parser().parse_args(words[3:])
        chosen = {job.key for job in choose(JOBS, program.selection(options, JOBS, SECTIONS))}
        promised = {job.key for job in command.jobs}
        assert chosen - before == promised or (promised < chosen - before and options.budget < command.seconds + 60)
        assert options.copy_to == Path("some dir") and options.budget == command.budget_s
        before |= chosen
    assert said.count("predicted") >= len(lines) + 2


def test_what_was_measured_is_not_planned_again() -> None:
    first = planned(30)
    done = {job.key for command in first.commands for job in command.jobs}
    again = schedule.make(JOBS, minutes=30, per_command=10, seconds=costs.predicted, done=done)
    assert not done & {job.key for command in again.commands for job in command.jobs}
    everything = {job.key for job in JOBS}
    assert schedule.make(JOBS, minutes=30, per_command=10, seconds=costs.predicted, done=everything).commands == ()
