"""Arithmetic on sizes, known and unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twins_trt.builders.export.dims import Sym, ceil_div, known, minimum, pad_to_multiple


@given(value=st.integers(1, 5000), of=st.integers(1, 64))
def test_integer_arithmetic_of_known_sizes(value: int, of: int) -> None:
    assert ceil_div(value, of) == -(-value // of)
    assert (value + pad_to_multiple(value, of)) % of == 0 and 0 <= pad_to_multiple(value, of) < of
    assert minimum(value, of) == min(value, of)


def test_unknown_sizes_stay_symbols_and_neutral_steps_vanish() -> None:
    side = Sym("axis", ("image", 1))
    assert side * 1 is side and side + 0 is side and side // 1 is side and 1 * side is side and 0 + side is side
    assert not known(side) and known(3, 4)
    assert ceil_div(side, 4) == Sym("Div", (Sym("Add", (side, 3)), 4))
    assert side * 2 == side * 2 and side * 2 != side * 3
