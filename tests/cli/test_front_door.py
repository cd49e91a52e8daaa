"""The public names; and every default stands once, in the request that Python and flags fill."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, Twins

import twins_trt
import twins_trt.cli as cli
from twins_trt.cli.parsing import new_parser
from twins_trt.errors import UsageError
from twins_trt.evaluation import EvalResult
from twins_trt.runtime import open_bundle
from twins_trt.verbs.calibrate import CalibrateRequest, ModelGraph, resolve_calibration
from twins_trt.verbs.evaluate import Evaluation
from twins_trt.verbs.export import ExportRequest, resolve_export
from twins_trt.verbs.flags import FlagTable
from twins_trt.verbs.gate import GateRequest
from twins_trt.verbs.profile import ProfileRequest

VERBS = ("build", "calibrate", "compile_engine", "evaluate", "gate", "profile")
EVERY = ("--json", "--verbose", "-v", "--help", "-h", "--dry-run")
SOURCES = sorted(Path(cli.__file__).parent.glob("*.py"))


def tables() -> dict[str, FlagTable[Any]]:
    """The table of every command that has one."""
    modules = {name: cli.command_module(name) for name in cli.COMMANDS}
    return {name: module.FLAGS for name, module in modules.items() if getattr(module, "FLAGS", None) is not None}


TABLES = tables()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_command_line_sets_no_default(source: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        keywords = {keyword.arg for keyword in call.keywords}
        assert called != "set_defaults" and not (called == "add_argument" and keywords & {"default", None}), call.lineno


def test_every_command_with_options_has_a_table() -> None:
    assert set(cli.COMMANDS) - set(TABLES) == {"models"}
    parser = new_parser("twins-trt", summary="", example="")
    cli.command_module("models").configure(parser)
    assert {option for action in parser._actions for option in action.option_strings} <= set(EVERY)


@pytest.mark.parametrize("name", TABLES)
def test_every_default_stands_in_the_one_module_of_its_verb(name: str) -> None:
    table = TABLES[name]
    home = f"twins_trt.verbs.{'evaluate' if name == 'eval' else name.replace('-', '_')}"
    assert table.request.__module__ == home
    assert table.defaults is None or type(table.defaults).__module__ == home
    assert {flag.field for flag in table.flags} <= {field.name for field in dataclasses.fields(table.request)}
    parser = new_parser("twins-trt", summary="", example="")
    cli.command_module(name).configure(parser)
    ours = [action for action in parser._actions if not set(action.option_strings) & set(EVERY)]
    assert all(action.default in (None, argparse.SUPPRESS) for action in ours)
    for flag in table.flags:
        if "default" in flag.help and table.default_of(flag.field) is not None:
            assert "{default}" in flag.help, f"{flag.option} says a default that nobody keeps"


@pytest.mark.parametrize("name", TABLES)
def test_help_says_the_defaults_that_hold(twins: Twins, name: str) -> None:
    shown = " ".join(twins(name, "-h").out.split())
    for flag in TABLES[name].flags:
        assert " ".join(TABLES[name].help_of(flag).split()) in shown and "{default}" not in shown


@pytest.mark.parametrize("name", TABLES)
def test_the_example_is_a_request_and_its_words_are_the_same_request(name: str) -> None:
    """For the lines in the help: the words of a request give the same request again."""
    table, command = TABLES[name], cli.command_module(name)
    text = f"  {command.EXAMPLE}".replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith(f"  twins-trt {name} ")]
    assert lines
    for line in lines:
        parser = new_parser("twins-trt", summary="", example="")
        command.configure(parser)
        request = table.read(parser.parse_args(shlex.split(line)[2:]))
        again = parser.parse_args([*table.words(request), *_not_of_the_table(table, line)])
        assert table.read(again) == request


def _not_of_the_table(table: FlagTable[Any], line: str) -> list[str]:
    """`--compare A B` and `--resume DIR`, which are no flags of a table."""
    found = re.search(r"--(compare \S+ \S+|resume \S+)", line)
    return shlex.split(found[0]) if found else []


def test_public_names_are_few_and_load_nothing_heavy() -> None:
    names = set(twins_trt.__all__)
    assert {*VERBS, "open_bundle", "Segmenter", "build_model"} <= names and len(names) <= 17
    verbs = ", ".join(path.stem for path in Path(twins_trt.__file__).parent.glob("verbs/[!_]*.py"))
    script = (
        f"import sys; from twins_trt import {', '.join(VERBS)}, open_bundle; from twins_trt.verbs import {verbs};"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'triton', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_of_several_needs_no_list() -> None:
    request = ProfileRequest(bundles="x.bundle", onnx=Path("y.onnx"), batches="1,2")  # type: ignore[arg-type]
    assert (request.bundles, request.onnx, request.batches) == (("x.bundle",), ("y.onnx",), (1, 2))


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_asks_for_fields_of_its_request(name: str) -> None:
    """Every parameter is a field of the request, or `more`, `progress` or `record`; its default is None or True."""
    verb = getattr(twins_trt, name)
    module = importlib.import_module(f"twins_trt.verbs.{name.removesuffix('_engine')}")
    fields = {field.name for field in dataclasses.fields(module.FLAGS.request)}
    parameters = inspect.signature(verb).parameters
    assert set(parameters) - fields <= {"more", "progress", "record"}
    assert len(parameters) <= 17
    said = {each.default for each in parameters.values() if each.default is not inspect.Parameter.empty}
    assert said <= {None, True}
    assert inspect.Parameter.VAR_KEYWORD not in {each.kind for each in parameters.values()}


def test_a_bundle_and_a_model_give_one_kind_of_result(cpu_bundle: Path, checkpoint: Path, scenes: Path) -> None:
    data, seen = f"folder:{scenes}", list[str]()
    ours = twins_trt.evaluate(cpu_bundle, data, threads=1, progress=lambda step, detail, share: seen.append(step))
    again = twins_trt.evaluate(open_bundle(cpu_bundle), data, threads=1)
    model = twins_trt.evaluate(checkpoint, data, device="cpu")
    assert ours.scores == again.scores and set(seen) == {"evaluate"}
    assert model.scores.miou == pytest.approx(ours.scores.miou, abs=0.05)
    assert (ours.engine, ours.device, ours.model, ours.resized) == ("onnxruntime", None, MODEL, 0)
    assert (model.engine, model.device, model.model, model.resized) == ("pytorch", "cpu", MODEL, None)
    for found in (ours, model):
        assert isinstance(found.result, EvalResult) and found.source.checkpoint == checkpoint.name
        assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_checkpoint_tells_its_model(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    calibration = resolve_calibration(CalibrateRequest(what=str(checkpoint), data=f"folder:{scenes}", split="val"))
    assert isinstance(calibration.graph, ModelGraph)
    assert (calibration.graph.model.name, calibration.graph.model.checkpoint) == (MODEL, str(checkpoint))
    export = resolve_export(ExportRequest(str(checkpoint), str(tmp_path / "graph.onnx")))
    assert (export.model.name, export.model.weights) == (MODEL, checkpoint)


def test_a_gate_returns_its_verdict_and_writes_it_where_it_may(
    cpu_bundle: Path, checkpoint: Path, scenes: Path, tmp_path: Path
) -> None:
    before = (cpu_bundle / "manifest.json").read_bytes()
    asked: dict[str, Any] = {"checkpoint": checkpoint, "threads": 1, "record": False, "accept_reference": True}
    result = twins_trt.gate(cpu_bundle, f"folder:{scenes}", pictures=tmp_path / "worst", **asked)
    assert not result.passed and "3 images are too few to judge by" in result.reasons[0]
    assert (cpu_bundle / "manifest.json").read_bytes() == before
    assert len(list((tmp_path / "worst").iterdir())) == 3
    few = twins_trt.gate(open_bundle(cpu_bundle), f"folder:{scenes}", more=GateRequest(min_images=3), **asked)
    assert few.passed and few.thresholds.min_images == 3


def test_a_profile_says_the_command_line_that_makes_it_again(cpu_bundle: Path, tmp_path: Path) -> None:
    quick = ProfileRequest(calls=1, warm_up=0, batches=(), layers=False, power="none")
    out = tmp_path / "profile.json"
    found = twins_trt.profile(open_bundle(cpu_bundle), rounds=1, threads=1, out=out, more=quick)
    assert json.loads(out.read_text())["command"] == found.command
    words = "--rounds 1 --calls 1 --warm-up 0 --threads 1 --batches none --no-layers --power none"
    assert found.command == f"twins-trt profile {cpu_bundle} {words}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: twins_trt.evaluate(MODEL, "folder:x", limit=0), "limit is 0"),
        (lambda: twins_trt.evaluate(MODEL, "folder:x", test_scale="1"), "test_scale: '1' is not a test scale"),
        (lambda: twins_trt.profile(), r'give onnx="FILE" or torch="MODEL"'),
        (lambda: twins_trt.profile(more=ProfileRequest(rounds=0)), "rounds is 0"),
        (lambda: twins_trt.profile(seeded=True), 'checkpoint and seeded are the PyTorch.*\n.*torch="MODEL"'),
        (lambda: twins_trt.calibrate(MODEL, "folder:x", seeded=True, images=-1), "images is -1"),
        (
            lambda: twins_trt.calibrate(MODEL, "folder:x", images=1, more=CalibrateRequest(images=2)),
            "images is given twice",
        ),
        (lambda: twins_trt.calibrate(MODEL, "folder:x", size="64:64"), "size: '64:64' is not a size"),
        (lambda: twins_trt.gate("x.bundle", "folder:x", max_drop="a"), "max_drop: 'a' is no number"),  # type: ignore[arg-type]
    ],
)
def test_errors_speak_python_to_python(call: Any, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        call()
    assert re.search(said, str(raised.value)), str(raised.value)
    assert not re.search(r"(^|\s)--\w", str(raised.value))
