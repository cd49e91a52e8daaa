"""A device has to have numpy alone. Every other package is imported by the function that needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_graphs import MakeBundle

HEAVY = (
    "torch onnx onnxruntime openvino onnx_graphsurgeon triton cv2 PIL "
    "tensorrt tensorrt_rtx pycuda cuda scipy torchvision"
)

BLOCK = f"import sys; sys.modules.update(dict.fromkeys({HEAVY.split()!r}))\n"  # None: as if not installed

SEGMENT = """
import sys
import numpy as np
import twins_trt.runtime as runtime
from twins_trt.errors import MissingDependencyError

class Engine:
    name, concurrent = "numpy", True

    def __init__(self, manifest):
        self.inputs, self.outputs = manifest.interface.inputs, manifest.interface.outputs

    def __call__(self, image, *, outputs=None, out=None):
        return {"mask": image[..., 0] // 64}

    def close(self):
        pass

bundle = runtime.open_bundle(sys.argv[1])
image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
segmenter = runtime.Segmenter(bundle, Engine(bundle.manifest))
result = segmenter(image)
assert np.array_equal(result.mask, image[..., 0] // 64)
assert result.overlay().shape == image.shape
assert [frame.error for frame in segmenter.stream([image, image])] == [None, None]
try:
    runtime.Segmenter(bundle)
except MissingDependencyError as error:
    print(error)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    loaded = run("import sys, twins_trt.runtime; print(*sorted(sys.modules))").split()
    assert not set(HEAVY.split()) & set(loaded)


def test_every_public_name_loads_with_numpy_alone() -> None:
    code = "import twins_trt.runtime as r; print(*[getattr(r, name).__name__ for name in r.__all__])"
    names = run(BLOCK + code).split()
    assert {"Segmenter", "open_bundle", "write_bundle", "read_image"} <= set(names)


def test_segmenting_with_numpy_and_an_engine_alone(make_bundle: MakeBundle) -> None:
    said = run(BLOCK + SEGMENT, str(make_bundle().path))
    assert "onnxruntime is not installed" in said


@pytest.mark.parametrize(
    ("before", "what"),
    [("", "import twins_trt.runtime"), ("import numpy", "from twins_trt.runtime import Segmenter")],
)
def test_importing_takes_less_than_150_ms(before: str, what: str) -> None:
    """Processor time, the best of three processes, without the start of Python: the machine may be busy."""
    code = f"import time\n{before}\nstart = time.process_time(); {what}; print(time.process_time() - start)"
    assert min(float(run(BLOCK + code)) for _ in range(3)) < 0.150


def test_an_unknown_name_is_an_attribute_error() -> None:
    import twins_trt.runtime

    with pytest.raises(AttributeError, match="has no attribute 'Manager'"):
        _ = twins_trt.runtime.Manager


def test_help_shows_names_that_are_not_loaded_yet() -> None:
    code = "import sys, twins_trt as t, twins_trt.runtime; print(*dir(t), *dir(t.runtime), 'torch' in sys.modules)"
    *names, torch_loaded = run(code).split()
    assert {"build_model", "Segmenter", "TwinsError", "open_bundle", "read_image"} <= set(names)
    assert torch_loaded == "False"


def test_the_readme_of_the_package_can_rely_on_the_short_name() -> None:
    import twins_trt
    from twins_trt.runtime import Segmenter

    assert twins_trt.Segmenter is Segmenter
    assert Path(twins_trt.runtime.__file__).name == "__init__.py"
