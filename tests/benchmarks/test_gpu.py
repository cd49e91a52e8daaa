"""The GPU benchmark without a GPU: a whole rehearsal, its baselines, its order, and how it continues."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import results
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks, tables
from benchmarks.gpu.forms import forms
from benchmarks.gpu.store import Store, file_name
from benchmarks.gpu.timing import CaptureError
from benchmarks.gpu.workload import Core, cores, full, smoke
from twins_trt.kernels.gsa import gsa_reference
from twins_trt.kernels.lsa import lsa_reference


@pytest.mark.slow
def test_every_line_is_walked_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """So that an unattended first run on a GPU does not end at a typing error."""
    assert program.main(["--smoke"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "rehearsed: nothing was kept"
    errors = [line for line in said if "Error: " in line]
    # a CPU has one kind of scaled_dot_product_attention, and no gradient of FlexAttention
    assert all("No viable backend" in line or "FlexAttention does not support backward" in line for line in errors)
    assert len(said) - len(errors) >= 35


@pytest.mark.parametrize("size", [(7, 14), (9, 7), (9, 12)])
@pytest.mark.parametrize("attention", ["lsa", "gsa"])
def test_every_form_computes_the_same(attention: str, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width = size
    if attention == "lsa":
        x, y = (torch.randn(*shape, generator=generator) for shape in ((2, height, width, 96), (96,)))
        expected = lsa_reference(x, y, num_heads=2)
    else:
        x, y = (torch.randn(*shape, generator=generator) for shape in ((2, height * width, 32), (2, 6, 64)))
        expected = gsa_reference(x, y, num_heads=2)
    compared = []
    for name, form in forms(attention, kernels="reference", compiler="eager").items():
        if name in ("sdpa efficient", "sdpa cudnn"):
            continue  # a CPU has neither
        torch.testing.assert_close(form(x, y, 2), expected, rtol=1e-4, atol=1e-5)
        compared.append(name)
    assert {"ours", "mmseg eager", "mmseg compiled", "flex"} <= set(compared)


def test_the_stages_of_the_published_models() -> None:
    found = cores(full())
    assert len(found) == 2 * (3 * 8 + 4)
    first = found[0]
    assert first == Core("lsa", "twins_svt-s_fpn", 1, 1, 128, 128, 0, 2, 32)
    assert {core.keys for core in found if core.attention == "gsa"} == {256}
    assert first.bytes("forward", 2) == 128 * 128 * 64 * 4 * 2
    assert first.bytes("backward", 2) == 128 * 128 * 64 * 7 * 2
    assert first.flops("forward") == 4 * 49 * 128 * 128 * 64
    assert first.flops("backward") == 10 * 49 * 128 * 128 * 64
    assert first.exponentials == 128 * 128 * 49 * 2


def test_rows_are_kept_at_once_and_not_measured_twice(tmp_path: Path) -> None:
    store = Store("gpu-x", {"size": [8, 8]}, fingerprint="one", fresh=False, folder=tmp_path)
    store.put("checks", "a", {"passed": False})
    store.put("kernels", "b", {"ms": 1.0})
    store.put("kernels", "d", {"error": "OutOfMemoryError: "})
    again = Store("gpu-x", {"size": [8, 8]}, fingerprint="one", fresh=False, folder=tmp_path)
    assert again.has("kernels", "b") and not again.has("kernels", "c")
    assert not again.has("checks", "a") and not again.has("kernels", "d")  # it may have been mended
    again.put("checks", "c", {"passed": True})
    rows = results.read_results("gpu-x", folder=tmp_path)["rows"]
    assert [(row["section"], row["name"]) for row in rows] == [("kernels", "b"), ("checks", "c")]
    for other in (
        Store("gpu-x", {}, fingerprint="two", fresh=False, folder=tmp_path),  # other code: other figures
        Store("gpu-x", {}, fingerprint="one", fresh=True, folder=tmp_path),
    ):
        assert not other.has("kernels", "b")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """`run(passed=True)`: exit code and what was measured, of two checks and a figure of each section."""

    def start(
        *, budget_s: float | None = None, passed: bool = True, seconds: float = 0.0, error: Exception | None = None
    ) -> tuple[int, list[str]]:
        measured: list[str] = []
        now = [0.0]

        def job(section: str, name: str, row: dict[str, Any]) -> program.Job:
            def measure() -> dict[str, Any]:
                measured.append(name)
                now[0] += seconds
                if error is not None and name == "kernels":
                    raise error
                return row

            return section, name, measure

        figure = {"ms": 1.0, "timed": "wall"}
        jobs = [job("checks", "right", {"passed": True}), job("checks", "doubtful", {"passed": passed})]
        jobs += [job(section, section, figure) for section in program.SECTIONS]
        store = Store("gpu-x", {}, fingerprint="one", fresh=False, folder=tmp_path)
        return program.run(jobs, store, budget_s=budget_s, clock=lambda: now[0]), measured

    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    return start


def test_nothing_is_timed_while_a_check_is_red(run: Callable[..., tuple[int, list[str]]]) -> None:
    assert run(passed=False) == (1, ["right", "doubtful"])
    assert run(passed=True) == (0, ["doubtful", *program.SECTIONS])  # what failed is checked again, the rest is kept
    assert run(passed=True) == (0, [])


def test_a_budget_stops_it_and_the_next_run_goes_on(run: Callable[..., tuple[int, list[str]]]) -> None:
    assert run(budget_s=25, seconds=10) == (75, ["right", "doubtful", "ceilings"])
    assert run(budget_s=25, seconds=10) == (0, ["kernels", "models", "training"])


def test_a_failed_capture_ends_the_process_and_is_not_tried_again(
    run: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    error = CaptureError("operation not permitted when stream is capturing")
    assert run(error=error) == (75, ["right", "doubtful", "ceilings", "kernels"])
    (row,) = [row for row in results.read_results("gpu-x", folder=tmp_path)["rows"] if "error" in row]
    assert row["name"] == "kernels" and row["error"] == f"CaptureError: {error}"
    assert run(error=error) == (0, ["models", "training"])


def test_another_error_does_not_end_the_process_and_is_tried_again(run: Callable[..., tuple[int, list[str]]]) -> None:
    error = RuntimeError("out of memory")
    assert run(error=error) == (0, ["right", "doubtful", *program.SECTIONS])
    assert run() == (0, ["kernels"])


@pytest.fixture
def rehearse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """`rehearse("--budget", "25")`: exit code of the program and what it measured. Each job takes ten seconds."""

    def start(*words: str) -> tuple[int, list[str]]:
        done: list[str] = []

        def listing(names: Sequence[str], row: dict[str, Any]) -> program.Listing:
            def measure(name: str) -> dict[str, Any]:
                done.append(name)
                return row

            return lambda workload: [(name, functools.partial(measure, name)) for name in names]

        figures = {section: listing([section], {"ms": 1.0, "timed": "wall"}) for section in program.SECTIONS}
        listings = {"checks": listing(["right", "doubtful"], {"passed": True}), **figures}
        code = program.main(["--smoke", *words], listings=listings, clock=lambda: 10.0 * len(done))
        return code, done

    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    return start


def test_the_program_stops_when_its_budget_is_spent(rehearse: Callable[..., tuple[int, list[str]]]) -> None:
    assert rehearse("--budget", "25") == (75, ["right", "doubtful", "ceilings"])
    assert rehearse() == (0, ["right", "doubtful", *program.SECTIONS])


def test_sections_are_chosen_and_checks_come_first_all_the_same(
    rehearse: Callable[..., tuple[int, list[str]]],
) -> None:
    assert rehearse("--sections", "models") == (0, ["right", "doubtful", "models"])
    everything = program.list_jobs(smoke(), program.SECTIONS, program.all_listings(tests=True))
    assert list(dict.fromkeys(section for section, _, _ in everything)) == ["checks", *program.SECTIONS]


def test_a_form_that_fails_does_not_end_the_run() -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("no kernel\nand more")

    assert program.measured("kernels", fail) == {"error": "RuntimeError: no kernel"}
    assert program.measured("checks", fail) == {"error": "RuntimeError: no kernel", "passed": False}


def test_tables_are_rendered_from_what_was_measured(tmp_path: Path) -> None:
    for render in (tables.attentions, tables.models, tables.training):
        assert render(folder=tmp_path) == tables.NONE
    store = Store(file_name("NVIDIA H200"), {}, fingerprint="one", fresh=True, folder=tmp_path)
    times = {"ms": 0.5, "ms_p10": 0.4, "ms_p90": 0.6, "ms_p99": 0.7, "calls": 20, "timed": "graph"}
    store.put("ceilings", "copy", {"unit": "B/s", "rate": 4e12, **times})
    core = {"what": "lsa", "model": "twins_svt-s_fpn", "stage": 1, "batch": 16, "direction": "forward"}
    work = {"bytes": 1e9, "flops": 1e9, "exponentials": 1e6}
    store.put("kernels", "a", {**core, **work, "form": "ours", **times})
    store.put("kernels", "b", {**core, **work, "form": "mmseg eager", **times, "ms": 4.0})
    store.put("kernels", "c", {"error": "RuntimeError: none"})
    facts = {"model": "twins_svt-s_fpn", "batch": 1, "form": "ours", "images_per_second": 2000.0, "peak_bytes": 2**30}
    store.put("models", "d", {**facts, **times})
    attentions, models = tables.attentions(folder=tmp_path), tables.models(folder=tmp_path)
    assert "| lsa | twins_svt-s_fpn | 1 | 16 | forward | 500.0 | 50 % |  |  | 8.0 |" in attentions
    assert "| `twins_svt-s_fpn` | 1 | ours | 0.500 | 0.600 | 0.700 | 2000 | 1024 | graph |" in models
    store.put("checks", "e", {"passed": False})
    assert tables.models(folder=tmp_path) == tables.NONE


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main([]) == 4
    assert "--smoke" in capsys.readouterr().err


def test_a_test_that_hangs_is_a_red_check() -> None:
    row = checks.run_tests("tests/x.py::test_x", limit_s=0.01)
    assert row == {"passed": False, "said": "took more than 0.01 s"}


def test_checks_find_the_tests_and_a_wrong_kernel() -> None:
    found = checks.gpu_tests()
    assert any(test.endswith("test_on_gpu.py::test_a_cuda_graph_replays_it") for test in found)
    core = cores(replace(smoke(), batches=(1,)))[0]
    assert checks.check_core(core, smoke())["passed"]
    row = checks.check_core(core, smoke(), ours=lambda *x, num_heads: lsa_reference(*x, num_heads=num_heads) * 1.001)
    assert not row["passed"] and row["errors"][0] == pytest.approx(1e-3, rel=0.01)
