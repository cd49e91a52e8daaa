"""What holds for the repository as a whole: light imports, pins within the ranges, no path of one machine."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import twins_trt

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "tensorrt", "tensorrt_rtx", "pycuda", "triton", "cv2"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CI = ROOT / ".ci" / "run"
SCRIPTS = (CI, ROOT / "run_tests.sh", ROOT / "tools" / "venv.sh", ROOT / "examples" / "quickstart.sh")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def requirements(path: Path) -> list[Requirement]:
    lines = (line.split(" #", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement: Requirement, python_version: str, machine: str = "x86_64") -> bool:
    environment = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    given: dict[str, Any] = {}
    stand_in = ModuleType("setuptools")
    stand_in.setup = given.update  # type: ignore[attr-defined]
    stand_in.find_packages = lambda *_, **__: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_importing_loads_nothing_heavy() -> None:
    loaded = {name.partition(".")[0] for name in python("import sys, twins_trt; print(*sys.modules)").split()}
    assert not loaded & HEAVY


def test_importing_takes_less_than_100_ms() -> None:
    """Processor time, the best of three processes: the machine may be busy."""
    code = "import time\nstart = time.process_time(); import twins_trt; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.1


def test_every_requirement_has_a_pin_within_its_range(setup_arguments: dict[str, Any]) -> None:
    pins = requirements(ROOT / "constraints.txt")
    wanted = [*setup_arguments["install_requires"], *setup_arguments["extras_require"]["dev"]]
    for python_version in PYTHONS:
        pinned = {canonicalize_name(pin.name): pin for pin in pins if applies(pin, python_version)}
        for requirement in (each for each in map(Requirement, wanted) if applies(each, python_version)):
            (specifier, *_) = pinned[canonicalize_name(requirement.name)].specifier
            assert specifier.version in requirement.specifier, requirement


def test_pins_are_exact_and_each_package_has_one() -> None:
    pins = requirements(ROOT / "constraints.txt")
    loose = {pin.name for pin in pins if [specifier.operator for specifier in pin.specifier] != ["=="]}
    assert loose == {"triton"}  # torch's CUDA build brings its own
    for python_version in PYTHONS:
        names = [canonicalize_name(pin.name) for pin in pins if applies(pin, python_version)]
        assert len(names) == len(set(names))
    assert not any(canonicalize_name(pin.name) == "twins-trt" for pin in pins)


def test_the_build_machines_set_is_the_extras(setup_arguments: dict[str, Any]) -> None:
    extras = setup_arguments["extras_require"]
    wanted = {*setup_arguments["install_requires"], *extras["build"], *extras["rtx"]}
    assert set(map(str, requirements(ROOT / "requirements" / "build.txt"))) == set(map(str, map(Requirement, wanted)))


@pytest.mark.parametrize(("python_version", "cuda"), [("3.10", "12.6"), ("3.12", "13.0")])
def test_the_jetsons_set_has_the_runtime_and_jetpacks_cuda(
    setup_arguments: dict[str, Any], python_version: str, cuda: str
) -> None:
    found = {each.name: each for each in requirements(ROOT / "requirements" / "jetson.txt")}
    assert "tensorrt" not in found  # JetPack's is not on any index
    for requirement in map(Requirement, setup_arguments["install_requires"]):
        assert found[requirement.name].specifier == requirement.specifier
    chosen = [
        each
        for each in requirements(ROOT / "requirements" / "jetson.txt")
        if each.name == "cuda-bindings" and applies(each, python_version, "aarch64")
    ]
    assert len(chosen) == 1
    assert cuda in chosen[0].specifier
    # What errors name where no binding is: pip install "twins-trt[cuda]".
    extra = [*map(Requirement, setup_arguments["extras_require"]["cuda"])]
    (advised,) = [each for each in extra if applies(each, python_version, "aarch64")]
    assert cuda in advised.specifier
    assert ("13.0" in advised.specifier) == (python_version == "3.12")


def test_the_package_is_described(setup_arguments: dict[str, Any]) -> None:
    assert setup_arguments["version"] == twins_trt.__version__
    assert setup_arguments["python_requires"] == ">=3.10"
    for package, patterns in setup_arguments["package_data"].items():
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
    assert f"\nversion: {twins_trt.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License\n" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_folder_of_the_rooms_is_a_package() -> None:
    folders = {
        path.parent for room in ("twins_trt", "kernels", "builders", "calib") for path in (ROOT / room).rglob("*.py")
    }
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_from_anywhere_and_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_runs_the_tests_command_of_the_readme() -> None:
    assert "./run_tests.sh" in CI.read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--nonsense"], 2)])
def test_quickstart_explains_itself(words: list[str], code: int) -> None:
    done = subprocess.run(
        [str(ROOT / "examples" / "quickstart.sh"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "--checkpoint F.pth" in done.stdout if code == 0 else "--nonsense" in done.stderr


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports a file by its name alone: a second one of that name is an error while tests are collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: no list of the repository's files")
    absolute = re.compile(r"(?<![\w.~$}-])/(work|root|tmp|opt|home/\w+)/")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data:
            assert absolute.search(data.decode("utf-8")) is None, name
