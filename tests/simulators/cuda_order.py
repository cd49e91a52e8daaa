"""What CUDA's documentation says about order, as a model that knows no queue: works, and which come before which.

A work may run as soon as all that comes before it has run, and must have run when the host has waited for it. So the
latest possible moment of every work is known, and so is every value that a program reads, if no two works that touch
the same memory are without order. `Program` leaves out what would race, does the rest in the model and through the
functions of `cuda.bindings.runtime`, and returns both readings.

Sources, in the CUDA C++ Programming Guide and the Runtime API: streams run in order ("Streams"); the legacy default
stream and blocking streams wait for each other ("Stream synchronization behavior"); an event stands for the work of its
stream at the moment of recording, and waiting uses the latest recording (cudaEventRecord); a graph's launches come
after each other and after the stream's work (cudaGraphLaunch); what is captured does not run (cudaStreamBeginCapture);
a stream that is destroyed keeps its work (cudaStreamDestroy).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIZE = 8  # bytes of a buffer, all equal
UNKNOWN = 0xCC
HOST, DEVICE = ("h0", "h1", "h2"), ("d0", "d1")
STREAMS = ("one", "two", "blocking", "legacy")
EVENTS = ("e0", "e1")
COPIES = [(s, t) for s in (*HOST, *DEVICE) for t in (*HOST, *DEVICE) if s != t and (s in DEVICE or t in DEVICE)]


@dataclass(eq=False)
class Node:
    """A work. before: works that have to run first."""

    stream: str
    source: str | None
    target: str | None
    before: set[Node] = field(default_factory=set, repr=False)
    done: bool = False

    def all_before(self) -> set[Node]:
        found, todo = set(), list(self.before)
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += node.before
        return found

    def conflicts(self, other: Node) -> bool:
        """Whether one writes what the other touches."""
        mine, theirs = {self.source, self.target} - {None}, {other.source, other.target} - {None}
        return (self.target is not None and self.target in theirs) or (
            other.target is not None and other.target in mine
        )


class Model:
    """The order, and the values of the buffers if everything runs as late as possible."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.last: dict[str, Node | None] = dict.fromkeys(STREAMS)
        self.orphans: list[Node | None] = []  # the last works of streams that were destroyed
        self.recorded: dict[str, Node | None] = dict.fromkeys(EVENTS)
        self.graph: list[tuple[str, str]] | None = None
        self.launched: Node | None = None
        self.values: dict[str, int] = dict.fromkeys((*HOST, *DEVICE), UNKNOWN)

    def node(self, stream: str, copy: tuple[str | None, str | None] = (None, None), extra: Iterable[Any] = ()) -> Node:
        others = {"legacy": ("blocking",), "blocking": ("legacy",)}.get(stream, ())
        before = {self.last[each] for each in (stream, *others)} | set(extra)
        return Node(stream, *copy, before={each for each in before if each is not None})

    def races(self, node: Node) -> list[Node]:
        """Works under way that touch the same memory without order."""
        first = node.all_before()
        return [other for other in self.nodes if other not in first and node.conflicts(other)]

    def add(self, stream: str, node: Node) -> Node:
        self.nodes.append(node)
        self.last[stream] = node
        return node

    def wait_for(self, nodes: Iterable[Node | None]) -> None:
        """The host waits: these works and what comes before them run, in the order in which they were given."""
        wanted: set[Node] = set()
        for node in nodes:
            wanted |= set() if node is None else {node} | node.all_before()
        for node in self.nodes:
            if node in wanted and not node.done:
                node.done = True
                if node.source is not None and node.target is not None:
                    self.values[node.target] = self.values[node.source]
        self.nodes = [node for node in self.nodes if not node.done]

    def being_written(self, buffer: str) -> bool:
        return any(node.target == buffer for node in self.nodes)

    def read(self, buffer: str) -> int:
        return UNKNOWN if self.being_written(buffer) else self.values[buffer]


