"""Charts as SVG. Texts are escaped here. Colours and fonts come from style.css, so that charts follow the theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 440  # of every drawing, in its own units: about as wide as a phone, so that texts stay readable there
_LEFT, _RIGHT = 10, 10
_ROW = 44
_DOTS = 200  # at most so many samples of a distribution are drawn; quantiles are of all samples


@dataclass(frozen=True)
class Spread:
    """A row of `distribution`: samples, and the marks at its quantiles by name."""

    label: str
    samples: Sequence[float]
    marks: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: a value and the ends of its interval, None without one."""

    label: str
    value: float
    low: float | None
    high: float | None
    bad: bool = False


@dataclass(frozen=True)
class Work:
    """A dot of `roofline`. intensity: FLOP per byte. speed: GFLOP/s."""

    label: str
    intensity: float
    speed: float


def distribution(rows: Sequence[Spread], *, unit: str) -> str:
    """Each spread as a row of dots over one logarithmic axis, with a tick at each mark."""
    every = [value for row in rows for value in row.samples]
    axis = _LogAxis(min(every), max(every), _LEFT, WIDTH - _RIGHT)
    height = _ROW * len(rows) + 26
    parts = _vertical_grid(axis, height - 22, unit)
    for place, row in enumerate(rows):
        middle = place * _ROW + 28
        parts.append(_text(_LEFT, middle - 13, row.label, "label"))
        step = max(1, len(row.samples) // _DOTS)
        for i, value in enumerate(row.samples[::step]):
            wave = 4.5 * math.sin(2.4 * i)  # golden-angle steps keep dots of equal times apart
            parts.append(f'<circle class="dot" cx="{axis(value):.1f}" cy="{middle + wave:.1f}" r="2"/>')
        for name, value in row.marks:
            x = axis(value)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 8}" y2="{middle + 8}"/>')
            parts.append(_text(x, middle + 17, name, "tiny", anchor="middle"))
    return _svg(height, parts)


def intervals(rows: Sequence[Interval], *, unit: str, bound: float | None = None, bound_label: str = "") -> str:
    """Each row as a dot with a whisker, over one linear axis that includes 0. bound: drawn as a broken line."""
    ends = [0.0] + ([bound] if bound is not None else [])
    ends += [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    lowest, highest = min(ends), max(ends)
    room = 0.08 * (highest - lowest) or 0.1
    axis = _LinearAxis(lowest - room, highest + room, _LEFT, WIDTH - _RIGHT)
    height = _ROW * len(rows) + 26
    parts = _vertical_grid(axis, height - 22, unit)
    parts.append(f'<line class="zero" x1="{axis(0):.1f}" x2="{axis(0):.1f}" y1="4" y2="{height - 22}"/>')
    if bound is not None:
        x = axis(bound)
        parts.append(f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 22}"/>')
        parts.append(_text(x - 4, height - 26, bound_label, "tiny", anchor="end"))
    for place, row in enumerate(rows):
        middle, kind = place * _ROW + 30, "bad" if row.bad else "good"
        parts.append(_text(_LEFT, middle - 12, row.label, "label"))
        if row.low is not None and row.high is not None:
            low, high = axis(row.low), axis(row.high)
            parts.append(f'<line class="whisker {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<circle class="value {kind}" cx="{axis(row.value):.1f}" cy="{middle}" r="4.5"/>')
    return _svg(height, parts)


def roofline(works: Sequence[Work], *, peak: float, bandwidth: float) -> str:
    """Dots under the roof of a device, both axes logarithmic. peak: GFLOP/s. bandwidth: GB/s."""
    ridge = peak / bandwidth
    across = _LogAxis(
        min([w.intensity for w in works] + [ridge / 8]),
        max([w.intensity for w in works] + [ridge * 4]),
        40,
        WIDTH - _RIGHT,
    )
    height = 260
    up = _LogAxis(min(w.speed for w in works), peak, height - 30, 14)
    parts = _vertical_grid(across, height - 26, "FLOP/byte", top=8)
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="40" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(36, y + 3, _short(value), "tiny", anchor="end"))
    start = max(across.low, up.low / bandwidth)
    corners = [(start, start * bandwidth), (ridge, peak), (across.high, peak)]
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in corners)
    parts.append(f'<polyline class="roof" points="{path}"/>')
    parts.append(_text(40, 10, "GFLOP/s", "tiny"))
    for work in works:
        x, y = across(work.intensity), up(work.speed)
        title = f"<title>{escape(work.label)}: {work.speed:,.0f} GFLOP/s</title>"
        parts.append(f'<circle class="value good" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>')
    return _svg(height, parts)


@dataclass(frozen=True)
class _LinearAxis:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(factor for factor in (1, 2, 5) if (self.high - self.low) / (step * factor) <= 6)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


class _LogAxis:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low / 1.06, high * 1.06
        self._line = _LinearAxis(math.log10(self.low), math.log10(self.high), start, end)

    def __call__(self, value: float) -> float:
        return self._line(math.log10(min(max(value, self.low), self.high)))

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            ticks = [f * 10.0**d for d in decades for f in factors if self.low <= f * 10.0**d <= self.high]
            if len(ticks) >= 3:
                return ticks
        return _LinearAxis(self.low, self.high, 0, 1).ticks()


def _vertical_grid(axis: _LinearAxis | _LogAxis, bottom: float, unit: str, *, top: float = 4) -> list[str]:
    ticks = axis.ticks()
    parts = []
    for place, value in enumerate(ticks):
        x = axis(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.1f}"/>')
        last = place == len(ticks) - 1
        anchor = "end" if x > WIDTH - 40 else "start" if x < 24 else "middle"
        parts.append(_text(x, bottom + 16, _short(value) + (f" {unit}" if last else ""), "tiny", anchor=anchor))
    return parts


def _short(value: float) -> str:
    if abs(value) >= 1e4:
        return f"{value / 1000:,.0f}k"
    return f"{value:.6g}".replace("-", "−")


def _text(x: float, y: float, content: str, kind: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" aria-hidden="true">{"".join(parts)}</svg>'
