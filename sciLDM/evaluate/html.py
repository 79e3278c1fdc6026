"""Small pieces of HTML, and the page around them. One file, no scripts, nothing fetched from anywhere."""

import html as _html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sciLDM.evaluate._style import CSS
from sciLDM.evaluate.hooks import Section

__all__ = ["details", "duration", "escape", "facts", "number", "page", "paragraph", "table", "tiles"]


def escape(value: Any) -> str:
    """Text as HTML."""
    return _html.escape(str(value))


def number(value: Any) -> str:
    """A number for people: four significant digits, thousands separated, a dash where there is none."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
            return f"{value:.2e}"
        return f"{value:.4g}"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as `1 h 23 min`, `4 min 5 s` or `6.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str]) -> str:
    """A table of plain values.

    Args:
        rows: One mapping a row.
        columns: Keys in order, or keys and headings.
    """
    heads = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    lines = [f"<th>{escape(text)}</th>" for text in heads.values()]
    body = []
    for row in rows:
        cells = []
        for name in heads:
            value = row.get(name)
            kind = ' class="n"' if value is None or isinstance(value, int | float) else ""
            cells.append(f"<td{kind}>{escape(number(value))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    head, rest = "".join(lines), "".join(body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rest}</tbody></table></div>'


def facts(entries: Mapping[str, Any]) -> str:
    """Names and values, one pair a line; those without a value are left out."""
    pairs = [
        f"<dt>{escape(name)}</dt><dd>{escape(number(value))}</dd>"
        for name, value in entries.items()
        if value not in (None, "")
    ]
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Key figures: `(name, value, remark)`."""
    cells = [
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="remark">{escape(remark)}</div></div>'
        for name, value, remark in entries
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def details(summary: str, body: str) -> str:
    """A part that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def page(title: str, subtitle: str, head: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    names = [(_anchor(k, s.title), s) for k, s in enumerate(sections)]
    links = "".join(f'<a href="#{anchor}">{escape(s.title)}</a>' for anchor, s in names)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(s.title)}</h2>{s.html}</section>' for anchor, s in names
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{CSS}</style></head>'
        f'<body><header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>{head}'
        f"<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def _anchor(k: int, title: str) -> str:
    return f"s{k}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"
