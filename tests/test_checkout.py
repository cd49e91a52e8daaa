"""A checkout that nobody installed: everything imports, and the tests run with what the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import absent_packages
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "builders", "calib")
PACKAGES = sysconfig.get_path("purelib")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def uninstalled() -> Run:
    """`uninstalled("-c", code)`: Python with the installed packages, but without an installation's import hook."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": PACKAGES}
        return subprocess.run(
            [sys.executable, "-S", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_the_checkout(uninstalled: Run, room: str) -> None:
    done = uninstalled(
        "-c", f"import sys, twins_trt.{room} as room; print('_EditableFinder' in str(sys.meta_path), room.__file__)"
    )
    assert done.returncode == 0, done.stderr
    hooked, file = done.stdout.split()
    assert (hooked, Path(file)) == ("False", ROOT / room / "__init__.py")


def test_workers_and_the_command_line_import_them_too(uninstalled: Run, tmp_path: Path) -> None:
    code = (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import importlib, multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:\n"
        "        print(pool.submit(importlib.import_module, 'twins_trt.kernels.case').exception())\n"
        "        print(pool.submit(importlib.util.find_spec, 'twins_trt.kernels.case').result().origin)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", encoding="utf-8")
    done = uninstalled(str(program))
    assert str(ROOT / "kernels" / "case.py") in done.stdout, done.stderr
    listed = uninstalled("-m", "twins_trt", "kernels", "-h")
    assert listed.returncode == 0 and "usage: twins-trt kernels" in listed.stdout, listed.stderr


def test_a_copy_imports_its_own_rooms_and_not_those_of_the_installed_checkout(tmp_path: Path) -> None:
    for folder in ("twins_trt", *ROOMS):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "weights.pth"))
    code = "import twins_trt.kernels, twins_trt.calib; print(twins_trt.kernels.__file__, twins_trt.calib.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(tmp_path / room / "__init__.py") for room in ("kernels", "calib")], done.stderr


def test_the_tests_run_with_an_interpreter_as_it_is(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run_tests.sh", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import os\n\ndef test_x():\n    assert os.environ['HERE'] == '1'\n", encoding="utf-8"
    )
    environment = {**os.environ, "TWINS_TRT_PYTHON": sys.executable, "HERE": "1"}
    command = [str(tmp_path / "run_tests.sh"), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "run_tests.sh",
        "test_x.py",
    ]


def test_an_interpreter_without_pytest_is_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {**os.environ, "TWINS_TRT_PYTHON": str(python)}
    done = subprocess.run([str(ROOT / "run_tests.sh")], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr == f"{python} has no pytest: install it, or unset TWINS_TRT_PYTHON\n"


def test_an_interpreter_that_is_not_there_is_told() -> None:
    environment = {**os.environ, "TWINS_TRT_PYTHON": "/nowhere/python"}
    done = subprocess.run([str(ROOT / "run_tests.sh")], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr == "there is no /nowhere/python: set TWINS_TRT_PYTHON to an interpreter, or unset it\n"


@pytest.mark.parametrize(
    ("error", "package"),
    [
        ("tests/x.py:1: in <module>\nE   ModuleNotFoundError: No module named 'nowhere.quantization'", "nowhere"),
        ("E   ModuleNotFoundError: No module named 'twins_trt.nowhere'", None),
        ("E   ModuleNotFoundError: No module named 'json.nowhere'", None),  # its package is here: a mistake
        ("E   ImportError: cannot import name 'x' from 'y'", None),
        ("E   SyntaxError: invalid syntax", None),
    ],
)
def test_only_an_absent_package_is_a_reason_to_skip(error: str, package: str | None) -> None:
    assert absent_packages.absent_package(error) == package


@pytest.mark.parametrize(("own", "outcome"), [(False, "2 skipped"), (True, "2 errors")])
def test_what_is_absent_is_skipped_by_name_but_for_the_projects_own_environment(
    tmp_path: Path, own: bool, outcome: str
) -> None:
    (tmp_path / "below").mkdir()
    for file in (tmp_path / "test_x.py", tmp_path / "below" / "conftest.py"):
        file.write_text("import nowhere_at_all\n", encoding="utf-8")
    (tmp_path / "below" / "test_y.py").write_text("def test_y(): ...\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        f"import absent_packages\n\nabsent_packages.OWN_ENVIRONMENT = {own}\n\n\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(absent_packages)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert outcome in done.stdout, done.stdout
    assert done.stdout.count("nowhere_at_all is not installed") == (0 if own else 2)
