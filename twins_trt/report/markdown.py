"""A report as Markdown, for a README: the same facts and tables, without charts and pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch
from html import escape

from twins_trt.report.blocks import Block, Chart, Code, Facts, Note, Page, Pictures, Table

_SPECIAL = re.compile(r"([\\`*_\[\]|#~!])")


def render_markdown(page: Page) -> str:
    """The page's text. Names and values from files and results are escaped."""
    parts = [f"# {_plain(page.title)}", f"{_plain(page.subtitle)}: **{_plain(page.gate)}**"]
    parts.append(_table(("", "", ""), [(t.label, t.value, t.detail) for t in page.tiles], numeric=(1,)))
    for section in page.sections:
        parts += [f"## {_plain(section.title)}", *filter(None, map(_block, section.blocks))]
    return "\n\n".join([*parts, f"<sub>{_plain(page.made)}</sub>"]) + "\n"


@singledispatch
def _block(block: Block) -> str:
    raise NotImplementedError(type(block).__name__)


@_block.register
def _(block: Note) -> str:
    return _plain(block.text)


@_block.register
def _(block: Code) -> str:
    return "\n".join(f"    {line}" for line in block.text.splitlines())


@_block.register
def _(block: Facts) -> str:
    return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in block.rows if value)


@_block.register
def _(block: Table) -> str:
    rows = [[cell.text for cell in row] for row in block.rows]
    numeric = tuple(place for place, column in enumerate(block.columns) if column.numeric)
    return f"{_plain(block.caption)}:\n\n" + _table([c.title for c in block.columns], rows, numeric=numeric)


@_block.register
def _(block: Chart) -> str:
    return ""  # its numbers are in a table


@_block.register
def _(block: Pictures) -> str:
    return ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int]) -> str:
    rule = ["--:" if place in numeric else ":--" for place in range(len(heads))]
    lines = [[_plain(each) for each in heads], rule, *([_plain(each) for each in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """The text in one line, escaped so that Markdown shows it unchanged."""
    return _SPECIAL.sub(r"\\\1", escape(" ".join(text.split()), quote=False))
