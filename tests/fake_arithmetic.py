"""What a simulated GPU computes: ONNX Runtime runs the graph, here or in another interpreter over a pipe.

A device has no ONNX Runtime, and neither may the process under test. There `RemoteSession` asks this file, run by an
interpreter that has one:

    server = Server(["/path/to/.venv/bin/python"])
    session = server.open(graph)          # has what OnnxSession has
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np


class Node(NamedTuple):
    """An input or output. type: as ONNX Runtime spells it. shape: whole numbers, and names of dynamic dimensions."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Session(Protocol):
    """A graph that can be computed."""

    inputs: dict[str, Node]
    outputs: dict[str, Node]

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The named outputs for these inputs."""


class OnnxSession:
    """A graph in ONNX Runtime, on one thread."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # not its warnings, which a GPU does not have
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            {node.name: Node(node.name, node.type, tuple(node.shape)) for node in nodes}
            for nodes in (self._session.get_inputs(), self._session.get_outputs())
        )

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        return list(self._session.run(list(names), dict(feeds)))


class Server:
    """Another interpreter that computes. command: what starts it, without the name of this file.

    It ends with this object, or with its process.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*command, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
        )
        self._lock = threading.Lock()

    def open(self, graph: bytes) -> RemoteSession:
        """A session of the graph."""
        return RemoteSession(self, graph)

    def ask(self, question: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The other interpreter's answer. Raises RuntimeError with its words if it failed."""
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes
        with self._lock:
            _send(self._process.stdin, question, arrays)
            answer = _receive(self._process.stdout)
        if answer is None:
            raise RuntimeError(f"the interpreter that computes ended with {self._process.wait()}")
        said, results = answer
        if "error" in said:
            raise RuntimeError(said["error"])
        return said, results

    def close(self) -> None:
        """Ends the other interpreter."""
        self._process.communicate()


class RemoteSession:
    """A graph in another interpreter."""

    def __init__(self, server: Server, graph: bytes) -> None:
        self._server = server
        said, _ = server.ask({"do": "open"}, {"graph": np.frombuffer(graph, np.uint8)})
        self._number = said["number"]
        self.inputs, self.outputs = (
            {name: Node(name, kind, tuple(shape)) for name, kind, shape in said[side]} for side in ("inputs", "outputs")
        )

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        _, results = self._server.ask({"do": "run", "number": self._number, "names": list(names)}, feeds)
        return [results[name] for name in names]


def _send(pipe: IO[bytes], said: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """One message: its length, and an archive of NumPy's with the words as JSON and the arrays."""
    archive = io.BytesIO()
    words = np.frombuffer(json.dumps(said).encode(), np.uint8)
    np.savez(archive, __said__=words, **arrays)
    pipe.write(len(archive.getvalue()).to_bytes(8, "big") + archive.getvalue())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[Any, dict[str, Any]] | None:
    """The next message; None if the pipe was closed."""
    length = pipe.read(8)
    if len(length) < 8:
        return None
    with np.load(io.BytesIO(pipe.read(int.from_bytes(length, "big")))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("__said__").tobytes()), arrays


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until the questions end."""
    sessions: list[OnnxSession] = []
    while (question := _receive(questions)) is not None:
        said, arrays = question
        try:
            if said["do"] == "open":
                session = OnnxSession(arrays["graph"].tobytes())
                sessions.append(session)
                sides = {"inputs": list(session.inputs.values()), "outputs": list(session.outputs.values())}
                _send(answers, {"number": len(sessions) - 1, **sides}, {})
            else:
                results = sessions[said["number"]].run(said["names"], arrays)
                _send(answers, {}, dict(zip(said["names"], results, strict=True)))
        except Exception as error:
            _send(answers, {"error": f"{type(error).__name__}: {error}"}, {})


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
