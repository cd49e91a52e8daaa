"""Segments a video as it arrives: a file, a camera, an RTSP stream or a GStreamer pipeline.

    python examples/segment_video.py x.bundle street.mp4 --out overlay.avi
    python examples/segment_video.py x.bundle 0                                    # camera 0, until Ctrl-C
    python examples/segment_video.py x.bundle rtsp://camera.local/stream --frames 500
    python examples/segment_video.py x.bundle "nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1280,height=720 ! \\
        nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1"

It needs OpenCV. GStreamer pipelines need an OpenCV with GStreamer, such as JetPack's; the one on PyPI has none. While
the engine works on one frame, the next one is read, resized and, on a GPU, copied.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from twins_trt import Segmenter


def open_capture(source: str) -> Any:
    """The capture of a source; a `!` in it makes it a pipeline."""
    if source.isdecimal():
        return cv2.VideoCapture(int(source))
    if "!" in source:
        return cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    return cv2.VideoCapture(source)


def read_frames(capture: Any, limit: int | None) -> Iterator[np.ndarray]:
    """RGB frames, at most `limit`, until the source ends. OpenCV gives BGR."""
    while limit is None or limit > 0:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        limit = None if limit is None else limit - 1


def new_writer(path: Path, frame: np.ndarray, rate: float) -> Any:
    """A writer of Motion JPEG, which every OpenCV can write without another codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (frame.shape[1], frame.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    if not writer.isOpened():
        raise SystemExit(f"{path} cannot be written: give a name that ends in .avi")
    return writer


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", help="a video file, a camera's number, an RTSP address or a GStreamer pipeline")
    parser.add_argument("--out", type=Path, help="write the frames with the classes' colours over them to this .avi")
    parser.add_argument("--engine", default="auto", help="what runs the bundle (default %(default)s)")
    parser.add_argument("--frames", type=int, help="stop after so many")
    arguments = parser.parse_args()

    capture = open_capture(arguments.source)
    if not capture.isOpened():
        raise SystemExit(f"{arguments.source} cannot be opened: check the name, and OpenCV's build for pipelines")
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    writer, done, failed = None, 0, 0
    start = time.perf_counter()
    with Segmenter(arguments.bundle, arguments.engine) as segmenter:
        frames = segmenter.stream(read_frames(capture, arguments.frames))
        try:
            for frame in frames:
                if frame.error is not None:  # a bad frame does not end the video
                    print(f"frame {frame.index}: {frame.error}")
                    failed += 1
                    continue
                done += 1
                if arguments.out is None:
                    continue
                overlay = frame.result().overlay()
                if writer is None:
                    writer = new_writer(arguments.out, overlay, rate)
                writer.write(cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
        except KeyboardInterrupt:
            print("stopped")
        finally:
            frames.close()
            capture.release()
            if writer is not None:
                writer.release()
    seconds = time.perf_counter() - start
    print(
        f"{done} frames in {seconds:.1f} s with {segmenter.engine.name}, {done / seconds:.1f} a second, {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
