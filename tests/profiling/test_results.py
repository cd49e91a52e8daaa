"""Results come back from JSON as they were, and say what does not fit; quantiles are given only where samples allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from results_of import measurement, profile

from twins_trt.errors import ProfileError
from twins_trt.profiling.results import FORMAT_VERSION, Latency, Profile, dump_profile, read_profile, write_profile


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    written = profile(measurement("x"), measurement("y", [20.0, 21.0]))
    write_profile(tmp_path / "profile.json", written)
    assert read_profile(tmp_path / "profile.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_samples_stand_on_one_line() -> None:
    text = dump_profile(profile(measurement("x"))).decode()
    assert '"samples": [ 10.0, 11.0, 12.0 ]' in text
    assert '{ "name": "head/a", "operator": "Conv", "milliseconds": 3.0, "block": "head" }' in text
    assert json.loads(text)["format_version"] == FORMAT_VERSION


def test_words_keep_their_brackets_and_spaces(tmp_path: Path) -> None:
    written = replace(profile(measurement("x  [1,   2")), command="a  {b\nc}  [", warnings=("]  {", "}"))
    write_profile(tmp_path / "p.json", written)
    assert read_profile(tmp_path / "p.json") == written


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"format_version is {FORMAT_VERSION + 1}"),
        ({"format_version": True}, "format_version is True"),
        ({"interrupted": 1}, "interrupted is 1, not true or false"),
        ({"colour": "red"}, "the field 'colour', which this version does not know"),
        ({"settings": {"rounds": "many"}}, "settings.rounds is 'many', not a whole number"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile(measurement("x")).to_json() | change))
    with pytest.raises(ProfileError, match=says) as caught:
        read_profile(path)
    assert str(path) in caught.value.cause


@pytest.mark.parametrize(("text", "says"), [("{", "is no JSON"), ("[]", "holds list"), ("\xff", "is no JSON")])
def test_files_that_hold_no_profile(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ProfileError, match=says):
        read_profile(path)


def test_a_missing_file_and_a_full_disk_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="cannot be written"):
        write_profile(tmp_path / "none" / "p.json", profile())


def test_quantiles_need_samples_beyond_them() -> None:
    few, some, many = (Latency.of([0.001 * (i + 1) for i in range(count)]) for count in (9, 20, 100))
    assert (few.p50, few.p90, few.p95, few.p99) == (5.0, None, None, None)
    assert (some.p50, some.p90, some.p95, some.p99) == (10.5, 18.1, 19.05, None)
    assert (many.p50, many.p90, many.p95, many.p99) == (50.5, 90.1, 95.05, 99.01)


def test_jitter_is_between_neighbours() -> None:
    assert Latency.of([0.010, 0.012, 0.009]).jitter == 2.5  # (2 + 3) / 2
    assert Latency.of([0.010, 0.011, 0.012]).jitter == 1.0  # a drift, although it spreads as far
    assert Latency.of([0.010]).jitter is None


def test_blocks_overhead_and_throughput_follow_from_what_is_stored() -> None:
    found = measurement("x")
    assert found.blocks() == {"head": 4.0, "other": 0.5}
    assert found.overhead == pytest.approx(10 / 8 - 1)  # both of observed calls
    assert found.batches[0].images_per_second == 200.0


def test_a_file_from_before_observed_calls_were_apart_can_be_read(tmp_path: Path) -> None:
    values = profile(measurement("x")).to_json()
    del values["measurements"][0]["observed_call"]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    (found,) = read_profile(path).measurements
    assert found.observed_call is None
    assert found.overhead == pytest.approx(9 / 8 - 1)
    assert found.rounds("engine") == [[7.0], [8.0], [9.0]]


def test_measurements_are_found_by_label() -> None:
    both: Profile = profile(measurement("x"), measurement("y"))
    assert both.of("y") is both.measurements[1]
    with pytest.raises(ProfileError, match="use one of: x, y"):
        both.of("z")
