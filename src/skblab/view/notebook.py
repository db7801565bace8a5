"""A trace as a notebook shows it: the trees of its first journeys."""

from collections.abc import Iterator

from rich.text import Text

from skblab.html import ALERT, SOFT, STRONG, escaped, preformatted, shown, span
from skblab.trace.journey import journeys
from skblab.trace.model import Trace
from skblab.view.tree import lines

MOST_JOURNEYS = 5
STYLES = {"dim": SOFT, "yellow": STRONG, "bold": STRONG, "bold cyan": STRONG, "bold yellow": STRONG, "bold red": ALERT}


def trace(of: Trace) -> str:
    """Return a trace as HTML."""
    found = [one for one in journeys(of) if one.is_of_network]
    parts = [preformatted(map(_line, lines(of, one))) for one in found[:MOST_JOURNEYS]]
    more = len(found) - MOST_JOURNEYS
    if more > 0:
        parts.append(span(f"... {more} more journeys: skblab show, skblab export", SOFT))
    lost = f", {of.end['lost']} lost" if of.end.get("lost") else ""
    return shown(f"{len(found)} journeys, {len(of.steps)} steps{lost}", *parts)


def _line(text: Text) -> str:
    return "".join(_pieces(text))


def _pieces(text: Text) -> Iterator[str]:
    at, base = 0, STYLES.get(str(text.style), "") if text.style != "dim" else ""  # a call is as black as its packet
    for one in text.spans:
        yield _piece(text.plain[at : one.start], base)
        yield _piece(text.plain[one.start : one.end], STYLES.get(str(one.style), base))
        at = one.end
    yield _piece(text.plain[at:], base)


def _piece(text: str, style: str) -> str:
    return span(text, style) if style and text else escaped(text)
