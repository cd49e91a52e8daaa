"""The video example on a small file that is made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_examples import EXAMPLES, run
from tiny_graphs import PALETTE, PROTOTYPES, MakeBundle, nearest_class

cv2 = pytest.importorskip("cv2")

COUNT, SIZE = 7, (48, 64)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Seven frames, each half one class and half another, which JPEG leaves recognizable."""
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, SIZE[::-1])
    assert writer.isOpened()
    for index in range(COUNT):
        frame = np.empty((*SIZE, 3), np.uint8)
        frame[:, :32] = PROTOTYPES[index % 5]
        frame[:, 32:] = PROTOTYPES[(index + 1) % 5]
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_a_video_becomes_a_video_of_overlays(make_bundle: MakeBundle, video: Path, tmp_path: Path) -> None:
    bundle = make_bundle(*SIZE)
    out = tmp_path / "new" / "overlay.avi"
    said = run("segment_video.py", str(bundle.path), str(video), "--out", str(out))
    assert said.startswith(f"{COUNT} frames in ") and said.rstrip().endswith("0 failed")
    capture = cv2.VideoCapture(str(out))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    assert len(frames) == COUNT and capture.get(cv2.CAP_PROP_FPS) == 10
    for index, frame in enumerate(frames):
        for column, number in ((16, index % 5), (48, (index + 1) % 5)):
            expected = (PROTOTYPES[number] + np.array(PALETTE[number])) / 2
            assert np.abs(frame[24, column] - expected).max() < 16  # JPEG, twice
            assert nearest_class(PROTOTYPES[number].astype(np.uint8)[None, None])[0, 0] == number


def test_it_stops_after_so_many_frames(make_bundle: MakeBundle, video: Path) -> None:
    assert run("segment_video.py", str(make_bundle(*SIZE).path), str(video), "--frames", "3").startswith("3 frames in ")


def test_a_source_that_cannot_be_opened_is_said_to_be(make_bundle: MakeBundle, tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / "segment_video.py"), str(make_bundle(*SIZE).path), str(tmp_path / "no.mp4")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "no.mp4 cannot be opened" in done.stderr
