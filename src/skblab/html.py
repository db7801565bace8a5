"""HTML by which objects show themselves in a notebook (``_repr_html_``).

Each piece is complete in itself, without a script, and has the colours of the notebook around it, light or dark. All
text is escaped: packets carry what others have sent.
"""

import html
import itertools
from collections.abc import Iterable, Sequence

MOST_ROWS = 200
MOST_CHARACTERS = 400  # of a cell, or of a line
LINE = "border-bottom: 1px solid color-mix(in srgb, currentColor 22%, transparent)"
SOFT = "opacity: .68"
STRONG = "font-weight: 600"
ALERT = f"color: #d9363e; {STRONG}"  # seen on white and on black
PREFORMATTED = "margin: 2px 0; padding: 0; background: none; color: inherit; font: inherit; white-space: pre"


def escaped(text: object) -> str:
    """Return text for HTML, cut where it is long; what a terminal would not print is written as Python's escapes."""
    whole = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))
    return html.escape(whole if len(whole) <= MOST_CHARACTERS else f"{whole[:MOST_CHARACTERS]}...")


def span(text: object, style: str) -> str:
    """Return text in a style."""
    return f'<span style="{style}">{escaped(text)}</span>'


def shown(title: str, *parts: str) -> str:
    """Return a piece: its title, and HTML below it."""
    font = "font: 12px/1.45 ui-monospace, monospace; color: inherit; overflow-x: auto; text-align: left"
    return f'<div style="{font}"><div style="{STRONG}; margin-bottom: 2px">{escaped(title)}</div>{"".join(parts)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, its first MOST_ROWS rows."""
    cell = f"padding: 1px 14px 1px 0; text-align: left; white-space: pre; vertical-align: top; {LINE}"
    head = "".join(
        f'<th style="{cell}; font-weight: 400"><span style="{SOFT}">{escaped(one)}</span></th>' for one in columns
    )
    some = iter(rows)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{escaped(one)}</td>' for one in row) + "</tr>"
        for row in itertools.islice(some, MOST_ROWS)
    )
    begin = '<table style="border-collapse: collapse; margin: 0; font: inherit; color: inherit"><thead>'
    return f"{begin}<tr>{head}</tr></thead><tbody>{body}</tbody></table>{_more(sum(1 for _ in some))}"


def preformatted(lines: Iterable[str]) -> str:
    """Return lines of HTML below each other, the first MOST_ROWS."""
    some = iter(lines)
    return (
        f'<pre style="{PREFORMATTED}">'
        + "\n".join(itertools.islice(some, MOST_ROWS))
        + f"</pre>{_more(sum(1 for _ in some))}"
    )


def _more(count: int) -> str:
    return f'<div style="{SOFT}">... {count} more</div>' if count else ""
