"""One meaning a word: the words that CONTRIBUTING.md retires stay away."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("twins_trt", "kernels", "builders", "calib", "benchmarks", "examples", "tests")

NAMES = {
    # jobs, engines and bytes of engines: none of them is a plan
    r"(Build|Train|Gate|Export|Calibration|Evaluation|Predict|Profile)?Plan": "PrecisionPlan, ...Job, LoadedEngine",
    r"plan_(build|training|gate|export|calibration|evaluation|prediction|profile|handoff|files)": "resolve_...",
    r"verdicts?|Verdict|_verdict": "GateResult, GateStatus, PlanScore",
    r"(Engine|Calibration|Profile)?Settings": "...Options",
    r"CollectOptions": "CollectRun",
    r"Offer|offer": "Compiler",
    r"Port": "TensorInfo",
    r"Lane|lanes?": "ExecutionSlot",
    r"Maker?s?|Made|Bench": "BuiltGraph, BuildContext",
    r"Walk": "EvaluationOptions",
    r"doubts": "find_warnings",
    r"build_apart": "build_in_thread",
    r"Int8Job": "Int8Options",
    r"CalibrationStep": "Progress",
    r"least|usual": "min, opt",
    r"RESTS?": "float_precision",
}
"""Identifiers that are gone, whole, and what takes their place."""

WITHOUT_PLAN = (
    "builders/engine",
    "builders/export",
    "calib",
    "twins_trt/runtime",
    "twins_trt/inference",
    "twins_trt/evaluation",
    "twins_trt/profiling",
    "twins_trt/handoff",
    "kernels",
)
"""Rooms that know no precision plan, so that nothing in them may be called one."""

SPELLED_WITH_Z = re.compile(r"\w*(?:uantis|ormalis|erialis|ptimis|nitialis|egularis|ynchronis|ecognis|inimis)[a-z]\w*")

THIS = Path(__file__).name


def files(*tops: str, suffix: str = ".py") -> list[Path]:
    found = [file for top in tops for file in sorted((ROOT / top).rglob(f"*{suffix}"))]
    return [file for file in found if file.name != THIS]


def names(file: Path) -> Iterator[tuple[str, int]]:
    """Every identifier of a module, with its line; words of strings and comments are none."""
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(io.StringIO(source.read()).readline):
            if token.type == tokenize.NAME:
                yield token.string, token.start[0]


@pytest.mark.parametrize("retired", NAMES)
def test_a_retired_name_stays_away(retired: str) -> None:
    pattern = re.compile(retired)
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files(*CODE)
        for name, line in names(file)
        if pattern.fullmatch(name)
    ]
    assert found == [], f"the word is now: {NAMES[retired]}"


@pytest.mark.parametrize("room", WITHOUT_PLAN)
def test_where_there_is_no_precision_plan_nothing_is_called_one(room: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files(room)
        for name, line in names(file)
        if re.search(r"(?<![a-z])plans?(?![a-z])", name.lower())
    ]
    assert found == []


def test_progress_has_one_shape() -> None:
    """`Progress` is defined in one place, and no other alias of a callback says where a job is."""
    defined = [
        f"{file.relative_to(ROOT)}"
        for file in files(*CODE)
        if re.search(r"^(Progress|Report) = ", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert defined == ["twins_trt/progress.py"]


def test_one_spelling_of_quantize_and_its_like() -> None:
    texts = [*files(*CODE), *files("docs", suffix=".md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = []
    for file in texts:
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if "| quantize, normalize" in text:
                continue  # the table itself
            found += [f"{file.relative_to(ROOT)}:{line} {word[0]}" for word in SPELLED_WITH_Z.finditer(text)]
    assert found == []
