"""TensorRT's calibrators: what TensorRT would ask of them, and what happens when the images fail.

With TWINS_TRT_BINDINGS naming a folder of bindings wheels (see test_engine_bindings.py) the classes are also the real
ones of 8.6 to 10.x, which call the batch size through their own C++; without, a stand-in with the same members.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorrt_bindings
from calib_graphs import photo, photos, write_graph

from twins_trt.calib import CalibrationOptions, cache_of, calibrate, tensorrt_calibrator
from twins_trt.calib.images import Fitter
from twins_trt.errors import BuildError, DataError, MissingDependencyError, UsageError

FOLDER = os.environ.get("TWINS_TRT_BINDINGS")
WHEELS = sorted(Path(FOLDER).glob("*.whl")) if FOLDER else []
OPTIONS = CalibrationOptions(minimum=4)
CACHE = b"TRT-8601-EntropyCalibration2\nattn/v: 3c010204\n"


class Memory:
    """Device memory as a dictionary: address to bytes."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.copied: list[np.ndarray] = []

    def allocate(self, size: int) -> int:
        address = 4096 * (len(self.copied) + 1)
        self.blocks[address] = bytearray(size)
        return address

    def copy(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous and array.nbytes <= len(self.blocks[address])
        self.copied.append(array.copy())

    def free(self, address: int) -> None:
        del self.blocks[address]


def fake_tensorrt(version: str = "8.6.1") -> Any:
    """A module with the two classes; like the real ones they do not work before their own __init__ has run."""

    def start(self: Any) -> None:
        self.started = True

    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    for name in ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator"):
        setattr(module, name, type(name, (), {"__init__": start}))
    return module


def drain(calibrator: Any) -> list[list[int]]:
    """What TensorRT does: batches until there is none."""
    given = []
    while (addresses := calibrator.get_batch(["image"])) is not None:
        given.append(addresses)
    return given


@pytest.mark.parametrize(
    ("algorithm", "base"), [("entropy", "IInt8EntropyCalibrator2"), ("minmax", "IInt8MinMaxCalibrator")]
)
def test_batches_are_what_a_segmenter_feeds(graph: Path, algorithm: str, base: str) -> None:
    module, memory = fake_tensorrt(), Memory()
    images = [photo(seed, height=40, width=40 + seed) for seed in range(5)]
    calibrator: Any = tensorrt_calibrator(
        graph, images, memory=memory, algorithm=algorithm, options=OPTIONS, module=module
    )
    assert isinstance(calibrator, getattr(module, base)) and calibrator.started
    assert calibrator.get_batch_size() == 1
    assert memory.blocks == {} and calibrator.read_calibration_cache() is None
    given = drain(calibrator)
    assert len(given) == calibrator.batches == 5 and given == [[next(iter(memory.blocks))]] * 5
    fitter = Fitter([("image", "uint8", (1, 32, 48, 3))], {})
    for image, copied in zip(images, memory.copied, strict=True):
        assert np.array_equal(copied, fitter(image)[None])
    calibrator.close()
    assert memory.blocks == {} and calibrator.error is None


def test_batches_of_a_fixed_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    graph = write_graph(tmp_path / "four.onnx", batch=4)
    calibrator: Any = tensorrt_calibrator(graph, photos(10), memory=memory, options=OPTIONS, module=fake_tensorrt())
    assert calibrator.get_batch_size() == 4
    assert len(drain(calibrator)) == 2
    assert [batch.shape for batch in memory.copied] == [(4, 32, 48, 3)] * 2
    assert "2 images do not fill a batch of 4" in caplog.text
    calibrator.close()


def test_the_cache_is_written_and_then_no_image_is_read(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    first: Any = tensorrt_calibrator(
        graph, photos(4), memory=Memory(), cache=path, options=OPTIONS, module=fake_tensorrt()
    )
    drain(first)
    first.write_calibration_cache(memoryview(CACHE))
    first.close()
    assert path.read_bytes() == CACHE
    second: Any = tensorrt_calibrator(graph, [], memory=Memory(), cache=path, module=fake_tensorrt())
    assert second.read_calibration_cache() == CACHE
    second.write_calibration_cache(b"other")  # TensorRT hands back what it read
    assert path.read_bytes() == CACHE


def test_our_ranges_stand_in_for_a_calibration(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    path.write_bytes(cache_of(calibrate(graph, photos(4), options=OPTIONS), "10.3.0"))
    calibrator: Any = tensorrt_calibrator(graph, [], memory=Memory(), cache=path, module=fake_tensorrt("10.3.0"))
    assert calibrator.read_calibration_cache() == path.read_bytes()


@pytest.mark.parametrize(("version", "algorithm"), [("10.3.0", "entropy"), ("8.6.1", "minmax")])
def test_a_cache_of_something_else_is_refused(graph: Path, tmp_path: Path, version: str, algorithm: str) -> None:
    path = tmp_path / "x.cache"
    path.write_bytes(CACHE)
    with pytest.raises(DataError, match="is of TRT-8601-EntropyCalibration2, this is TRT-"):
        tensorrt_calibrator(
            graph, photos(4), memory=Memory(), cache=path, algorithm=algorithm, module=fake_tensorrt(version)
        )


def test_what_goes_wrong_ends_the_images_and_is_raised_at_the_end(graph: Path, tmp_path: Path) -> None:
    blank = np.zeros((32, 48, 3), np.uint8)
    noise = [np.random.default_rng(i).integers(0, 256, (32, 48, 3)).astype(np.uint8) for i in range(5)]
    for images, batches, said in (
        ([*photos(2), blank], 2, "image 3 has the value 0 everywhere"),
        (photos(3), 3, "3 different images are too few"),
        ([], 0, "no images"),
        (noise, 5, "5 of 5 images are noise"),
    ):
        memory, path = Memory(), tmp_path / "x.cache"
        calibrator: Any = tensorrt_calibrator(
            graph, images, memory=memory, cache=path, options=OPTIONS, module=fake_tensorrt()
        )
        assert len(drain(calibrator)) == batches
        assert calibrator.get_batch(["image"]) is None
        calibrator.write_calibration_cache(CACHE)  # TensorRT does so even then
        assert not path.exists()
        with pytest.raises(DataError, match=said):
            calibrator.close()
        assert memory.blocks == {}


def test_a_network_with_other_inputs(graph: Path) -> None:
    calibrator: Any = tensorrt_calibrator(graph, photos(4), memory=Memory(), module=fake_tensorrt())
    assert calibrator.get_batch(["left", "right"]) is None
    with pytest.raises(UsageError, match="TensorRT asks for left, right, the graph's input is image"):
        calibrator.close()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_rtx_has_none(graph: Path) -> None:
    import tensorrt_rtx

    with pytest.raises(BuildError, match=r"TensorRT-RTX [\d.]+ has no INT8 calibrators") as caught:
        tensorrt_calibrator(graph, photos(4), memory=Memory(), module=tensorrt_rtx)
    assert "Q/DQ" in str(caught.value.fix)


def test_a_tensorrt_without_calibrators_or_none_at_all(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("tensorrt")
    module.__version__ = "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(BuildError, match=r"TensorRT 11\.4\.0 has no INT8 calibrators") as caught:
        tensorrt_calibrator(graph, photos(4), memory=Memory())
    assert "twins-trt build --precision int8" in str(caught.value.fix)
    with pytest.raises(UsageError, match="no calibrator 'legacy'"):
        tensorrt_calibrator(graph, photos(4), memory=Memory(), algorithm="legacy")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="needs tensorrt"):
        tensorrt_calibrator(graph, photos(4), memory=Memory())


# Runs beside one wheel. The batch size is asked through the bindings' class, so that its C++ finds the override; of the
# other methods the bindings only bind the documentation, so these are called as the override itself.
THROUGH_BINDINGS = """
import json, sys
sys.path[:0] = {paths!r}
import tensorrt_bindings as trt
from calib_graphs import photos
from test_tensorrt_calibrator import CACHE, OPTIONS, Memory, drain
from twins_trt.calib import tensorrt_calibrator
from twins_trt.errors import BuildError
found = {{"version": trt.__version__}}
for algorithm, name in (("entropy", "IInt8EntropyCalibrator2"), ("minmax", "IInt8MinMaxCalibrator")):
    memory = Memory()
    try:
        calibrator = tensorrt_calibrator(
            {graph!r}, photos(4), memory=memory, algorithm=algorithm, options=OPTIONS, module=trt
        )
    except BuildError as error:
        found[algorithm] = str(error)
        continue
    base = getattr(trt, name)
    found[algorithm] = {{
        "is": isinstance(calibrator, base),
        "algorithm": base.get_algorithm(calibrator).name,
        "batch_size": base.get_batch_size(calibrator),
        "given": len(drain(calibrator)),
        "error": repr(calibrator.error),
    }}
    config = getattr(trt.IBuilderConfig, "int8_calibrator", None)
    found[algorithm]["assignable"] = config is not None
    calibrator.close()
print(json.dumps(found))
"""


@pytest.mark.skipif(not WHEELS, reason="no TensorRT bindings wheels: set TWINS_TRT_BINDINGS to a folder with them")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile stand-in libraries with")
@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name.split("-cp")[0])
def test_the_real_bindings_call_it(wheel: Path, graph: Path, tmp_path: Path) -> None:
    stubs = tensorrt_bindings.compile_stubs(tmp_path)
    # tests/ goes behind the wheel's folder, whose package has the name of a file there.
    paths = [str(Path(__file__).parent)]
    script = THROUGH_BINDINGS.format(paths=paths, graph=str(graph))
    found = json.loads(tensorrt_bindings.run_with_wheel(wheel, stubs, script))
    if int(found["version"].split(".")[0]) >= 11:
        assert f"TensorRT {found['version']} has no INT8 calibrators" in found["entropy"]
        assert "Q/DQ" in found["minmax"]
        return
    kinds = {"entropy": "ENTROPY_CALIBRATION_2", "minmax": "MINMAX_CALIBRATION"}
    for algorithm, kind in kinds.items():
        assert found[algorithm] == {
            "is": True,
            "algorithm": kind,
            "batch_size": 1,
            "given": 4,
            "error": "None",
            "assignable": True,
        }
