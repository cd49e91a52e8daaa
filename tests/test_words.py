"""One meaning a word: the words that CONTRIBUTING.md retires stay away."""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from words import retired_words

ROOT = Path(__file__).parents[1]
CODE = ("twins_trt", "kernels", "builders", "calib", "benchmarks", "examples", "tests")

NAMES = {
    # jobs, engines and bytes of engines: none of them is a plan
    r"(Build|Train|Gate|Export|Calibration|Evaluation|Predict|Profile)?Plan": "PrecisionPlan, ...Job, LoadedEngine",
    r"plan_(build|training|gate|export|calibration|evaluation|prediction|profile|handoff|files)": "resolve_...",
    r"verdicts?|Verdict|_verdict": "GateResult, GateStatus, PlanScore",
    r"\w*Settings": "...Options",
    r"CollectOptions": "CollectRun",
    r"Offer|offer": "Compiler",
    r"Port": "TensorInfo",
    r"Range": "DynamicDim",
    r"Report": "Progress",
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
"""Identifiers that are gone, whole, and what takes their place. ONNX's operator `Range` is a string, no identifier."""

NAMES_IN = {
    r"forms?": ("target", ("builders", "twins_trt/verbs", "twins_trt/cli")),
    r"_?rest": ("float_precision", ("builders",)),
    r"_?ports?": ("tensors", ("builders", "twins_trt/cli", "twins_trt/verbs", "tests/builders", "tests/calib")),
    r"_?most": ("max", ("builders", "twins_trt/runtime", "twins_trt/handoff", "twins_trt/inference")),
    r"_?settings": (
        "options",
        (
            "builders",
            "kernels",
            "twins_trt/runtime",
            "twins_trt/handoff",
            "twins_trt/inference",
            "twins_trt/evaluation",
            "twins_trt/training",
            "twins_trt/verbs",
        ),
    ),
}
"""Identifiers that are gone from some rooms and mean something else in others, and what takes their place."""

KEPT = {
    "Manifest": "of a bundle; what a graph takes and gives is a GraphInterface",
    "Progress": "the one in twins_trt/progress.py, see `test_progress_has_one_shape`",
    "BuiltEngine.plan": "an attribute, see WITHOUT_PLAN",
}
"""Words that the table retires and that no pattern above finds, with the reason."""

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
    "twins_trt/diagnosis",
    "twins_trt/data",
    *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "twins_trt").glob("*.py"))),  # the ground
)
"""Rooms that know no precision plan, so that nothing in them may be called one."""

SPELLED_WITH_Z = re.compile(r"\w*(?:uantis|ormalis|erialis|ptimis|nitialis|egularis|ynchronis|ecognis|inimis)[a-z]\w*")

KEYS_WITH_S = {"normalised_inside"}
"""Keys of files that clients read already."""

THIS = Path(__file__).name


def files(*tops: str, suffix: str = ".py") -> list[Path]:
    """Files below the tops; a top may be a file itself."""
    found = [
        file
        for top in tops
        for file in ([ROOT / top] if (ROOT / top).is_file() else sorted((ROOT / top).rglob(f"*{suffix}")))
    ]
    return [file for file in found if file.name != THIS]


def names(file: Path) -> Iterator[tuple[str, int]]:
    """Every identifier of a module, with its line; words of strings and comments are none."""
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(io.StringIO(source.read()).readline):
            if token.type == tokenize.NAME:
                yield token.string, token.start[0]


def callbacks() -> list[tuple[str, str, str]]:
    """Name, file and type of every alias of a callable in the code, tests apart."""
    alias = re.compile(r"^ *(\w+)(?:: TypeAlias)? = (Callable\[.*)$", re.MULTILINE)
    return [
        (match[1], str(file.relative_to(ROOT)), match[2])
        for file in files(*(top for top in CODE if top != "tests"))
        for match in alias.finditer(file.read_text(encoding="utf-8"))
    ]


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


@pytest.mark.parametrize("retired", NAMES_IN)
def test_a_name_that_is_retired_in_some_rooms_stays_away_there(retired: str) -> None:
    pattern = re.compile(retired)
    now, rooms = NAMES_IN[retired]
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files(*rooms)
        for name, line in names(file)
        if pattern.fullmatch(name)
    ]
    assert found == [], f"the word is now: {now}"


def test_every_retired_word_of_the_table_is_looked_for() -> None:
    words = {word: word.removesuffix("()").replace("...", "Some") for word in retired_words()}
    assert {"Lane", "forms", "...Settings", "verdict()"} <= set(words)
    patterns = [re.compile(pattern) for pattern in (*NAMES, *NAMES_IN)]
    missed = {word for word, name in words.items() if not any(pattern.fullmatch(name) for pattern in patterns)}
    assert missed == set(KEPT)


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
    defined = [(name, file) for name, file, _ in callbacks() if re.search(r"Progress|Report|Observe", name)]
    assert defined == [("Progress", "twins_trt/progress.py")]


def test_a_name_of_a_callback_has_one_meaning() -> None:
    found = callbacks()
    assert {"Progress", "OnStage", "OnImage", "OnTrainStep"} <= {name for name, _, _ in found}
    for said in (0, 2):  # one name for one signature
        assert [key for key, count in Counter(each[said] for each in found).items() if count > 1] == []


def test_one_spelling_of_quantize_and_its_like() -> None:
    texts = [*files(*CODE), *files("docs", suffix=".md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = []
    for file in texts:
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if "| quantize, normalize" in text:
                continue  # the table itself
            words = (match[0] for match in SPELLED_WITH_Z.finditer(text))
            found += [f"{file.relative_to(ROOT)}:{line} {word}" for word in words if word not in KEYS_WITH_S]
    assert found == []
