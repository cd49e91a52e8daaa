"""Two things that only TensorRT-RTX has: a cache of kernels compiled on the device, and its own CUDA graphs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engines import Faults
from fake_tensorrt import calls
from machine import Machine


@pytest.fixture
def rtx(machine: Machine) -> Machine:
    machine.install("rtx-1.7.1")
    return machine


def kept(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "twins-trt" / "runtime").glob("*.cache"))


def test_compiled_kernels_are_kept_for_the_next_process(rtx: Machine, tmp_path: Path) -> None:
    bundle = rtx.bundle()
    rtx.engine(bundle)
    (path,) = kept(tmp_path / "home")
    assert path.name.startswith("tensorrt_rtx-1.7.1.116-sm_89-NVIDIA_RTX_4000_Ada-")
    assert calls(rtx.module, "deserialize") == []  # nothing was there to read
    rtx.engine(bundle)
    assert calls(rtx.module, "deserialize") == [(b"kernels of tensorrt_rtx",)]


def test_another_engine_has_another_file(rtx: Machine, tmp_path: Path) -> None:
    rtx.engine(rtx.bundle())
    rtx.engine(rtx.bundle(32, 32))
    assert len(kept(tmp_path / "home")) == 2


@pytest.mark.parametrize("content", [b"", b"other", b"twins-trt runtime cache 1\n{}\nkernels"])
def test_a_damaged_cache_is_not_used_and_replaced(
    rtx: Machine, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = rtx.bundle()
    rtx.engine(bundle)
    (path,) = kept(tmp_path / "home")
    whole = path.read_bytes()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "twins_trt"):
        rtx.engine(bundle)
    assert "was not written by twins-trt: not used, and replaced" in caplog.text
    assert path.read_bytes() == whole


def test_a_chosen_folder_or_none(rtx: Machine, tmp_path: Path) -> None:
    rtx.engine(runtime_cache="none")
    assert kept(tmp_path / "home") == [] and calls(rtx.module, "create_runtime_cache") == []
    rtx.engine(runtime_cache=str(tmp_path))
    assert len(list(tmp_path.glob("tensorrt_rtx-*.cache"))) == 1


def test_a_runtime_that_takes_no_cache_still_runs(rtx: Machine, caplog: pytest.LogCaptureFixture) -> None:
    rtx.install("rtx-1.7.1", faults=Faults(cache=False))
    with caplog.at_level(logging.WARNING, "twins_trt"):
        rtx.engine()
    assert "takes no runtime cache" in caplog.text


@pytest.mark.parametrize(("cuda_graph", "strategy"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")])
def test_it_captures_graphs_itself(rtx: Machine, cuda_graph: bool, strategy: str) -> None:
    engine = rtx.engine(cuda_graph=cuda_graph)
    ((asked,),) = calls(rtx.module, "cuda_graph_strategy")
    assert asked == rtx.module.CudaGraphStrategy.__members__[strategy]
    image: Any = np.zeros((1, 24, 32, 3), np.uint8)
    engine(image)
    assert rtx.gpu.captured == 0
    made = calls(rtx.module, "create_execution_context")
    assert len(made) == 2 and all(isinstance(config, rtx.module.IRuntimeConfig) for (config,) in made)


def test_a_strategy_that_is_not_taken_is_told(
    rtx: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stays = rtx.module.CudaGraphStrategy.DISABLED
    stubborn = property(lambda self: stays, lambda self, value: None)
    monkeypatch.setattr(rtx.module.IRuntimeConfig, "cuda_graph_strategy", stubborn)
    with caplog.at_level(logging.WARNING, "twins_trt"):
        rtx.engine(cuda_graph=True)
    assert "does not take the CUDA graph strategy WHOLE_GRAPH_CAPTURE" in caplog.text


def test_the_other_flavour_has_none_of_this(machine: Machine, tmp_path: Path) -> None:
    machine.engine()
    assert kept(tmp_path / "home") == []
    assert calls(machine.module, "create_runtime_config") == []
    assert calls(machine.module, "create_execution_context") == [(), ()]
