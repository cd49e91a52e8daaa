"""Bars as SVG, drawn from results without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, LABEL, BAR, GAP = 720, 190, 13, 12
OURS, THEIRS, INK = "#2f6f4f", "#b9b9b4", "#444444"


def bars(rows: Sequence[tuple[str, float, float | None]], *, legend: tuple[str, str]) -> str:
    """Two horizontal bars a row. rows: (name, ours, theirs or None). legend: what ours and theirs are."""
    largest = max(value for _, ours, theirs in rows for value in (ours, theirs or 0))
    scale = (WIDTH - LABEL - 60) / largest
    parts = []
    y = 34
    for name, ours, theirs in rows:
        parts.append(_text(LABEL - 8, y + BAR + 4, name, anchor="end"))
        for value, colour, offset in ((ours, OURS, 0), (theirs, THEIRS, BAR)):
            if value is not None:
                parts.append(_rectangle(LABEL, y + offset, value * scale, BAR - 1, colour))
                parts.append(_text(LABEL + value * scale + 5, y + offset + BAR - 3, f"{value:.0f}"))
        y += 2 * BAR + GAP
    x = LABEL
    for words, colour in zip(legend, (OURS, THEIRS), strict=True):
        parts += [_rectangle(x, 10, 12, 12, colour), _text(x + 18, 20, words)]
        x += 40 + 7 * len(words)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{colour}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}" fill="{INK}">{words}</text>'
