"""Tables show what is there and leave out what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_of import measurement, profile

from twins_trt.profiling import tables
from twins_trt.profiling.results import Layer, Memory, Ratio


def test_latencies_have_a_row_a_candidate_and_no_empty_columns() -> None:
    found = replace(
        profile(measurement("x"), measurement("y", [20.0, 24.0])),
        ratios=(Ratio("y", "x", "engine", 9.0, None, None, 1), Ratio("y", "x", "end_to_end", 0.5, 0.45, 0.55, 4)),
    )
    assert tables.latencies(found) == [
        ("", "engine", "precision", "p50", "jitter", "engine p50", "times as fast"),
        ("x", "onnxruntime", "fp32", "11.0", "1.00", "8.00", "1"),
        ("y", "onnxruntime", "fp32", "22.0", "4.00", "19.0", "0.50 (0.45 to 0.55)"),
    ]


def test_stages_say_what_is_not_engine() -> None:
    assert tables.stages(profile(measurement("x"))) == [
        ("", "decode", "engine", "observed call", "call", "beside the engine"),
        ("x", "2.00", "8.00", "10.0", "9.00", "25.0 %"),
    ]


def test_stages_of_a_file_whose_calls_were_all_observed_have_one_call() -> None:
    old = replace(measurement("x"), observed_call=None)
    assert tables.stages(profile(old)) == [
        ("", "decode", "engine", "call", "beside the engine"),
        ("x", "2.00", "8.00", "9.00", "12.5 %"),
    ]


def test_throughput_by_batch() -> None:
    bare = replace(measurement("y"), batches=())
    assert tables.throughput(profile(measurement("x"), bare)) == [
        ("images/s at batch", "4"),
        ("x", "200.0"),
        ("y", ""),
    ]
    assert tables.throughput(profile(bare)) == []


def test_memory_and_energy() -> None:
    bare = replace(measurement("y"), memory=Memory(), energy=None)
    assert tables.resources(profile(measurement("x"), bare)) == [
        ("", "host MiB", "host peak MiB", "W", "idle W", "J/image"),
        ("x", "12", "20", "9.50", "4.00", "0.120"),
        ("y", "", "", "", "", ""),
    ]
    assert tables.resources(profile(bare)) == []


def test_blocks_with_their_share() -> None:
    assert tables.blocks(measurement("x")) == [
        ("block", "ms", "share"),
        ("head", "4.00", "88.9 %"),
        ("other", "0.50", "11.1 %"),
    ]
    assert tables.blocks(replace(measurement("x"), layers=())) == []
    assert tables.blocks(replace(measurement("x"), layers=(Layer("b", "Add", 0.5),))) == []


@pytest.mark.parametrize(("value", "text"), [(123.45, "123"), (12.345, "12.3"), (1.2345, "1.23"), (None, "")])
def test_three_digits_that_count(value: float | None, text: str) -> None:
    assert tables.ms(value) == text
