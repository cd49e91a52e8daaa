"""Checkpoints that are unsafe or damaged are refused."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save, weights
from torch import nn

from twins_trt.errors import CheckpointError
from twins_trt.models.checkpoint import read_checkpoint

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
    with pytest.raises(CheckpointError, match=cause) as raised:
        read_checkpoint(path)
    assert str(path) in raised.value.cause and raised.value.fix
    assert raised.value.cause.isprintable()


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
