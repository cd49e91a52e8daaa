"""Fixtures for every room. `shared` is the acceptance data that lies beside the checkout and never in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import absent_packages
import numpy as np
import pytest
from tiny_graphs import MakeBundle, tensors, tiny_graph, tiny_interface, tiny_manifest

from twins_trt.data.resizing import opencv
from twins_trt.inference.tensors import Dim
from twins_trt.runtime import Bundle, GraphInterface, write_bundle

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # registered here: hooks of a conftest are not asked about folders whose own conftest is still to come
    config.pluginmanager.register(absent_packages)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs, CamVid and the trained checkpoint; TWINS_TRT_SHARED overrides where it lies."""
    folder = Path(os.environ.get("TWINS_TRT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "golden").is_dir():
        pytest.skip(f"acceptance data missing: no {folder.name}/data/golden beside the checkout (set TWINS_TRT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def camvid(shared: Path) -> Path:
    folder = shared / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip("acceptance data missing: data/camvid")
    return folder


@pytest.fixture(scope="session")
def camvid_checkpoint(shared: Path) -> Path:
    path = shared / "data" / "checkpoints" / "twins_svt-s_fpn_camvid.pth"
    if not path.is_file():
        pytest.skip("acceptance data missing: data/checkpoints/twins_svt-s_fpn_camvid.pth")
    return path


@pytest.fixture(scope="session")
def seeded(shared: Path) -> ModuleType:
    """The module that makes the weights and inputs behind the golden outputs."""
    sys.path.insert(0, str(shared / "tools"))
    try:
        import seeded_weights
    finally:
        sys.path.pop(0)
    return seeded_weights


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def without_opencv() -> Iterator[None]:
    """No OpenCV in this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        opencv.cache_clear()
        yield
    opencv.cache_clear()


@pytest.fixture(params=["opencv", "pillow"])
def resizer(request: pytest.FixtureRequest) -> str:
    """Which library resizes images; the test runs with each."""
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    else:
        request.getfixturevalue("without_opencv")
    return str(request.param)


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """`make_bundle(height, width, batch=1, outputs=("mask",), dtype="uint8", **fields)`.

    Fields are the manifest's or its interface's.

    Engines that the manifest names hold their own name.
    """
    made = 0

    def make(
        height: Dim = 24,
        width: Dim = 32,
        *,
        batch: Dim = 1,
        outputs: tuple[str, ...] = ("mask",),
        dtype: str = "uint8",
        **given: object,
    ) -> Bundle:
        nonlocal made
        made += 1
        image, specs = tensors(height, width, batch, outputs, dtype)
        of_interface = {each.name: given.pop(each.name) for each in fields(GraphInterface) if each.name in given}
        interface = replace(tiny_interface(image, specs), **of_interface)  # type: ignore[arg-type]
        manifest = replace(tiny_manifest(image, specs), interface=interface, **given)  # type: ignore[arg-type]
        files: dict[str, bytes | Path] = {engine.file: engine.file.encode() for engine in manifest.engines}
        files["graph.onnx"] = tiny_graph(image, specs)
        return write_bundle(tmp_path / f"tiny{made}.bundle", manifest, files)

    return make
