"""The tests marked gpu as checks: what their failures cast doubt on, and what happens where packages are missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import checks, gpu_tests, sanitizer
from benchmarks.gpu.jobs import LIMIT
from benchmarks.gpu.runner import ROW_SECONDS
from benchmarks.gpu.store import ROOT, gpu_test_files
from benchmarks.gpu.workload import smoke
from twins_trt.kernels.crosscompile import all_cases
from twins_trt.kernels.postprocess import resize_argmax_reference

FILE = "tests/kernels/test_on_gpu.py"
AROUND = "tests/kernels/test_on_gpu_around.py"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """`says((1, output), ...)`: what pytest answers, one after another; gives the arguments that it gets."""

    def start(*answers: tuple[int, str]) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def pytest_(*words: str, limit_s: float) -> tuple[int, str]:
            asked.append(words)
            return answers[len(asked) - 1]

        monkeypatch.setattr(gpu_tests, "pytest", pytest_)
        return asked

    return start


@pytest.mark.parametrize(
    ("test", "parts"),
    [
        (f"{FILE}::test_the_same_bits[lsa-1x1-torch.float16]", ("lsa",)),
        (f"{FILE}::test_the_same_bits[gsa-1 key-torch.float16]", ("gsa",)),
        (f"{FILE}::test_the_same_bits[gsa-primes-torch.float32]", ("gsa float32",)),
        (f"{FILE}::test_the_same_bits[lsa-stage 1 of SVT-S-torch.bfloat16]", ("lsa bfloat16",)),
        (f"{FILE}::test_strides_do_not_matter[lsa]", ("lsa",)),
        (f"{FILE}::test_something_new", ("lsa", "gsa")),
        (f"{FILE}::test_tf32_on_request[lsa]", ("lsa tf32",)),
        (f"{AROUND}::test_masks_and_probabilities[size0-torch.channels_last-torch.float32]", ("postprocess",)),
        (f"{AROUND}::test_cells_and_pixels_make_the_same_mask[torch.float16]", ("postprocess",)),
        (f"{AROUND}::test_inputs_are_the_references_bit_for_bit[size0-torch.float16]", ("preprocess",)),
        (f"{AROUND}::test_graphs_are_given_up_and_made_again", ("torch engine",)),
        ("tests/elsewhere/test_new.py::test_new", gpu_tests.EVERYTHING),
    ],
)
def test_a_failed_test_casts_doubt_on_what_it_tests_alone(test: str, parts: Sequence[str]) -> None:
    assert gpu_tests.covered_by_test(test) == tuple(parts)


def test_the_beginnings_of_names_that_cover_are_those_of_tests() -> None:
    """A renamed test would cover more or less in silence."""
    for beginning in gpu_tests.COVERS:
        file, _, function = beginning.partition("::")
        if function:
            assert f"\ndef {function}" in (ROOT / file).read_text(encoding="utf-8"), beginning


def test_a_file_covers_what_any_of_its_tests_covers() -> None:
    for path in gpu_test_files():
        file = path.relative_to(ROOT).as_posix()
        covered = set(gpu_tests.covered_by_file(file))
        for beginning, parts in gpu_tests.COVERS.items():
            assert set(parts) <= covered or not beginning.startswith(file)
    assert {"lsa", "gsa", "lsa bfloat16"} <= set(gpu_tests.covered_by_file(FILE))


def test_red_tests_narrow_what_their_file_covers(says: Callable[..., Any]) -> None:
    failures = f"""
FAILED {FILE}::test_tf32_on_request[lsa] - assert 1e-05 < 0.0
FAILED {FILE}::test_kernels_agree[gsa-stage 1 of PCPVT-torch.float16] - AssertionError: 0.1 - 0.2
2 failed, 117 passed in 80.00s"""
    says((1, failures))
    row = gpu_tests.run_file(FILE)
    assert not row["passed"] and row["covers"] == ["gsa", "lsa tf32"]
    assert row["failed"][1] == f"{FILE}::test_kernels_agree[gsa-stage 1 of PCPVT-torch.float16]"
    assert row["said"] == "2 failed, 117 passed in 80.00s"


def test_a_file_that_is_not_run_to_its_end_is_red_as_a_whole(says: Callable[..., Any]) -> None:
    for code in (-11, 3):
        says((code, f"FAILED {FILE}::test_strides_do_not_matter[lsa] - no"))
        row = gpu_tests.run_file(FILE)
        assert not row["passed"] and row["covers"] == list(gpu_tests.covered_by_file(FILE))


def test_where_one_test_ruins_the_process_of_the_others_each_is_asked_alone(says: Callable[..., Any]) -> None:
    ruined = f"""CUDA error: an illegal memory access was encountered
