"""A device has numpy, Pillow and TensorRT. Nothing else may be needed to compile, not even CUDA's own packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from compiling import ToCompile

ALLOWED = ("twins_trt", "numpy", "PIL", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")

REFUSE = f"""
import sys

class Refuse:
    asked = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {ALLOWED!r} or top.startswith("__editable__"):
            return None
        cls.asked.add(top)
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse)
"""

COMPILE = """
from twins_trt.cli import main
code = main(sys.argv[1:])
assert not Refuse.asked & {"torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "cuda", "pycuda", "cv2", "scipy"}
sys.exit(code)
"""


def alone(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE + code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_compiling_needs_numpy_and_tensorrt_alone(to_compile: ToCompile) -> None:
    bundle = to_compile((8, 32, 64), (8, 32, 64), attentions=1, precision="fp32")
    done = alone(COMPILE, "compile", bundle.path, "--target", "sm_86", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["compiled"] and said["audit"]["expected_attentions"] == 1
    again = alone(COMPILE, "compile", bundle.path, "--target", "sm_86", "--json")
    assert again.returncode == 0 and not json.loads(again.stdout)["compiled"]


def test_the_test_refuses_other_packages() -> None:
    assert "No module named 'onnx'" in alone("import onnx").stderr
    assert "No module named 'cuda'" in alone("import cuda.bindings.driver").stderr


def test_without_a_compiler_the_package_is_named(to_compile: ToCompile) -> None:
    blocked = "sys.modules['tensorrt_rtx'] = None\n"
    done = alone(blocked + COMPILE, "compile", to_compile().path, "--target", "sm_86")
    assert done.returncode == 4
    assert "needs tensorrt-rtx-cu13, which is not installed" in done.stderr


def test_every_file_of_the_room_is_read_by_python_3_10() -> None:
    import ast

    room = Path(__file__).parents[3] / "builders" / "compile"
    files = sorted(room.glob("*.py"))
    assert len(files) >= 6
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))
