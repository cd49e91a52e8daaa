from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Twins

from twins_trt.diagnosis.facts import CHECKS, find_places
from twins_trt.diagnosis.needs import NEEDS
from twins_trt.diagnosis.packages import PACKAGES, Package, PackageState, check_packages


@pytest.fixture(autouse=True)
def quick_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every package load: importing torch in another process takes seconds each time."""

    def check(root: Path) -> tuple[PackageState, ...]:
        return check_packages(load=lambda package: PackageState(package, "ok"))

    monkeypatch.setitem(CHECKS, "packages", check)


def test_everything_is_there(twins: Twins) -> None:
    pytest.importorskip("tensorrt_rtx")
    for purpose in NEEDS:
        ran = twins("doctor", "--for", purpose, "--json")
        assert ran.code == 0, ran.out
        assert ran.json["ready"] is True and ran.json["purpose"] == purpose
    text = twins("doctor").out
    assert "predict *  ready" in text and "Python".lower() in text and sys.executable in text


@pytest.mark.parametrize(
    ("blocked", "purpose", "code"),
    [
        ("onnxruntime", "calibrate", 4),
        ("onnxruntime", "eval", 0),  # PyTorch models can still be scored
        ("torch", "build", 4),
        ("onnx_graphsurgeon", "export", 4),
        ("torch", "predict", 0),
        ("cv2", "predict", 0),
    ],
)
def test_what_a_missing_package_disables(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, blocked: str, purpose: str, code: int
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    ran = twins("doctor", "--for", purpose, "--json")
    assert ran.code == code, ran.out
    package = next(package for package in PACKAGES if package.module == blocked)
    found = {entry["module"]: entry for entry in ran.json["facts"]["packages"]}[blocked]
    assert found["state"] == "missing" and found["install"] == package.install
    assert (package.distribution in " ".join(ran.json["commands"][purpose])) == (code == 4)
    assert package.install in twins("doctor", "--for", purpose).out


def test_a_check_that_fails_is_unknown_not_fatal(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> None:
        raise ZeroDivisionError("odd machine")

    checks = [name for name in CHECKS if name != "packages"]
    assert set(checks) == {"python", "places", "memory_mib", "jetson", "gpu", "driver", "system"}
    for name in checks:
        monkeypatch.setitem(CHECKS, name, fail)
    ran = twins("doctor", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["facts"]["unknown"] == dict.fromkeys(checks, "ZeroDivisionError: odd machine")
    assert [ran.json["facts"][name] for name in checks] == [None] * len(checks)
    assert "unknown (ZeroDivisionError: odd machine)" in twins("doctor").out


def test_causes_are_shown_with_what_mends_them(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only = tuple(replace(place, writable=False) for place in find_places())
    monkeypatch.setitem(CHECKS, "places", lambda root: read_only)
    found = {finding["kind"]: finding for finding in twins("doctor", "--json").json["findings"]}["read-only"]
    text = twins("doctor").out
    assert f"cause: {found['cause']}\n mend: {found['mend']}" in text


def test_a_purpose_that_needs_nothing_is_a_usage_error(twins: Twins) -> None:
    ran = twins("doctor", "--for", "models")
    assert ran.code == 2 and "nothing special is needed for 'models'" in ran.err


def test_every_package_has_a_command_that_installs_it() -> None:
    assert all(isinstance(package, Package) and "install" in package.install for package in PACKAGES)


def test_one_engine_alone_may_be_asked_for(twins: Twins) -> None:
    ready = twins("doctor", "--engine", "onnxruntime", "--json")
    assert ready.code == 0 and ready.json["commands"]["predict"] == []
    if ready.json["facts"]["gpu"] is None:
        asked = twins("doctor", "--engine", "tensorrt", "--json")
        assert asked.code == 4 and "a GPU" in asked.json["commands"]["predict"][0]
    assert twins("doctor", "--engine", "cuda").code == 2
