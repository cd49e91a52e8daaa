"""Reading checkpoints of every shape, refusing what is unsafe or damaged, and loading all or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twins_trt.errors import CheckpointError
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.checkpoint import CheckpointMeta, identify, identify_backbone, load_checkpoint, read_checkpoint
from twins_trt.models.segmentor import Segmentor
from twins_trt.verbs.build import FLAGS
from twins_trt.verbs.command_line import on_command_line

CLASSES = ["road", "tree", "sky"]
PALETTE = [[128, 64, 128], [0, 128, 0], [0, 0, 255]]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Tiny(nn.Module):
    """A model with the parts whose names mean something to the loader."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.decode_head = nn.Linear(4, 2)
        self.auxiliary_head = nn.Linear(4, 2)


@pytest.fixture(scope="module")
def svt_s() -> Segmentor:
    return build_model("twins_svt-s_fpn", 3)


@pytest.fixture(scope="module")
def svt_s_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in build_model("twins_svt-s_fpn", 3).state_dict().items()
    }
    meta = {"CLASSES": CLASSES, "PALETTE": PALETTE}
    return save({"state_dict": state, "meta": meta}, tmp_path_factory.mktemp("svt") / "svt-s.pth")


# --- what a checkpoint may look like ---


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": OrderedDict(w), "meta": {"epoch": 1}, "optimizer": {"state": {}}},
        lambda w: {"model": w, "epoch": 3},
        lambda w: w,
        lambda w: {"module." + key: value for key, value in w.items()},
        lambda w: {"state_dict": {"module." + key: nn.Parameter(v, False) for key, v in w.items()}},
    ],
    ids=["mmseg", "deit", "bare", "data-parallel", "parameters"],
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


# --- code in pickles ---