class Program:
    """Does the same in the model and on `cuda`.

    waits: the host touches only what nothing under way touches, as a correct program does; then every GPU must agree
    with the model, not only one that does all as late as it may.
    """

    def __init__(self, cuda: Any, *, waits: bool) -> None:
        self.cuda, self.model, self._waits = cuda, Model(), waits
        flags = {"one": cuda.cudaStreamNonBlocking, "two": cuda.cudaStreamNonBlocking, "blocking": 0}
        self.streams = {name: self.call("cudaStreamCreateWithFlags", flag) for name, flag in flags.items()}
        self.streams["legacy"] = 0
        self.events = {name: self.call("cudaEventCreateWithFlags", 2) for name in EVENTS}
        self.device = {name: int(self.call("cudaMalloc", SIZE)) for name in DEVICE}
        self.host = {name: int(self.call("cudaHostAlloc", SIZE, 0)) for name in HOST}
        self.graph: Any = None
        for index, name in enumerate(HOST):
            self.write(name, index + 1)
        for name in DEVICE:  # fresh device memory is undefined
            self.copy("one", HOST[0], name)
        self.sync("one")

    def call(self, name: str, *given: Any) -> Any:
        status, *results = getattr(self.cuda, name)(*given)
        assert int(status) == 0, (name, status)
        return results[0] if results else None

    def bytes(self, buffer: str) -> Any:
        return np.ctypeslib.as_array((ctypes.c_uint8 * SIZE).from_address(self.host[buffer]))

    def write(self, buffer: str, value: int) -> None:
        """The host writes: not what the GPU will write, and what it will read only in a program that does not wait."""
        reads = any(buffer == node.source for node in self.model.nodes)
        if not self.model.being_written(buffer) and not (self._waits and reads):
            self.model.values[buffer] = value
            self.bytes(buffer)[...] = value

    def read(self, buffer: str) -> tuple[list[int], list[int]]:
        """What the host reads, and what the model says."""
        if self._waits and self.model.being_written(buffer):
            return [], []
        return self.bytes(buffer).tolist(), [self.model.read(buffer)] * SIZE

    def copy(self, stream: str, source: str, target: str) -> None:
        if self._ordered(stream, [(source, target)]):
            self.model.add(stream, self.model.node(stream, (source, target)))
            self._copy(stream, source, target)

    def record(self, event: str, stream: str) -> None:
        self.model.recorded[event] = self.model.add(stream, self.model.node(stream))
        self.call("cudaEventRecord", self.events[event], self.streams[stream])

    def wait(self, stream: str, event: str) -> None:
        if self.model.recorded[event] is not None:  # "an event represents an empty set of work" before that
            self.model.add(stream, self.model.node(stream, extra=[self.model.recorded[event]]))
        self.call("cudaStreamWaitEvent", self.streams[stream], self.events[event], 0)

    def sync(self, stream: str) -> None:
        streams = ("legacy", "blocking") if stream == "legacy" else (stream,)
        self.model.wait_for(self.model.last[each] for each in streams)
        self.call("cudaStreamSynchronize", self.streams[stream])

    def sync_event(self, event: str) -> None:
        self.model.wait_for([self.model.recorded[event]])
        self.call("cudaEventSynchronize", self.events[event])

    def sync_device(self) -> None:
        self.model.wait_for([*self.model.last.values(), *self.model.orphans])
        self.call("cudaDeviceSynchronize")

    def destroy(self, stream: str) -> None:
        """Destroys a stream; another takes its name."""
        if stream in ("one", "two"):  # whether the legacy stream waits for a destroyed one is not documented
            self.model.orphans.append(self.model.last[stream])
            self.model.last[stream] = None
            self.call("cudaStreamDestroy", self.streams[stream])
            self.streams[stream] = self.call("cudaStreamCreateWithFlags", self.cuda.cudaStreamNonBlocking)

    def capture(self, stream: str, copies: Sequence[tuple[str, str]]) -> None:
        """Captures copies as the graph that is launched from now on."""
        if stream == "legacy":
            return
        if self.graph is not None:
            self.sync_device()
            self.call("cudaGraphExecDestroy", self.graph)
        self.call("cudaStreamBeginCapture", self.streams[stream], self.cuda.cudaStreamCaptureMode(1))
        for source, target in copies:
            self._copy(stream, source, target)
        graph = self.call("cudaStreamEndCapture", self.streams[stream])
        self.graph = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        self.model.graph, self.model.launched = list(copies), None

    def launch(self, stream: str) -> None:
        model = self.model
        if model.graph is None:
            return
        if not self._ordered(stream, model.graph, after=model.launched):
            return
        model.add(stream, model.node(stream, extra=[model.launched]))
        for copy in model.graph:
            model.add(stream, model.node(stream, copy))
        model.launched = model.last[stream]
        self.call("cudaGraphLaunch", self.graph, self.streams[stream])

    def close(self) -> None:
        self.sync_device()
        if self.graph is not None:
            self.call("cudaGraphExecDestroy", self.graph)
        for name, held in (
            ("cudaEventDestroy", self.events.values()),
            ("cudaFree", self.device.values()),
            ("cudaFreeHost", self.host.values()),
            ("cudaStreamDestroy", [self.streams[name] for name in STREAMS if name != "legacy"]),
        ):
            for each in held:
                self.call(name, each)

    def _ordered(self, stream: str, copies: Iterable[tuple[str, str]], *, after: Node | None = None) -> bool:
        """Whether copies would race with nothing, once the stream waits for those that they would race with."""
        first = self.model.node(stream, extra=[after])
        races = [other for copy in copies for other in self.model.races(Node(stream, *copy, before=first.before))]
        for event, other in zip(EVENTS, {node.stream: node for node in races}.values(), strict=False):
            self.record(event, other.stream)
            self.wait(stream, event)
        first = self.model.node(stream, extra=[after])
        return not any(self.model.races(Node(stream, *copy, before=first.before)) for copy in copies)

    def _copy(self, stream: str, source: str, target: str) -> None:
        found: Callable[[str], int] = lambda name: (self.host | self.device)[name]  # noqa: E731
        kind = self.cuda.cudaMemcpyKind(1 if source in HOST else 2 if target in HOST else 3)
        self.call("cudaMemcpyAsync", found(target), found(source), SIZE, kind, self.streams[stream])
