"""Errors name parameters to a caller in Python and flags to a command line."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

import twins_trt.verbs
from twins_trt.spelling import speaking, spelled
from twins_trt.verbs import build, calibrate, convert, export_to, predict, profile
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.flags import Flag, FlagTable

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ("twins_trt", "builders", "calib", "kernels")
# The command line itself, the tables of its flags, and a program of its own.
NOT_LIBRARY = ("twins_trt/cli/", "twins_trt/verbs/", "twins_trt/demo/train.py")

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# What a whole command begins with; `{...rebuild}` is the command of a manifest.
COMMAND = re.compile(
    r"twins-trt [a-z]|\bpip (un)?install|\bapt(-get)? install|\bpython3? -m|\btorchrun\b|\bdocker\b|rebuild\}"
)
CLAUSE = re.compile(r"; |, | \(|\bor\b ")  # a command does not reach beyond its clause

# By file and option. Not of an error, or not of a verb.
OF_OTHER_PROGRAMS = {
    ("twins_trt/diagnosis/causes.py", "--runtime"): "docker's; the sentence names docker where it is put together",
    ("twins_trt/diagnosis/causes.py", "--gpus"): "likewise",
}
# By file and field. The words are those of a record in Python, which no command line fills.
OF_PYTHON = {
    ("twins_trt/runtime/manifest.py", "num_classes"): "a key of manifest.json, whose errors name it",
    ("twins_trt/data/preprocessing.py", "test_scale"): "Preprocessing's own field, beside mean, std and keep_ratio",
    ("twins_trt/inference/modes.py", "crop"): "InferenceMode's own field; --crop is another, of train",
}


def parse(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    return tree


def library() -> Iterator[tuple[str, ast.Module]]:
    for room in LIBRARY:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(NOT_LIBRARY):
                yield name, parse(path)


def text_of(node: ast.AST) -> str:
    """The text of a constant, or of an f-string with its expressions in braces."""
    if isinstance(node, ast.JoinedStr):
        parts = [
            text_of(each) if isinstance(each, ast.Constant) else f"{{{ast.unparse(each)}}}" for each in node.values
        ]
        return "".join(parts)
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Every text of the code, without its docstrings."""
    for node in ast.walk(tree):
        parent = getattr(node, "parent", None)
        docstring = isinstance(parent, ast.Expr)
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and not docstring and not isinstance(parent, ast.JoinedStr):
            yield node, text_of(node)


def is_word_of_a_list(node: ast.AST, text: str) -> bool:
    """Whether the text is one option alone, as among the words of a command."""
    among = (ast.Dict, ast.List, ast.Tuple, ast.Subscript)
    return OPTION.fullmatch(text) is not None and isinstance(getattr(node, "parent", None), among)


def bare_options(text: str) -> list[str]:
    """Options that a text names outside of a whole command."""
    if text.startswith("#!"):  # a script
        return []
    found, start = [], 0
    for match in OPTION.finditer(text):
        breaks = [each.end() for each in CLAUSE.finditer(text, 0, match.start())]
        start = max([0, *breaks])
        if not COMMAND.search(text, start, match.start()):
            found.append(match[0])
    return found


def call_of(node: ast.AST) -> ast.AST | None:
    """The innermost call with the node among its arguments."""
    above = getattr(node, "parent", None)
    while above is not None and not isinstance(above, (ast.Call, ast.stmt)):
        above = getattr(above, "parent", None)
    return above


def is_error(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "missing"))


def tables() -> Iterator[FlagTable[Any]]:
    for each in pkgutil.iter_modules(twins_trt.verbs.__path__):
        module = importlib.import_module(f"twins_trt.verbs.{each.name}")
        if hasattr(module, "FLAGS"):
            yield module.FLAGS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("build it with --outputs logits", ["--outputs"]),
        ("twins-trt doctor says more; --engine onnxruntime needs none", ["--engine"]),
        ("twins-trt train --resume DIR, or choose another --out", ["--out"]),
        ("export the graph again, or upgrade: pip install --upgrade onnxruntime", []),
        ("{manifest.rebuild} --flavour {flavour}", []),
        ("a long-winded half--hearted -- dash", []),
    ],
)
def test_what_counts_as_an_option_outside_of_a_command(text: str, found: list[str]) -> None:
    assert bare_options(text) == found


