"""Streams on a simulated GPU: the next frame is copied while one runs, in order, and nothing stays under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_engines import Faults
from machine import Machine
from threads import in_threads
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.errors import EngineError
from twins_trt.runtime import RuntimeOptions, Segmenter

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


def segmenter(machine: Machine, bundle: Any = None, **options: Any) -> Segmenter:
    made = Segmenter(bundle or machine.bundle(), machine.module.__name__, options=RuntimeOptions(**options))
    machine.made.append(made)
    return made


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize(("batch", "depth", "contexts"), [(1, 1, 2), (1, 2, 2), (1, 2, 1), (3, 2, 2), (4, 3, 3)])
def test_frames_come_in_order_with_their_masks(
    machine: Machine, picture: Draw, package: str, batch: int, depth: int, contexts: int
) -> None:
    machine.install(package=package)
    made = segmenter(machine, machine.bundle(RANGE, RANGE, batch=(1, 2, 4)), contexts=contexts)
    images = [picture(24 + 8 * (i % 5 == 3), 32) for i in range(13)]
    frames = list(made.stream(iter(images), depth=depth, batch=batch))
    assert [frame.index for frame in frames] == list(range(13))
    for image, frame in zip(images, frames, strict=True):
        assert np.array_equal(frame.result().mask, nearest_class(image))


def test_a_frame_is_copied_while_the_one_before_it_runs(machine: Machine, picture: Draw) -> None:
    images = [picture(24, 32) for _ in range(6)]
    for contexts, overlapping in ((2, True), (1, False)):
        made = segmenter(machine, contexts=contexts)
        machine.gpu.overlaps = 0
        assert len(list(made.stream(images, depth=2))) == 6
        assert (machine.gpu.overlaps > 0) == overlapping


def test_no_frame_waits_for_the_next(machine: Machine, picture: Draw) -> None:
    """A camera gives one frame and then none for a long time."""
    more = threading.Event()

    def camera() -> Iterator[UInt8Array]:
        yield picture(24, 32)
        more.wait(30)
        yield picture(24, 32)

    frames = segmenter(machine).stream(camera())
    start = time.monotonic()
    assert next(frames).error is None
    assert time.monotonic() - start < 10
    more.set()
    assert next(frames).error is None


def test_no_more_is_taken_than_asked_for(machine: Machine, picture: Draw) -> None:
    image, taken = picture(24, 32), 0

    def endless() -> Iterator[UInt8Array]:
        nonlocal taken
        while True:
            taken += 1
            yield image

    frames = segmenter(machine).stream(endless(), depth=2)
    for done in range(6):
        next(frames)
        time.sleep(0.02)  # time enough to run ahead too far
        assert done + 1 <= taken <= done + 2
    frames.close()
    assert machine.gpu.pending() == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_a_failing_enqueue_is_reported_for_its_frames_alone(machine: Machine, picture: Draw, batch: int) -> None:
    made = segmenter(machine, machine.bundle(batch=(1, 2, 4)), cuda_graph=False)
    images = [picture(24, 32) for _ in range(6)]
    frames = made.stream(images, batch=batch)
    seen = [next(frames)]
    machine.faults.enqueues = 1
    seen += frames
    failed = [frame.index for frame in seen if frame.error is not None]
    assert len(failed) == batch and failed[0] % batch == 0 and failed[0] >= batch
    assert all(isinstance(seen[i].error, EngineError) for i in failed)
    for image, frame in zip(images, seen, strict=True):
        assert frame.error is not None or np.array_equal(frame.result().mask, nearest_class(image))


def test_a_picture_that_is_none_fails_alone(machine: Machine, picture: Draw) -> None:
    images: list[Any] = [picture(24, 32), "no/such.png", picture(24, 32)]
    frames = list(segmenter(machine).stream(images))
    assert [frame.error is None for frame in frames] == [True, False, True]


@pytest.mark.parametrize("where", ["camera", "loop", "engine"])
def test_ctrl_c_leaves_nothing_running(machine: Machine, picture: Draw, where: str) -> None:
    """An interrupt may come while the iterable, the caller's own code or the wait for the GPU runs."""
    made: Any = segmenter(machine)
    images = [picture(24, 32) for _ in range(6)]
    synchronize = type(made.engine._memory).synchronize
    calls = 0

    def interrupted(self: Any, stream: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        synchronize(self, stream)

    def camera() -> Iterator[UInt8Array]:
        yield from images[:3]
        if where == "camera":
            raise KeyboardInterrupt
        yield from images[3:]

    with pytest.MonkeyPatch.context() as patch:
        if where == "engine":
            patch.setattr(type(made.engine._memory), "synchronize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for frame in made.stream(camera()):
                if where == "loop" and frame.index == 2:
                    raise KeyboardInterrupt
    assert machine.gpu.pending() == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "twins-trt-stream"]
    # Every slot was given back: two calls at once, and streams, still work.
    pending = [made.engine.submit(image[None], wait=False) for image in images[:2]]
    masks = [call.result()["mask"][0] for call in pending]
    assert all(np.array_equal(mask, nearest_class(image)) for mask, image in zip(masks, images, strict=False))


def test_streams_that_take_turns_do_not_block_each_other(machine: Machine, picture: Draw) -> None:
    """All in one thread: one that waited for what another holds would wait forever."""
    made = segmenter(machine, contexts=2)
    groups = [[picture(24, 32) for _ in range(5)] for _ in range(4)]
    streams = [made.stream(group, depth=3) for group in groups]
    for images, frames in zip(zip(*groups, strict=True), zip(*streams, strict=True), strict=True):
        extra = picture(24, 32)
        assert np.array_equal(made(extra).mask, nearest_class(extra))
        for image, frame in zip(images, frames, strict=True):
            assert np.array_equal(frame.result().mask, nearest_class(image))


def test_streams_of_several_threads_share_the_slots(machine: Machine, picture: Draw) -> None:
    made = segmenter(machine, contexts=2)
    groups = [[picture(24, 32) for _ in range(10)] for _ in range(4)]

    def wrong(images: list[UInt8Array]) -> Iterator[int]:
        for image, frame in zip(images, made.stream(images), strict=True):
            if not np.array_equal(frame.result().mask, nearest_class(image)):
                yield frame.index

    assert in_threads(wrong, groups) == []


def test_stages_of_a_stream_are_timed(machine: Machine, picture: Draw) -> None:
    seen: list[str] = []
    made = segmenter(machine, observe=lambda stage, seconds: seen.append(stage))
    seen.clear()
    list(made.stream([picture(24, 32)] * 3))
    for stage in ("decode", "preprocess", "run", "copy_in", "engine", "copy_out", "postprocess"):
        assert seen.count(stage) == 3


def test_a_gpu_without_room_for_two_runs_a_stream_one_by_one(machine: Machine, picture: Draw) -> None:
    machine.install(faults=Faults(contexts=1))
    images = [picture(24, 32) for _ in range(5)]
    for image, frame in zip(images, segmenter(machine).stream(images), strict=True):
        assert np.array_equal(frame.result().mask, nearest_class(image))
