"""A report as one HTML page that loads nothing else: style, script and pictures are inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import singledispatch
from html import escape
from importlib import resources

from twins_trt.report.blocks import Block, Cell, Chart, Code, Column, Facts, Note, Page, Pictures, Section, Table, Tile

# With this policy even a mistake in the page cannot send anything anywhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
_ICON = (  # without one, a browser asks the server for favicon.ico
    "data:image/svg+xml;base64,"
    + base64.b64encode(
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" '
        b'fill="#2d6cdf"/><path d="M3 5h10v2H9v6H7V7H3z" fill="#fff"/></svg>'
    ).decode()
)


def render_html(page: Page) -> str:
    """The page's text. Names and values from files and results are escaped."""
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in page.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{escape(page.title)}</title>
<link rel="icon" href="{_ICON}">
<style>{_asset("style.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<div class="bar">
<p class="brand">twins-trt report</p>
<button type="button" id="theme" hidden>Dark</button>
</div>
<h1>{escape(page.title)} <span class="badge {page.mood}">{escape(page.gate)}</span></h1>
<p class="subtitle">{escape(page.subtitle)}</p>
<ul class="tiles">{"".join(map(_tile, page.tiles))}</ul>
</header>
<nav aria-label="Sections">{links}</nav>
<main id="content">
{"".join(map(_section, page.sections))}
</main>
<footer><p>{escape(page.made)}</p></footer>
<script>{_asset("script.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return resources.files("twins_trt.report").joinpath(name).read_text(encoding="utf-8")


def _tile(tile: Tile) -> str:
    detail = f'<span class="detail">{escape(tile.detail)}</span>' if tile.detail else ""
    return (
        f'<li class="tile {tile.mood}"><span class="name">{escape(tile.label)}</span>'
        f"<strong>{escape(tile.value)}</strong>{detail}</li>"
    )


def _section(section: Section) -> str:
    blocks = "".join(map(_block, section.blocks))
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{escape(section.title)}</h2>{blocks}</section>\n'
    )


@singledispatch
def _block(block: Block) -> str:
    raise NotImplementedError(type(block).__name__)


@_block.register
def _(block: Note) -> str:
    return f'<p class="note {block.mood}">{escape(block.text)}</p>'


@_block.register
def _(block: Code) -> str:
    return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'


@_block.register
def _(block: Facts) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in block.rows if value)
    return f"<dl>{rows}</dl>"


@_block.register
def _(block: Chart) -> str:
    note = f"<small>{escape(block.note)}</small>" if block.note else ""
    label = escape(block.title, quote=True)
    caption = f"<figcaption>{escape(block.title)}{note}</figcaption>"
    return f'<figure role="img" aria-label="{label}">{block.svg}{caption}</figure>'


@_block.register
def _(block: Pictures) -> str:
    panels = "".join(
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(panel.image).decode()}" '
        f'width="{panel.width}" height="{panel.height}" loading="lazy" '
        f'alt="{escape(f"{block.title}: {panel.caption}", quote=True)}">'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        for panel in block.panels
    )
    return f'<div class="pictures"><h3>{escape(block.title)}</h3><div class="panels">{panels}</div></div>'


@_block.register
def _(block: Table) -> str:
    heads = "".join(_head(column) for column in block.columns)
    rows = "".join(f"<tr>{_cells(block.columns, row)}</tr>" for row in block.rows)
    label = escape(block.caption, quote=True)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<caption>{escape(block.caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _head(column: Column) -> str:
    kind = ' class="number"' if column.numeric else ""
    return f'<th scope="col"{kind} aria-sort="none"><button type="button">{escape(column.title)}</button></th>'


def _cells(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    cells = []
    for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
        kind = " ".join(filter(None, ("number" if column.numeric else "", "" if cell.mood == "plain" else cell.mood)))
        attributes = f' class="{kind}"' if kind else ""
        if cell.key is not None:
            attributes += f' data-key="{cell.key!r}"'
        content = escape(cell.text)
        if cell.share is not None:
            content = f'<span class="fill" style="width:{100 * min(max(cell.share, 0), 1):.1f}%"></span>{content}'
        name = "th" if place == 0 else "td"
        scope = ' scope="row"' if place == 0 else ""
        cells.append(f"<{name}{scope}{attributes}>{content}</{name}>")
    return "".join(cells)
