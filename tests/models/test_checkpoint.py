"""Reading checkpoints of every shape."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CLASSES, PALETTE, save, weights
from torch import Tensor, nn

from twins_trt.errors import CheckpointError
from twins_trt.models.checkpoint import CheckpointMeta, read_checkpoint

# --- what a checkpoint may look like ---


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": OrderedDict(w), "meta": {"epoch": 1}, "optimizer": {"state": {}}},
        lambda w: {"model": w, "epoch": 3},
        lambda w: w,
        lambda w: {"state_dict": {key: nn.Parameter(v, False) for key, v in w.items()}},
    ],
    ids=["mmseg", "deit", "bare", "parameters"],
)
def test_containers(tmp_path: Path, wrap: Callable[[dict], dict], legacy: bool) -> None:
    path = save(wrap(weights()), tmp_path / "x.pth", legacy=legacy)
    read = read_checkpoint(path)
    assert list(read.state_dict) == list(weights())
    for key, value in weights().items():
        assert torch.equal(read.state_dict[key], value) and type(read.state_dict[key]) is Tensor
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_floats_become_float32_and_counters_int64(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {k: v.to(dtype) if v.is_floating_point() else v.to(torch.int32) for k, v in weights().items()}
    read = read_checkpoint(save({"state_dict": stored}, tmp_path / "x.pth")).state_dict
    assert {v.dtype for v in read.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(read[key], value.to(read[key].dtype)) for key, value in stored.items())


def test_only_all_keys_lose_module(tmp_path: Path) -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(read_checkpoint(save(mixed, tmp_path / "x.pth")).state_dict) == {"module.a", "b"}


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": tuple(CLASSES), "PALETTE": PALETTE},
        {"classes": CLASSES, "palette": [tuple(colour) for colour in PALETTE]},
        {"dataset_meta": {"classes": tuple(CLASSES), "palette": np.array(PALETTE, dtype=np.uint8)}},
        {"CLASSES": None, "dataset_meta": {"CLASSES": np.array(CLASSES), "PALETTE": np.array(PALETTE, order="F")}},
    ],
    ids=["mmcv", "lower", "mmengine", "arrays"],
)
def test_classes_and_palette(tmp_path: Path, meta: dict[str, Any]) -> None:
    read = read_checkpoint(save({"state_dict": weights(), "meta": meta}, tmp_path / "x.pth")).meta
    assert read.classes == tuple(CLASSES)
    assert read.palette == tuple(tuple(colour) for colour in PALETTE)
    assert CheckpointMeta.from_json(read.to_json()) == read
    assert CheckpointMeta.from_json(CheckpointMeta().to_json()) == CheckpointMeta()


@pytest.mark.parametrize("odd", [5, [], [1, 2], ["a", None], {"a": 1}, [[1, 2]], [[1, 2, 300]], [["a", "b", "c"]]])
def test_odd_class_lists_are_left_alone(tmp_path: Path, odd: object) -> None:
    read = read_checkpoint(
        save({"state_dict": weights(), "meta": {"CLASSES": odd, "PALETTE": odd}}, tmp_path / "x.pth")
    )
    assert read.meta.classes is None and read.meta.palette is None
    assert read.meta.raw["CLASSES"] == odd


def test_raw_keeps_what_is_plain(tmp_path: Path) -> None:
    meta = {
        "seed": np.int64(-3),
        "lr": np.float32(0.25),
        "swapped": np.array([1, 2], dtype=">i4"),
        "flag": np.bool_(True),
        "objects": np.array([{"a": 1}], dtype=object),
        "tensor": torch.zeros(2),
        "nested": {"pair": (1, "x", None, torch.zeros(1)), 5: 2.5},
        "env_info": "gcc",
    }
    raw = read_checkpoint(save({"state_dict": weights(), "meta": meta}, tmp_path / "x.pth")).meta.raw
    assert raw == {
        "seed": -3,
        "lr": 0.25,
        "swapped": [1, 2],
        "flag": True,
        "nested": {"pair": [1, "x", None], "5": 2.5},
        "env_info": "gcc",
    }
    json.dumps(raw)


# --- mmengine's pickles, without mmengine ---


@pytest.fixture(params=["mmengine.logging.history_buffer", "mmengine.logging"])
def history_buffer(request: pytest.FixtureRequest) -> Iterator[type]:
    """A class that pickles as mmengine's HistoryBuffer does: two arrays, a length, and its methods by name."""
    module = types.ModuleType(request.param)
    source = """
import numpy
class HistoryBuffer:
    _statistics_methods = {}
    def __init__(self, values):
        self.max_length = 1000000
        self._log_history = numpy.array(values, dtype=float)
        self._count_history = numpy.ones(len(values), dtype=int)
        self._statistics_methods.update(min=HistoryBuffer.min, mean=HistoryBuffer.mean)
    def min(self): return self._log_history.min()
    def mean(self): return self._log_history.mean()
    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": self._statistics_methods}
    def __setstate__(self, state):
        raise AssertionError("the real class must not be used")
"""
    exec(source, vars(module))
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    sys.modules.update({name: types.ModuleType(name) for name in names} | {request.param: module})
    yield vars(module)["HistoryBuffer"]
    _forget_mmengine()