def test_the_library_names_options_through_spelled_alone() -> None:
    found = []
    for name, tree in library():
        for node, text in texts(tree):
            if is_word_of_a_list(node, text):
                continue
            options = [option for option in bare_options(text) if (name, option) not in OF_OTHER_PROGRAMS]
            found += [f"{name}:{node.lineno}: {option}" for option in options]
    assert not found, "\n".join(found)


def test_errors_name_fields_through_spelled_alone() -> None:
    """Of names that are not plain words, such as `num_classes`, and of any with a value, such as `padding='parity'`."""
    fields = sorted({flag.field for table in tables() for flag in table.flags})
    assert {"num_classes", "calibrate_on", "padding", "overwrite"} < set(fields)
    named = re.compile(rf"(?<![\w.])({'|'.join(fields)})(?!\w)(=?)")
    found = []
    for name, tree in library():
        for node, text in texts(tree):
            if not is_error(call_of(node)):
                continue
            for match in named.finditer(re.sub(r"\{[^}]*\}", "", text)):
                if ("_" in match[1] or match[2]) and (name, match[1]) not in OF_PYTHON:
                    found.append(f"{name}:{node.lineno}: {match[0]}")
    assert not found, "\n".join(found)


def test_python_is_told_parameters() -> None:
    assert spelled("checkpoint") == "checkpoint"
    assert spelled("checkpoint", "a b.pth") == 'checkpoint="a b.pth"'
    assert spelled("overwrite", True) == "overwrite=True"
    assert spelled("num_classes", 4) == "num_classes=4"


@pytest.mark.parametrize(
    ("table", "name", "value", "said"),
    [
        (build.FLAGS, "calibrate_on", "KIND:PATH", "--calib-data KIND:PATH"),
        (build.FLAGS, "checkpoint", "a b.pth", "--checkpoint 'a b.pth'"),
        (build.FLAGS, "model", "NAME", "MODEL"),
        (build.FLAGS, "no_gate", True, "--no-gate"),
        (predict.FLAGS, "masks", False, "--no-mask"),
        (profile.FLAGS, "engines", None, "--engine"),
        # Not of the verb, but of build, which makes what it runs.
        (predict.FLAGS, "targets", "cpu", "--target cpu"),
        (predict.FLAGS, "outputs", "logits", "--outputs logits"),
        (predict.FLAGS, "with_weights", True, "--with-weights"),
        (calibrate.FLAGS, "calibrate_on", "KIND:PATH", "--calib-data KIND:PATH"),
        (calibrate.FLAGS, "gate_on", None, "--gate-data"),
        # The verb's own comes first: calibrate's images are not build's.
        (calibrate.FLAGS, "observers", "mse", "--observer mse"),
        (export_to.FLAGS, "engine", "sm_87", "--engine sm_87"),
        # Of neither.
        (convert.FLAGS, "queue_delay", 5, "--queue-delay 5"),
        (FlagTable(object, ()), "url", None, "--url"),
        (FlagTable(object, (Flag("--to", "out", ""),)), "out", "DIR", "--to DIR"),
    ],
)
def test_a_command_line_is_told_flags(table: FlagTable[Any], name: str, value: object, said: str) -> None:
    with on_command_line(table):
        assert spelled(name, value) == said
        with speaking(None):
            assert "--" not in spelled(name, value)
        assert spelled(name, value) == said
    assert "--" not in spelled(name, value)


def test_a_thread_speaks_as_the_context_it_runs_in() -> None:
    said: list[str] = []
    with on_command_line(build.FLAGS):
        here = copy_context()
    for run in (here.run, lambda work: work()):
        thread = threading.Thread(target=run, args=(lambda: said.append(spelled("targets")),))
        thread.start()
        thread.join()
    assert said == ["--target", "targets"]


def test_it_imports_no_flags_until_a_command_line_asks() -> None:
    code = "import sys, twins_trt.spelling as s; s.spelled('out', 'DIR'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "twins_trt.spelling" in loaded
    assert not loaded & {"argparse", "numpy", "twins_trt.verbs.flags", "twins_trt.verbs.build"}
