from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Twins

from twins_trt.cli import environment
from twins_trt.cli.environment import NEEDS, PACKAGES, advise, find_jetson, lacking, look


@pytest.fixture(autouse=True)
def quick_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are taken to load: importing torch in another process takes seconds each time."""
    monkeypatch.setattr(environment, "_try_import", lambda module: {"state": "ok"})


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
        ("onnxruntime", "predict", 4),
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
    found = {entry["module"]: entry for entry in ran.json["packages"]}[blocked]
    assert found["state"] == "missing" and found["install"] == package.install
    assert (package.distribution in " ".join(ran.json["commands"][purpose])) == (code == 4)
    assert package.install in twins("doctor", "--for", purpose).out


def test_a_build_needs_a_compiler_and_tensorrt_a_gpu() -> None:
    states = {package.module: "ok" for package in PACKAGES}
    assert lacking("build", states, has_gpu=False) == []
    states["tensorrt_rtx"] = "broken"
    assert lacking("build", states, has_gpu=True) == []
    assert lacking("build", states, has_gpu=False) == ["a GPU for tensorrt, or tensorrt-rtx-cu13"]
    states["tensorrt"] = "missing"
    assert lacking("build", states, has_gpu=True) == ["tensorrt-rtx-cu13 or tensorrt"]


def test_a_package_that_does_not_load_is_broken_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, content in {
        "sad_a": "raise OSError('libnvinfer.so.10: cannot open')",
        "sad_b": "import os; os.abort()",
    }.items():
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment._try_import("sad_a") == {"state": "broken", "error": "OSError: libnvinfer.so.10: cannot open"}
    found = environment._try_import("sad_b")
    assert found["state"] == "broken" and found["error"]


def test_the_compilers_targets_are_read_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "rtx.py").write_text(
        "import enum\n__version__ = '9.9'\nComputeCapability = enum.Enum('ComputeCapability', 'SM86 SM120 CURRENT')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment._try_import("rtx") == {"state": "ok", "version": "9.9", "targets": ["sm_86", "sm_120"]}


def test_a_check_that_fails_is_unknown_not_fatal(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("odd machine")

    for name in ("find_gpu", "_python", "_disk", "_memory", "find_jetson"):
        monkeypatch.setattr(environment, name, lambda *words: fail())
    ran = twins("doctor", "--json")
    assert ran.code == 0, ran.err
    unknown = {"unknown": "ZeroDivisionError: odd machine"}
    assert [ran.json[name] for name in ("gpu", "python", "disk", "memory_mib", "jetson")] == [unknown] * 5
    assert "unknown (ZeroDivisionError: odd machine)" in twins("doctor").out


def jetson(root: Path) -> Path:
    (root / "etc").mkdir()
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    (root / "proc" / "device-tree").mkdir(parents=True)
    (root / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson Orin NX\0")
    return root


def test_a_jetson_is_recognised(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    assert find_jetson(jetson(tmp_path)) == {"model": "NVIDIA Jetson Orin NX", "l4t": "36.4.3", "jetpack": "6"}


def test_advice_on_a_jetson_and_elsewhere(tmp_path: Path) -> None:
    found = look(root=jetson(tmp_path)) | {"gpu": {"driver": "12.6", "name": "Orin", "target": "sm_87"}}
    found["packages"] = [
        {"module": "tensorrt", "state": "missing"},
        {"module": "tensorrt_rtx", "targets": ["sm_86"], "state": "ok"},
    ]
    found["disk"] = [{"use": "weights", "path": "/x", "free": 10**9}]
    found["python"] = {"isolated_venv": True}
    assert advise(found, tmp_path) == [
        "TensorRT comes with JetPack, never from pip: sudo apt install python3-libnvinfer",
        "only 1.0 GB free in /x (weights)",
        "TensorRT-RTX does not build for this GPU (sm_87), only for sm_86",
    ]
    (tmp_path / "usr" / "lib" / "python3.10" / "dist-packages" / "tensorrt").mkdir(parents=True)
    assert "--system-site-packages" in advise(found, tmp_path)[0]
