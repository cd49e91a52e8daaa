"""Every line lives in a room, and rooms import each other as the table in CONTRIBUTING.md says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("kernels", "builders", "calib")  # lie at the top, import below twins_trt
GROUND = "the ground"
MOST_LINES = 400
MOST_TEST_LINES = 600
LONGER_TESTS: dict[str, str] = {}
"""Tests that are longer, with the reason."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    named = parts if parts[0] == "twins_trt" else ("twins_trt", *parts)
    return ".".join(named[:-1] if named[-1] == "__init__" else named)


MODULES = {module_name(file): file for top in ("twins_trt", *TOP) for file in sorted((ROOT / top).rglob("*.py"))}


def room_of(module: str) -> str:
    """`builders/gate` of `twins_trt.builders.gate.judge`, `models` of `twins_trt.models.zoo`."""
    parts = module.split(".")[1:]
    if parts and parts[0] == "builders":
        return "/".join(parts[:2])
    is_package = MODULES[module].name == "__init__.py"
    return parts[0] if parts and (len(parts) > 1 or is_package) else GROUND


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """Module, line and whether it is loaded with this one, of every import from the tree."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else str(node.module) for name in whole]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_names":
            modules = node.args[1]
            assert isinstance(modules, ast.Dict), f"{module}:{node.lineno} has no literal dict of its modules"
            found = [ast.literal_eval(key) for key in modules.keys if key is not None]  # loaded at first use
        else:
            continue
        for name in found:
            if name in MODULES:
                yield name, node.lineno, id(node) in at_once


def table() -> dict[str, tuple[set[str], set[str]]]:
    """By room: what it may import, and of that what only in functions."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w/]+)` \| [^|]+ \| ([^|]*)\|$", text.split("## Rooms")[1].split("## Words")[0], re.MULTILINE
    )
    rooms = {}
    for name, cell in rows:
        later = set(re.findall(r"\(`([\w/]+)`\)", cell))
        allowed = set(re.findall(r"`([\w/]+)`", cell))
        rooms[name] = (allowed, later)
    return rooms


def test_every_room_is_in_the_table_and_every_row_is_a_room() -> None:
    there = {room_of(module) for module in MODULES} - {GROUND, "builders"}
    assert there == set(table())


@pytest.mark.parametrize("room", sorted(table()))
def test_a_room_imports_what_the_table_says_and_nothing_else(room: str) -> None:
    allowed, later = table()[room]
    wrong, used = [], set()
    for module in (name for name in MODULES if room_of(name) == room):
        for name, line, at_once in imports(module):
            other = room_of(name)
            used.add(other)
            if other in (room, GROUND):
                continue
            if other not in allowed or (at_once and other in later):
                wrong.append(f"{module}:{line} imports {name}")
    assert wrong == []
    assert allowed <= used, f"the table lets {room} import {sorted(allowed - used)}, which it does not"


def test_rooms_that_are_loaded_together_form_no_circle() -> None:
    below = {room: allowed - later for room, (allowed, later) in table().items()}
    done: set[str] = set()
    while open_rooms := {room for room in below if room not in done}:
        ready = {room for room in open_rooms if below[room] <= done}
        assert ready, f"a circle among {sorted(open_rooms)}"
        done |= ready


def test_verbs_load_light_modules_alone() -> None:
    """Of other packages numpy alone: a parser is made before anything is known to be needed."""
    script = (
        "import importlib, pkgutil, sys\n"
        "before = set(sys.modules)\n"
        "import twins_trt.verbs as verbs\n"
        "for module in pkgutil.walk_packages(verbs.__path__, 'twins_trt.verbs.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = set(ran.stdout.split()) - sys.stdlib_module_names
    assert packages == {"numpy", "twins_trt"}


def test_the_ground_imports_no_room() -> None:
    faces = ("twins_trt", "twins_trt.__main__")  # what hands names on, and the program
    for module in (name for name in MODULES if room_of(name) == GROUND and name not in faces):
        assert [name for name, _, _ in imports(module) if room_of(name) != GROUND] == [], module


def test_builders_holds_folders_alone() -> None:
    assert [file.name for file in (ROOT / "builders").iterdir() if file.is_file()] == ["__init__.py"]


def test_no_file_is_longer_than_one_reading() -> None:
    long = []
    for top in ("twins_trt", *TOP, "benchmarks", "examples"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if len(file.read_text(encoding="utf-8").splitlines()) > MOST_LINES:
                long.append(str(file.relative_to(ROOT)))
    assert long == []
    tests = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("*.py")
        if len(file.read_text(encoding="utf-8").splitlines()) > MOST_TEST_LINES
    }
    assert tests == set(LONGER_TESTS)