FAILED {FILE}::test_first[lsa] - RuntimeError
FAILED {FILE}::test_second[gsa] - RuntimeError
2 failed, 1 passed in 1s"""
    asked = says((1, ruined), (1, f"FAILED {FILE}::test_first[lsa] - RuntimeError\n1 failed in 1s"), (0, "1 passed"))
    row = gpu_tests.run_file(FILE)
    assert [words[-1] for words in asked] == [FILE, f"{FILE}::test_first", f"{FILE}::test_second"]
    assert not row["passed"] and row["covers"] == ["lsa"]
    says((1, ruined), (0, "1 passed"), (0, "1 passed"))
    row = gpu_tests.run_file(FILE)
    assert row["passed"] and "alone, 0 of them fail" in row["said"]


def test_tests_run_side_by_side_where_xdist_is_there_and_need_no_plugin(
    says: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for there in (True, False):
        monkeypatch.setattr(gpu_tests, "find_spec", lambda name, there=there: there or name != "xdist" or None)
        asked = says((0, "3 passed, 1 skipped in 1s\nSKIPPED [1] tests/x.py:3: no CuPy\n3 passed, 1 skipped in 1s"))
        row = gpu_tests.run_file(FILE)
        assert ("-n" in asked[0]) is there and not any("timeout" in word for word in asked[0])
        assert row["passed"] and row["said"].endswith("; no CuPy")  # what is absent is named


def test_a_file_of_which_no_test_was_run_is_neither_green_nor_red(says: Callable[..., Any]) -> None:
    says((5, "SKIPPED [1] tests/x.py:0: hypothesis is not installed\nno tests collected in 0.12s"))
    row = gpu_tests.run_file(FILE)
    assert "passed" not in row and "hypothesis is not installed" in row["error"]
    says((0, "SKIPPED [9] tests/x.py:0: no CUDA GPU\n9 skipped in 0.12s"))
    assert "passed" not in gpu_tests.run_file(FILE)


def test_without_pytest_the_tests_are_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None)
    row = gpu_tests.run_file(FILE)
    assert not row["passed"] and "--no-tests" in row["said"]


def test_where_time_runs_out_what_failed_before_counts(says: Callable[..., Any]) -> None:
    hung = "\nit took more than 60 s"
    for failed in (f"{FILE}::test_a[lsa-1 key] FAILED [ 12%]", f"[gw0] [ 12%] FAILED {FILE}::test_a[lsa-1 key] "):
        says((gpu_tests.TIMED_OUT, failed + hung))
        row = gpu_tests.run_file(FILE)
        assert not row["passed"] and row["failed"] == [f"{FILE}::test_a[lsa-1 key]"] and row["timed_out"]
    says((gpu_tests.TIMED_OUT, f"{FILE}::test_a[lsa-1 key] PASSED [ 12%]{hung}"))
    row = gpu_tests.run_file(FILE)
    assert "passed" not in row and row["error"].endswith("1 tests of " + f"{FILE} passed, then it took more than 60 s")


def test_tests_are_ended_before_their_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def pytest_(*words: str, limit_s: float) -> tuple[int, str]:
        limits.append(limit_s)
        return 0, "1 passed"

    monkeypatch.setattr(gpu_tests, "pytest", pytest_)
    gpu_tests.run_file(FILE)
    token = LIMIT.set(60.0)
    gpu_tests.run_file(FILE)
    LIMIT.reset(token)
    assert limits == [gpu_tests.TEST_SECONDS, 60.0 - gpu_tests.TO_TELL_SECONDS]
    assert gpu_tests.TEST_SECONDS < ROW_SECONDS


def test_a_test_that_hangs_is_ended() -> None:
    row = gpu_tests.run_file(FILE, limit_s=0.01)
    assert row["timed_out"] and "it took more than 0 s" in row["error"]


def test_every_gpu_test_is_found_on_a_cpu() -> None:
    for path in gpu_test_files():
        row = gpu_tests.run_file(path.relative_to(ROOT).as_posix(), collect_only=True)
        assert row.get("passed", "skipped"), row
    marked_parameter = ROOT / "tests/simulators/test_capture_rules.py"
    assert {ROOT / FILE, ROOT / AROUND, marked_parameter} <= set(gpu_test_files())


def test_compute_sanitizer_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path: None)
    with pytest.raises(FileNotFoundError, match="compute-sanitizer is neither on PATH"):
        sanitizer.run_tool("memcheck", rehearse=False)


def test_compute_sanitizer_gets_tests_of_small_shapes() -> None:
    job = next(iter(sanitizer.jobs(smoke())))
    row = job.measure()
    assert row["passed"] and "deselected" in row["said"]


@pytest.mark.parametrize("tool", sanitizer.TOOLS)
@pytest.mark.parametrize(("said", "code", "passed"), [("7 passed", 0, True), ("7 skipped", 0, False), ("", 9, False)])
def test_compute_sanitizer_checks_our_kernels_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str, said: str, code: int, passed: bool
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\necho "{said}"\nexit {code}\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert sanitizer.run_tool(tool, rehearse=False)["passed"] is passed
    words = (tmp_path / "words").read_text(encoding="utf-8")
    names = re.findall(r"--kernel-name kns=(\S+)", words)
    for case in all_cases("sm_90"):
        assert any(name in case.kernel.rpartition(":")[2] for name in names), case.name
    assert ("--report-api-errors no" in words) == (tool == "memcheck")


@pytest.mark.parametrize("fault", ["cells", "probability"])
def test_a_wrong_mask_of_padded_logits_and_a_probability_that_is_no_number_are_red(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert checks.check_postprocess(smoke())["passed"]

    def wrong(logits: Tensor, size: tuple[int, int], *, probability: bool, **more: object) -> tuple[Tensor, Any]:
        mask, best = resize_argmax_reference(logits, size, probability=probability)
        padded = logits.stride(1) == 1 and logits.stride(3) > logits.shape[1]
        if fault == "cells" and padded and not probability:
            mask[:, -1, -1] = (mask[:, -1, -1] + 1) % logits.shape[1]  # one corner of what a kernel of its own makes
        if fault == "probability" and best is not None:
            best[0, 0, 0] = torch.nan
        return mask, best

    monkeypatch.setattr("twins_trt.kernels.postprocess.resize_argmax", wrong)
    assert not checks.check_postprocess(smoke())["passed"]
