"""Streams: in order, lazily, bounded, and a frame that fails stops nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_segmenter import NumpyEngine
from tiny_graphs import MakeBundle, UInt8Array, nearest_class

from twins_trt.errors import EngineError, ImageError, UsageError
from twins_trt.runtime import Segmenter

Draw = Callable[[int, int], UInt8Array]


def stream_threads() -> int:
    return sum(thread.name == "twins-trt-stream" for thread in threading.enumerate())


@pytest.mark.parametrize(("batch", "depth"), [(None, 1), (None, 2), (3, 1), (4, 3)])
def test_frames_come_in_order_with_their_masks(
    make_bundle: MakeBundle, picture: Draw, batch: int | None, depth: int
) -> None:
    images = [picture(24 + i % 3, 32) for i in range(11)]
    segmenter = Segmenter(make_bundle((8, 32, 64), (8, 32, 64), batch=(1, 2, 4)))
    frames = list(segmenter.stream(iter(images), depth=depth, batch=batch))
    assert [frame.index for frame in frames] == list(range(11))
    for image, frame in zip(images, frames, strict=True):
        assert frame.source is image
        assert np.array_equal(frame.result().mask, nearest_class(image))
    assert stream_threads() == 0


@pytest.mark.parametrize(("batch", "depth", "most"), [(1, 1, 1), (1, 2, 2), (2, 3, 6)])
def test_no_more_is_taken_than_asked_for(
    make_bundle: MakeBundle, picture: Draw, batch: int, depth: int, most: int
) -> None:
    image, taken = picture(24, 32), 0

    def endless() -> Iterator[UInt8Array]:
        nonlocal taken
        while True:
            taken += 1
            yield image

    frames = Segmenter(make_bundle(batch=(1, 2, 4))).stream(endless(), depth=depth, batch=batch)
    assert taken == 0
    for done in range(6):
        next(frames)
        time.sleep(0.02)  # time enough to run ahead too far
        assert done + 1 <= taken <= done + most
    frames.close()
    assert stream_threads() == 0


def test_reading_goes_on_while_the_engine_works(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle, image = make_bundle(), picture(24, 32)
    engine = NumpyEngine(bundle, delay=0.02)
    taken: list[int] = []

    def camera() -> Iterator[UInt8Array]:
        for _ in range(8):
            time.sleep(0.02)
            taken.append(engine.inside)  # whether the engine was at work when the frame came
            yield image

    assert len(list(Segmenter(bundle, engine).stream(camera(), depth=2))) == 8
    assert any(taken)


def test_a_fixed_batch_is_filled(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle(batch=4)
    engine = NumpyEngine(bundle)
    images = [picture(24, 32) for _ in range(6)]
    frames = list(Segmenter(bundle, engine).stream(images))
    assert engine.batches == [4, 4]
    assert all(np.array_equal(f.result().mask, nearest_class(i)) for f, i in zip(frames, images, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_picture_that_fails_is_reported_in_its_place(
    make_bundle: MakeBundle, picture: Draw, tmp_path: Path, batch: int
) -> None:
    image = picture(24, 32)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(image).save(good)
    bad.write_bytes(b"no image")
    items: list[Any] = [good, bad, image, np.zeros((3, 3)), str(good)]
    frames = list(Segmenter(make_bundle(batch=(1, 2, 4))).stream(items, batch=batch))
    assert [frame.error is None for frame in frames] == [True, False, True, False, True]
    assert [frame.segmentation is None for frame in frames] == [False, True, False, True, False]
    assert all(np.array_equal(frames[i].result().mask, nearest_class(image)) for i in (0, 2, 4))
    with pytest.raises(ImageError, match=r"bad\.png cannot be decoded"):
        frames[1].result()
    assert isinstance(frames[3].error, ImageError)


def test_an_engine_that_fails_is_reported_for_the_frames_it_had(make_bundle: MakeBundle, picture: Draw) -> None:
    bundle = make_bundle()
    engine = NumpyEngine(bundle)
    frames = Segmenter(bundle, engine).stream([picture(24, 32) for _ in range(3)])
    assert next(frames).error is None
    engine.failing = True
    failed = next(frames)
    assert isinstance(failed.error, EngineError)
    engine.failing = False
    assert next(frames).error is None
    assert next(frames, None) is None


def test_what_the_iterable_raises_comes_after_the_frames_before_it(make_bundle: MakeBundle, picture: Draw) -> None:
    def camera() -> Iterator[UInt8Array]:
        yield picture(24, 32)
        yield picture(24, 32)
        raise ConnectionResetError("camera unplugged")

    frames = Segmenter(make_bundle()).stream(camera())
    assert [next(frames).error, next(frames).error] == [None, None]
    with pytest.raises(ConnectionResetError, match="unplugged"):
        next(frames)
    assert stream_threads() == 0


def test_an_interrupt_of_the_engine_ends_the_stream_and_its_thread(make_bundle: MakeBundle, picture: Draw) -> None:
    class Interrupted(NumpyEngine):
        def __call__(self, image: Any, **more: Any) -> dict[str, Any]:
            raise KeyboardInterrupt

    bundle = make_bundle()
    with pytest.raises(KeyboardInterrupt):
        list(Segmenter(bundle, Interrupted(bundle)).stream([picture(24, 32)] * 100))
    assert stream_threads() == 0


def test_ctrl_c_interrupts_the_wait_for_a_camera(make_bundle: MakeBundle, picture: Draw) -> None:
    answer = threading.Event()

    def camera() -> Iterator[UInt8Array]:
        yield picture(24, 32)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        answer.wait(30)

    frames = Segmenter(make_bundle()).stream(camera(), depth=1)
    assert next(frames).error is None
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(frames)
    assert time.monotonic() - started < 10
    answer.set()


def test_leaving_the_loop_stops_the_thread(make_bundle: MakeBundle, picture: Draw) -> None:
    stopped = threading.Event()

    def camera() -> Iterator[UInt8Array]:
        try:
            while True:
                yield picture(24, 32)
        finally:
            stopped.set()

    for frame in Segmenter(make_bundle()).stream(camera(), depth=4):
        if frame.index == 2:
            break
    assert stopped.wait(5)
    assert stream_threads() == 0


def test_a_camera_that_never_answers_does_not_hold_up_the_end(make_bundle: MakeBundle, picture: Draw) -> None:
    answer = threading.Event()

    def camera() -> Iterator[UInt8Array]:
        yield picture(24, 32)
        answer.wait(30)

    frames = Segmenter(make_bundle()).stream(camera())
    next(frames)
    started = time.monotonic()
    frames.close()
    assert time.monotonic() - started < 10
    answer.set()


def test_an_empty_stream_ends(make_bundle: MakeBundle) -> None:
    assert list(Segmenter(make_bundle()).stream([])) == []


def test_two_streams_of_one_segmenter_do_not_mix(make_bundle: MakeBundle, picture: Draw) -> None:
    segmenter = Segmenter(make_bundle())
    left, right = ([picture(24, 32) for _ in range(8)] for _ in range(2))
    for one, other, a, b in zip(left, right, segmenter.stream(left), segmenter.stream(right), strict=True):
        assert np.array_equal(a.result().mask, nearest_class(one))
        assert np.array_equal(b.result().mask, nearest_class(other))


def test_impossible_depths_and_batches_are_refused_at_once(make_bundle: MakeBundle) -> None:
    segmenter = Segmenter(make_bundle(batch=(1, 2, 4)))
    for arguments, said in (({"depth": 0}, "depth is 0"), ({"batch": 0}, "batch is 0"), ({"batch": 5}, "batch is 5")):
        with pytest.raises(UsageError, match=said):
            segmenter.stream([], **arguments)