def _forget_mmengine() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        del sys.modules[name]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_history_buffers_load_without_mmengine(tmp_path: Path, history_buffer: type, legacy: bool) -> None:
    content = {
        "state_dict": OrderedDict(weights()),
        "meta": {"iter": np.int64(80000), "dataset_meta": {"classes": CLASSES, "palette": PALETTE}},
        "message_hub": {"log_scalars": OrderedDict(loss=history_buffer([0.5, 0.25])), "runtime_info": {"lr": 0.1}},
    }
    path = save(content, tmp_path / "x.pth", legacy=legacy)
    _forget_mmengine()
    before = list(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(path, weights_only=True)
    read = read_checkpoint(path)
    assert read.meta.classes == tuple(CLASSES) and read.meta.raw["iter"] == 80000
    assert torch.equal(read.state_dict["conv.weight"], weights()["conv.weight"])
    assert not any(name.startswith("mmengine") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):  # nothing stays allowed
        torch.load(path, weights_only=True)


def test_the_callers_own_allow_list_neither_mixes_in_nor_is_lost(tmp_path: Path) -> None:
    reconstruct = np.zeros(1).__reduce__()[0]
    mine: list[Any] = [np.ndarray, np.dtype, reconstruct, (reconstruct, "numpy.core.multiarray._reconstruct")]
    before = list(torch.serialization.get_safe_globals())
    path = save({"state_dict": weights(), "meta": {"a": np.arange(3)}}, tmp_path / "x.pth")
    torch.serialization.add_safe_globals(mine)
    try:
        assert read_checkpoint(path).meta.raw == {"a": [0, 1, 2]}
        assert set(torch.serialization.get_safe_globals()) == set(before) | set(mine)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_training_arguments_are_ignored(tmp_path: Path) -> None:
    import argparse

    args = argparse.Namespace(lr=0.1, output=Path("out"), rates=np.arange(3))
    read = read_checkpoint(save({"model": weights(), "args": args}, tmp_path / "x.pth"))
    assert set(read.state_dict) == set(weights()) and read.meta == CheckpointMeta()


# --- safetensors ---


def test_safetensors(tmp_path: Path) -> None:
    torch_module = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    torch_module.save_file(weights(), tmp_path / "x.safetensors")
    read = read_checkpoint(tmp_path / "x.safetensors").state_dict
    assert all(torch.equal(read[key], value) for key, value in weights().items())
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:50])
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_checkpoint(tmp_path / "y.safetensors")


def test_safetensors_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twins_trt.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "x.safetensors").write_bytes(b"\x08")
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")