class Runs:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class Called(Runs):
    def __call__(self) -> None:
        """So that pickle accepts it as a function."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["state_dict", "meta", "bare"])
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("os", "posix.system"),
        ("exec", "builtins.exec|exec"),
        ("popen", r"(subprocess|commands)\.Popen"),
        ("open", r"(_?io|builtins)\.open|open"),
    ],
)
def test_code_is_not_run(tmp_path: Path, how: str, name: str, place: str, legacy: bool) -> None:
    marker = tmp_path / "it-ran"
    evil = {
        "os": Runs(os.system, f"touch {marker}"),
        "exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "popen": Runs(subprocess.Popen, ["touch", str(marker)]),
        "open": Runs(open, str(marker), "w"),
    }[how]
    content: object = {
        "state_dict": {"state_dict": {**weights(), "conv.bias": evil}},
        "meta": {"state_dict": weights(), "meta": {"x": evil}},
        "bare": evil,
    }[place]
    path = save(content, tmp_path / "evil.pth", legacy=legacy)
    with pytest.raises(CheckpointError, match=rf"asks for ({name}) to be run .* refused") as raised:
        read_checkpoint(path)
    assert not marker.exists()
    assert "if you trust it" in (raised.value.fix or "")


def test_the_getattr_stand_in_gives_nothing_that_can_be_called(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    evil = Runs(Called(getattr, Runs(type(weights()), ()), "__class__"), f"touch {marker}")
    with pytest.raises(CheckpointError):
        read_checkpoint(save({"state_dict": weights(), "meta": {"x": evil}}, tmp_path / "evil.pth"))
    assert not marker.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(save({"model": nn.Linear(2, 2)}, tmp_path / "x.pth"))


# --- damaged, and something else ---


def _bytes(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _zip_of(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("README.txt", text)
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


def _corrupt() -> bytes:
    data = bytearray(_bytes(weights()))
    at = data.find(weights()["conv.weight"].numpy().tobytes()[:64])
    data[at : at + 8] = b"\xff" * 8
    return bytes(data)


ZIP, LEGACY = _bytes(weights()), _bytes(weights(), legacy=True)
BAD_FILES = {
    "empty": (b"", "is empty"),
    "web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    "xml error page": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "truncated zip": (ZIP[: len(ZIP) // 2], rf"truncated after {len(ZIP) // 2} bytes"),
    "zip less its last byte": (ZIP[:-1], "truncated|damaged"),
    "zip header only": (ZIP[:40], "truncated after 40 bytes"),
    "zip with altered weights": (_corrupt(), "the checksum of .*/data/0 does not match"),
    "truncated legacy": (LEGACY[: len(LEGACY) - 200], "damaged|truncated"),
    "legacy header only": (LEGACY[:30], "damaged|no torch checkpoint"),
    "another zip": (_zip_of("hello"), "zip archive but no checkpoint"),
    "torchscript": (_torchscript(), "TorchScript"),
    "text": (b"hello world, this is no checkpoint\n" * 9, "no pickle that torch"),
    "noise": (np.random.default_rng(0).bytes(4096), "damaged|no torch checkpoint"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(500), "damaged|no torch checkpoint"),
    "protocol 4": (pickle.dumps({"a": 1}, protocol=4), "no torch checkpoint|damaged"),
    "a tensor": (_bytes(torch.zeros(3)), "holds a Tensor"),
    "a list": (_bytes([1, 2]), "holds a list"),
    "numbers": (_bytes({"a": 1, "b": 2}), "no state dict: a is not a tensor"),
    "no weights": (_bytes({"state_dict": {}}), "no state dict"),
    "one odd entry": (_bytes({"state_dict": {**weights(), "x": "y"}}), ": x is not a tensor"),
    "number keys": (_bytes({"state_dict": {0: torch.zeros(1)}}), "no state dict"),
    "nan": (
        _bytes({**weights(), "x": torch.tensor([0.0, float("nan")])}),
        r"NaN or infinite weights in 1 tensors \(x\)",
    ),
    "infinite": (_bytes({"x": torch.tensor(float("inf"))}), "NaN or infinite"),
    "beyond float32": (_bytes({"x": torch.tensor(1e300, dtype=torch.float64)}), "NaN or infinite"),
    "sparse": (_bytes({"x": torch.eye(3).to_sparse()}), "not a plain tensor"),
    "complex": (_bytes({"x": torch.zeros(2, dtype=torch.complex64)}), "not a plain tensor"),
    "meta device": (_bytes({"x": torch.zeros(2, device="meta")}), "not a plain tensor"),
    "expanded": (_bytes({"x": torch.zeros(1).expand(1 << 40)}), "claims more values"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    data, cause = BAD_FILES[case]
    path = tmp_path / "bad.pth"
    path.write_bytes(data)
    model = Tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=cause) as raised:
        load_checkpoint(model, path)
    assert str(path) in raised.value.cause and raised.value.fix
    assert raised.value.cause.isprintable()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_absent_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for data in (ZIP, LEGACY):
        for size in {1, 2, 4, 17, 64, 100, len(data) // 3, len(data) - 22, len(data) - 2}:
            path.write_bytes(data[:size])
            with pytest.raises(CheckpointError):
                read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_altered_bytes_load_unchanged_or_raise_our_error(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "x.pth"
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(300):
        data = bytearray(ZIP)
        for at in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read = read_checkpoint(path).state_dict
        except CheckpointError as error:
            assert error.cause.isprintable()
            outcomes["refused"] += 1
        else:  # the altered bytes were padding
            assert all(torch.equal(read[key], value) for key, value in weights().items())
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 100 and outcomes["loaded"] > 10


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


# --- loading, all or nothing ---


def _without(key: str) -> Callable[[dict], dict]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(key)}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_without("backbone.bias"), r"1 missing \(backbone\.bias\)"),
        (_without("backbone"), r"2 missing \(backbone\.weight, backbone\.bias\)"),
        (_without("auxiliary_head.bias"), r"1 missing \(auxiliary_head\.bias\)"),
        (lambda s: {**s, **{f"x{i}": torch.zeros(1) for i in range(5)}}, r"5 unexpected \(x0, x1, x2, \.\.\.\)"),
        (lambda s: {**s, "decode_head.bias": torch.zeros(3)}, r"1 wrongly shaped \(decode_head\.bias 3 for 2\)"),
        (lambda s: {**_without("backbone.bias")(s), "y": torch.zeros(1)}, r"1 missing .*; 1 unexpected"),
    ],
)
def test_what_does_not_fit_loads_nothing(tmp_path: Path, change: Callable[[dict], dict], cause: str) -> None:
    model, other = Tiny(), Tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = save({"state_dict": change(dict(other.state_dict()))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=cause):
        load_checkpoint(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_missing_auxiliary_head_is_accepted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, other = Tiny(), Tiny()
    kept = model.auxiliary_head.weight.clone()
    path = save(_without("auxiliary_head.")(dict(other.state_dict())), tmp_path / "x.pth")
    with caplog.at_level(logging.INFO, logger="twins_trt"):
        load_checkpoint(model, path)
    assert torch.equal(model.backbone.weight, other.backbone.weight)
    assert torch.equal(model.auxiliary_head.weight, kept)
    assert "no auxiliary head: its 2 tensors keep" in caplog.text


def test_a_zoo_model_loads_through_build_model(svt_s_file: Path) -> None:
    model = build_model("twins_svt-s_fpn", 3, svt_s_file)
    stored = torch.load(svt_s_file, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert model.meta is not None and model.meta.classes == tuple(CLASSES)


def test_another_number_of_classes_is_named(svt_s_file: Path) -> None:
    with pytest.raises(CheckpointError, match="trained on 3 classes, the model was asked for 150") as raised:
        build_model("twins_svt-s_fpn", 150, svt_s_file)
    assert raised.value.fix == "num_classes=3"
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        build_model("twins_svt-s_fpn", 150, svt_s_file)
    assert raised.value.fix == "--num-classes 3"


@pytest.mark.parametrize("name", ["twins_svt-s_upernet", "twins_pcpvt-s_fpn"])
def test_another_model_of_the_zoo_is_named(svt_s_file: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"holds twins_svt-s_fpn with 3 classes, not {name}") as raised:
        build_model(name, 3, svt_s_file)
    assert raised.value.fix == "use twins_svt-s_fpn num_classes=3"
    with on_command_line(FLAGS), pytest.raises(CheckpointError) as raised:
        build_model(name, 3, svt_s_file)
    assert raised.value.fix == "use twins_svt-s_fpn --num-classes 3"


def test_damage_within_the_right_model_is_listed(svt_s: Segmentor, tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in svt_s.state_dict().items()}
    del state["backbone.layers.2.3.norm1.weight"]
    with pytest.raises(
        CheckpointError, match=r"does not fit twins_svt-s_fpn: 1 missing \(backbone\.layers\.2\.3\.norm1"
    ):
        load_checkpoint(svt_s, save(state, tmp_path / "x.pth"))


def test_class_names_of_another_count_are_dropped(svt_s_file: Path, tmp_path: Path, svt_s: Segmentor) -> None:
    content = torch.load(svt_s_file, weights_only=True)
    content["meta"] = {"CLASSES": [*CLASSES, "car"], "PALETTE": PALETTE}
    meta = load_checkpoint(svt_s, save(content, tmp_path / "x.pth")).meta
    assert meta.classes is None and meta.palette == tuple(tuple(colour) for colour in PALETTE)


def test_a_backbone_alone_and_official_keys_are_explained(svt_s: Segmentor, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in svt_s.state_dict().items() if k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match="a backbone without a head") as raised:
        load_checkpoint(svt_s, save(state, tmp_path / "x.pth"))
    assert "load_backbone" in (raised.value.fix or "")
    official = {"blocks.0.0.attn.q.weight": torch.zeros(4, 4)}
    with pytest.raises(CheckpointError, match="official Twins repository") as raised:
        load_checkpoint(svt_s, save(official, tmp_path / "y.pth"))
    assert "twins-trt convert" in (raised.value.fix or "")


# --- recognition ---


def test_identify_built_models(svt_s: Segmentor) -> None:
    assert identify(svt_s.state_dict()) == ("twins_svt-s_fpn", 3)
    assert identify_backbone(svt_s.state_dict()) == ("svt", "s")
    assert identify_backbone(svt_s.backbone.state_dict()) == ("svt", "s")
    assert identify(svt_s.backbone.state_dict()) is None
    assert identify(weights()) is None and identify_backbone(weights()) is None


@pytest.mark.shared
@pytest.mark.parametrize("name", list_models())
def test_identify_all_twelve(shared: Path, name: str) -> None:
    shapes = json.loads((shared / "data" / "golden" / f"{name}.json").read_text())["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    spec = get_spec(name)
    assert identify(state) == (name, 150)
    assert identify_backbone(state) == (spec.family, spec.variant)
    state["decode_head.conv_seg.weight"] = torch.empty(19, 1, 1, 1, device="meta")
    del state["backbone.layers.0.0.norm1.weight"]
    assert identify(state) == (name, 19)
    del state["decode_head.conv_seg.weight"]
    assert identify(state) is None


@pytest.mark.shared
def test_the_trained_checkpoint(camvid_checkpoint: Path) -> None:
    stored = torch.load(camvid_checkpoint, weights_only=True)
    model = build_model("twins_svt-s_fpn", 11, camvid_checkpoint)
    assert model.meta is not None and model.meta.classes == tuple(stored["meta"]["CLASSES"])
    assert model.meta.palette is not None and model.meta.palette[0] == (128, 128, 128)
    assert model.meta.raw["val_miou"] == stored["meta"]["val_miou"]
    assert all(torch.equal(v, stored["state_dict"][k].to(v.dtype)) for k, v in model.state_dict().items())
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    read = read_checkpoint(camvid_checkpoint)
    assert identify(read.state_dict) == ("twins_svt-s_fpn", 11)
    assert read.sha256 == hashlib.sha256(camvid_checkpoint.read_bytes()).hexdigest()
