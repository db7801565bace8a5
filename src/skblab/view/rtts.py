"""Round-trip times, and their plot."""

import statistics
from collections.abc import Iterable
from typing import Self

from skblab.host.clients import parse_ping
from skblab.html import ALERT, SOFT, shown

WIDTH, HEIGHT, LEFT, BELOW, ABOVE = 560, 150, 62, 18, 8  # pixels; of the whole, and around the plot
MOST_LOST = 1000  # more are not drawn one by one


class Rtts(list[float]):
    """Round-trip times in ms; a notebook shows them as a plot.

    :param rtts_ms: one for each reply
    :param numbers: the sequence number of each, by default 1, 2, ...; what is missing between them was lost
    """

    def __init__(self, rtts_ms: Iterable[float] = (), numbers: Iterable[int] = ()) -> None:
        super().__init__(rtts_ms)
        self.numbers = [*numbers] or [*range(1, len(self) + 1)]
        if len(self.numbers) != len(self):
            raise ValueError(f"{len(self)} RTTs, {len(self.numbers)} sequence numbers")

    @classmethod
    def of_ping(cls, text: str) -> Self:
        """Return the RTTs that ping has printed."""
        replies = parse_ping(text)
        return cls((one.rtt_ms for one in replies), (one.icmp_seq for one in replies))

    @property
    def lost(self) -> list[int]:
        """The sequence numbers that are missing between the others."""
        return sorted({*range(min(self.numbers), max(self.numbers))} - {*self.numbers}) if self else []

    def _repr_html_(self) -> str:
        """Return a plot for a notebook."""
        if not self:
            return shown("no replies")
        middle, lost = statistics.median(self), self.lost
        times = f"{min(self):g}, {middle:g}, {max(self):g} ms: least, median, most"
        return shown(f"{len(self)} replies, {len(lost)} lost; RTT {times}", self._plot(lost))

    def _plot(self, lost: list[int]) -> str:
        first, last, most = min(self.numbers), max(self.numbers), float(max([1e-6, *self]))
        base, top, right = HEIGHT - BELOW, ABOVE, WIDTH - 12

        def x(number: float) -> float:
            return LEFT + 8 + (number - first) / max(last - first, 1) * (right - LEFT - 16)

        def y(rtt_ms: float) -> float:
            return base - rtt_ms / most * float(base - top)

        marks = [
            f'<path d="M{x(number):.1f} {base}V{y(rtt):.1f}" stroke="currentColor" opacity=".45"/>'
            f'<circle cx="{x(number):.1f}" cy="{y(rtt):.1f}" r="2.6" fill="currentColor">'
            f"<title>{number}: {rtt:g} ms</title></circle>"
            for number, rtt in zip(self.numbers, self, strict=True)
        ]
        marks += [
            f'<text x="{x(number):.1f}" y="{base - 3}" text-anchor="middle" style="fill: #d9363e; {ALERT}">x'
            f"<title>{number}: lost</title></text>"
            for number in lost[:MOST_LOST]
        ]
        for rtt in (0, most / 2, most):
            marks.append(
                f'<path d="M{LEFT} {y(rtt):.1f}H{right}" stroke="currentColor" opacity=".2"/><text x="{LEFT - 6}" '
                f'y="{y(rtt) + 4:.1f}" text-anchor="end" style="{SOFT}">{rtt:.3g} ms</text>'
            )
        ends = [(first, "middle")] if first == last else [(first, "start"), (last, "end")]
        marks += [
            f'<text x="{x(number):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}" style="{SOFT}">{number}</text>'
            for number, anchor in ends
        ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'role="img" aria-label="RTT by sequence number" fill="none" style="font: 11px ui-monospace, monospace; '
            f'max-width: 100%"><g fill="none">{"".join(marks)}</g></svg>'
        ).replace("<text ", '<text fill="currentColor" ')
