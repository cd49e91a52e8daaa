"""What a simulated GPU computes in another interpreter is what it computes in this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import fake_arithmetic
from fake_arithmetic import OnnxSession, Server
from tiny_graphs import tensors, tiny_graph

GRAPH = tiny_graph(*tensors(24, 32, 1, ("mask", "logits"), "uint8"))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server([sys.executable])
    yield made
    made.close()


def test_both_give_the_same(server: Server, rng: np.random.Generator) -> None:
    here, there = OnnxSession(GRAPH), server.open(GRAPH)
    assert (here.inputs, here.outputs) == (there.inputs, there.outputs)
    image = rng.integers(0, 256, (1, 24, 32, 3), np.uint8)
    for mine, theirs in zip(*(each.run(["logits", "mask"], {"image": image}) for each in (here, there)), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


def test_several_graphs_stay_apart(server: Server) -> None:
    small, large = server.open(GRAPH), server.open(tiny_graph(*tensors(48, 64, 1, ("mask",), "uint8")))
    assert [small.run(["mask"], {"image": np.zeros((1, 24, 32, 3), np.uint8)})[0].shape] == [(1, 24, 32)]
    assert [large.run(["mask"], {"image": np.zeros((1, 48, 64, 3), np.uint8)})[0].shape] == [(1, 48, 64)]


def test_an_error_there_is_an_error_here_and_not_the_end(server: Server) -> None:
    session = server.open(GRAPH)
    with pytest.raises(RuntimeError, match="INVALID_ARGUMENT"):
        session.run(["mask"], {"image": np.zeros((1, 5, 5, 3), np.uint8)})
    assert session.run(["mask"], {"image": np.zeros((1, 24, 32, 3), np.uint8)})[0].shape == (1, 24, 32)


def test_it_ends_with_the_process_that_asks(server: Server) -> None:
    server.close()
    assert server._process.returncode == 0
    with pytest.raises((RuntimeError, ValueError)):
        server.open(GRAPH)


def test_the_process_that_asks_needs_numpy_alone() -> None:
    folder = str(Path(fake_arithmetic.__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import fake_arithmetic; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded and not {"onnxruntime", "onnx", "torch"} & set(loaded)
