"""The search on parts of known harm: it ends within its bound, and returns the cheapest set that passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.builders.fallback import Outcome, PlanScore, SearchState, search
from twins_trt.builders.fallback.search import Parts


class Oracle:
    """Parts with a cost and a harm each; a plan passes when the harm that is left is at most `allowed`."""

    def __init__(self, harm: list[float], cost: list[float], allowed: float) -> None:
        self.harm = {f"part {i}": value for i, value in enumerate(harm)}
        self.costs = {f"part {i}": value for i, value in enumerate(cost)}
        self.allowed = allowed
        self.asked: list[Parts] = []

    @property
    def ranked(self) -> list[str]:
        return sorted(self.harm, key=lambda name: -self.harm[name])

    def cost(self, parts: Parts) -> float:
        return sum(self.costs[name] for name in parts)

    def evaluate(self, parts: Parts) -> PlanScore:
        self.asked.append(parts)
        left = sum(value for name, value in self.harm.items() if name not in parts)
        return PlanScore(left <= self.allowed, left)

    def search(self, limit: int, known: dict[Parts, PlanScore] | None = None) -> Outcome:
        return search(self.ranked, cost=self.cost, evaluate=self.evaluate, max_evaluations=limit, known=known)


values = st.integers(0, 100).map(float)
oracles = st.lists(st.tuples(values, st.integers(1, 50).map(float)), max_size=24).flatmap(
    lambda pairs: st.builds(
        Oracle, st.just([harm for harm, _ in pairs]), st.just([cost for _, cost in pairs]), st.integers(-1, 300)
    )
)


@settings(deadline=None, max_examples=300)
@given(oracles, st.integers(1, 40))
def test_it_ends_within_its_bound_with_the_cheapest_that_passed(oracle: Oracle, limit: int) -> None:
    outcome = oracle.search(limit)
    assert 1 <= len(outcome.evaluations) == len(oracle.asked) == len(set(oracle.asked)) <= limit
    assert outcome.evaluations[0].reverted == frozenset()
    passed = [each for each in outcome.evaluations if each.score.passed]
    assert (outcome.chosen is None) == (not passed)
    for each in passed:
        assert outcome.chosen is not None and outcome.chosen.cost <= each.cost
    assert outcome.best.score.passed == bool(passed)


@settings(deadline=None, max_examples=300)
@given(oracles)
def test_with_room_it_finds_what_passes_and_nothing_in_it_is_spare(oracle: Oracle) -> None:
    outcome = oracle.search(1000)
    assert not outcome.exhausted
    everything = frozenset(oracle.harm)
    assert (outcome.chosen is None) == (oracle.allowed < 0)
    if outcome.chosen is None:
        assert outcome.evaluations[-1].reverted == everything  # said only after not even FP16 has passed
        return
    shortest = next(n for n in range(len(everything) + 1) if oracle.evaluate(frozenset(oracle.ranked[:n])).passed)
    assert outcome.chosen.cost <= oracle.cost(frozenset(oracle.ranked[:shortest]))  # stepping back made it no worse
    for name in outcome.chosen.reverted:
        assert not oracle.evaluate(outcome.chosen.reverted - {name}).passed


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=64, max_size=64), st.integers(1, 30))
def test_random_scores_end_the_search_too(passes: list[bool], limit: int) -> None:
    names = [str(i) for i in range(12)]
    outcome = search(
        names,
        cost=len,
        evaluate=lambda parts: PlanScore(passes[crc32(",".join(sorted(parts)).encode()) % 64], float(len(parts))),
        max_evaluations=limit,
    )
    assert len(outcome.evaluations) <= limit
    assert (outcome.chosen is not None) == any(each.score.passed for each in outcome.evaluations)


def test_one_bad_part_of_forty_takes_two_evaluations() -> None:
    oracle = Oracle([50.0] + [0.1] * 39, [1.0] * 40, allowed=5.0)
    outcome = oracle.search(16)
    assert [sorted(each.reverted) for each in outcome.evaluations] == [[], ["part 0"]]
    assert outcome.chosen is not None and not outcome.exhausted


def test_few_evaluations_still_reach_the_whole() -> None:
    oracle = Oracle([1.0] * 40, [1.0] * 40, allowed=0.0)
    outcome = oracle.search(4)
    assert outcome.chosen is not None and len(outcome.chosen.reverted) == 40
    assert len(outcome.evaluations) <= 4


def test_a_search_goes_on_from_what_is_known() -> None:
    whole = Oracle([9.0, 7.0, 5.0, 3.0, 1.0], [1.0, 8.0, 1.0, 1.0, 1.0], allowed=9.0)
    expected = whole.search(20)
    known = {each.reverted: each.score for each in expected.evaluations[:3]}
    again = Oracle([9.0, 7.0, 5.0, 3.0, 1.0], [1.0, 8.0, 1.0, 1.0, 1.0], allowed=9.0)
    assert again.search(20, known) == expected
    assert again.asked == whole.asked[3:]


def test_what_agrees_too_little_counts_when_nothing_passes() -> None:
    """The plan with the smallest drop may be the one that misses the floor of the agreement by most."""
    scores = {
        frozenset[str](): PlanScore(False, -0.4, 0.968, missing=1.7),
        frozenset({"a"}): PlanScore(False, 0.1, 0.980, missing=0.5),
        frozenset({"a", "b"}): PlanScore(False, 0.9, 0.990, missing=0.4),
    }
    outcome = search(["a", "b"], cost=len, evaluate=scores.__getitem__, max_evaluations=8)
    assert outcome.chosen is None and outcome.best.reverted == {"a", "b"}


def test_a_state_survives_and_one_of_another_search_does_not(tmp_path: Path) -> None:
    state = SearchState(tmp_path / "fallback.json", "key")
    state.scores[frozenset({"a", "b"})] = PlanScore(True, 0.25, 0.987, 0.5)
    state.harm["a"] = 0.5
    state.save()
    assert SearchState.open(state.path, "key") == state
    assert SearchState.open(state.path, "other") == SearchState(state.path, "other")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "\0" * len(text),
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"harm": {', '"harm": 3, "was": {'),
        lambda text: text.replace("0.25", '"much"'),
        lambda text: text.replace('"passed"', '"past"'),
    ],
)
def test_a_damaged_state_is_named_and_the_search_begins_anew(
    tmp_path: Path, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    state = SearchState(tmp_path / "search.json", "key")
    state.scores = {frozenset(): PlanScore(False, 2.0), frozenset({"a"}): PlanScore(True, 0.25)}
    state.harm["a"] = 0.5
    state.save()
    text = state.path.read_text()
    assert damage(text) != text
    state.path.write_text(damage(text))
    assert SearchState.open(state.path, "key") == SearchState(state.path, "key")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{state.path} is damaged (")
    assert caplog.messages[0].endswith(": the search starts over") and not state.path.exists()
