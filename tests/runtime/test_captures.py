"""Which calls are captured and which captures are dropped. No test needs a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twins_trt.runtime.engines.captures import Captures, Staging


class Call:
    """What a capture makes: its key, and whether it was given up."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_shape_is_captured_when_it_comes_back() -> None:
    made: list[Call] = []
    captures = Captures(lambda key: made.append(Call(key)) or made[-1], capacity=2)
    assert captures.get("a") is None
    first = captures.get("a")
    assert first is made[0] and first.key == "a"
    assert captures.get("a") is first
    assert len(made) == len(captures) == 1


def test_the_least_recently_used_is_given_up_first_and_made_again_when_it_returns() -> None:
    captures = Captures(Call, capacity=2)
    calls = {}
    for key in "abab":
        calls[key] = captures.get(key)
    assert captures.get("a") is calls["a"]  # b is now the older one
    assert captures.get("c") is None
    assert calls["b"].closed == 0  # a shape that came once pushes nothing out
    assert captures.get("c").key == "c"
    assert (calls["a"].closed, calls["b"].closed, len(captures)) == (0, 1, 2)
    again = captures.get("b")
    assert again is not calls["b"] and again.key == "b"
    assert calls["a"].closed == 1


def test_the_old_one_is_gone_before_the_new_one_is_made() -> None:
    alive: list[str] = []

    class Counted(Call):
        def __init__(self, key: str) -> None:
            super().__init__(key)
            alive.append(key)
            assert len(alive) == 1

        def close(self) -> None:
            alive.remove(self.key)

    captures = Captures(Counted, capacity=1)
    for key in "aabbaab":
        captures.get(key)
    assert alive == ["b"]


def test_a_capture_that_fails_leaves_the_rest_usable() -> None:
    def capture(key: str) -> Call:
        if key == "bad":
            raise RuntimeError("no memory")
        return Call(key)

    captures = Captures(capture, capacity=2)
    for key in ("good", "good", "bad"):
        captures.get(key)
    with pytest.raises(RuntimeError, match="no memory"):
        captures.get("bad")
    assert captures.get("good").key == "good"


def test_shapes_that_never_come_back_are_forgotten() -> None:
    captures = Captures(Call, capacity=1)
    for size in range(100):
        assert captures.get(size) is None
    assert captures.get(0) is None  # seen, but too long ago
    assert captures.get(0).key == 0


def test_clear_gives_up_all() -> None:
    captures = Captures(Call, capacity=3)
    calls = [captures.get(key) for key in "aabb"][1::2]
    captures.clear()
    assert [call.closed for call in calls] == [1, 1]
    assert len(captures) == 0
    assert captures.get("a") is None


def test_an_image_is_copied_whatever_its_strides() -> None:
    staging = Staging((2, 4, 5, 3), torch.uint8, torch.device("cpu"))
    image = np.arange(2 * 8 * 5 * 3, dtype=np.uint8).reshape(2, 8, 5, 3)[:, ::2]
    image.flags.writeable = False
    staging.fill(image)
    assert np.array_equal(staging.device.numpy(), image)
    staging.fill(image[::-1])
    assert np.array_equal(staging.device.numpy(), image[::-1])
