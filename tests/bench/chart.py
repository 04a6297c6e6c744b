"""A drawing of throughput for the README: horizontal bars, as SVG that reads in a light and in a dark page. Pure."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tests.bench.figures import number

_WIDTH = 800
_TITLES = 190
_NUMBERS = 70
_BAR = 14
_ROW = 2 * _BAR + 14
_HEAD = 58
_LINE = 16

# No background: the page's own shows through, and the text follows the reader's choice.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.number, .caption { font-size: 11px; fill: #59636e; }
.ours { font-weight: 600; }
.drain { fill: #0969da; } .end_to_end { fill: #54aeff; }
.peer.drain { fill: #818b98; } .peer.end_to_end { fill: #b6bfc8; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .number, .caption { fill: #9198a1; }
  .drain { fill: #4493f8; } .end_to_end { fill: #1f4f8f; }
  .peer.drain { fill: #9198a1; } .peer.end_to_end { fill: #545d68; }
}
"""


class Row(NamedTuple):
    """Jobs a second; None where it was not measured."""

    title: str
    ours: bool
    drain: float | None
    end_to_end: float | None


def chart(rows: Sequence[Row], caption: Sequence[str]) -> str:
    """The SVG document; `caption` are lines of small text below the bars."""
    most = max((value for row in rows for value in (row.drain, row.end_to_end) if value is not None), default=1.0)
    bottom = _HEAD + _ROW * len(rows)
    height = bottom + _LINE * (len(caption) + 1)
    body = [
        _text(0, 20, "Jobs a second", "title"),
        _text(0, 42, "Upper bar: drain of a full queue. Lower bar: end to end. More is better.", "caption"),
        *(part for index, row in enumerate(rows) for part in _row(row, _HEAD + _ROW * index, most)),
        *(_text(0, bottom + _LINE * (index + 1), line, "caption") for index, line in enumerate(caption)),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    label = 'role="img" aria-label="Jobs a second, drain and end to end"'
    return "\n".join([f"{head} {label}>", f"<style>{_STYLE}</style>", *body, "</svg>", ""])


def _row(row: Row, top: int, most: float) -> list[str]:
    kind = "ours" if row.ours else "peer"
    parts = [_text(0, top + _BAR + 4, row.title, kind)]
    for index, (name, value) in enumerate((("drain", row.drain), ("end_to_end", row.end_to_end))):
        if value is None:
            continue
        y = top + index * _BAR
        width = value / most * (_WIDTH - _TITLES - _NUMBERS)
        parts.append(f'<rect class="{kind} {name}" x="{_TITLES}" y="{y}" width="{width:.1f}" height="{_BAR - 1}"/>')
        parts.append(_text(_TITLES + width + 6, y + _BAR - 3, number(value), "number"))
    return parts


def _text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{escape(content)}</text>'
