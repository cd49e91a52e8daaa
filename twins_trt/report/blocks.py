"""The content of a report, before it is HTML or Markdown: sections of facts, tables, charts, pictures and notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mood = Literal["plain", "good", "warn", "bad"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    text: what is shown, empty where nothing was measured. key: sorts the column, None to sort by the text. share: the
    length of a bar behind the number, 0 to 1. mood: its colour.
    """

    text: str
    key: float | None = None
    share: float | None = None
    mood: Mood = "plain"


@dataclass(frozen=True)
class Column:
    """A column of a table. title: its head. numeric: aligned to the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by any column. caption: what it shows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a value, in order. Pairs with an empty value are left out."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chart:
    """A drawing. Its numbers are in a table too, since Markdown shows no drawing.

    svg: markup made by `report.charts`. title: what it shows, also read out by screen readers. note: how to read it.
    """

    svg: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. image: a JPEG file. width, height: pixels."""

    caption: str
    image: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """The panels of one image side by side. title: its name and scores."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Note:
    """A sentence or two."""

    text: str
    mood: Mood = "plain"


@dataclass(frozen=True)
class Code:
    """A command to run."""

    text: str


Block = Table | Facts | Chart | Pictures | Note | Code


@dataclass(frozen=True)
class Section:
    """A section of the page. key: its anchor, letters only."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Tile:
    """A figure of the summary. detail: how it was measured, or its limit."""

    label: str
    value: str
    detail: str = ""
    mood: Mood = "plain"


@dataclass(frozen=True)
class Page:
    """A whole report.

    gate: its verdict in a few words, such as `gate passed, simulated`. mood: the colour of these words. made: what
    wrote the report, and when.
    """

    title: str
    subtitle: str
    gate: str
    mood: Mood
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    made: str


def number(
    value: float | None, digits: int = 2, *, signed: bool = False, share: float | None = None, mood: Mood = "plain"
) -> Cell:
    """A number, shown rounded and sorted by its full value; an empty cell for None."""
    if value is None:
        return Cell("")
    shown = f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")
    return Cell(shown, float(value), share, mood)


def signed_range(low: float, high: float, *, digits: int = 2) -> str:
    """An interval in words, both ends with their signs."""
    return f"{low:+.{digits}f} to {high:+.{digits}f}".replace("-", "−")


def without_empty(table: Table) -> Table:
    """The table without the columns whose cells are all empty."""
    kept = [place for place in range(len(table.columns)) if any(row[place].text for row in table.rows)]
    columns = tuple(table.columns[place] for place in kept)
    return Table(table.caption, columns, tuple(tuple(row[place] for place in kept) for row in table.rows))


def text(value: str, *, mood: Mood = "plain") -> Cell:
    """A cell of words."""
    return Cell(value, mood=mood)
