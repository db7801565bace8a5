"""The held packets as a table."""

import re
import time
from collections.abc import Sequence

from rich.text import Text
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from skblab.tui.model import Row

WINDOW_AND_OPTIONS = re.compile(r", win .*(?=, length)")
COLUMNS = (("", "number"), ("held", "age"), ("in", "function"), ("packet", "packet"))


class HeldTable(DataTable[Text]):
    """One line per packet; the cursor stays on its packet while others come and go."""

    def __init__(self) -> None:
        super().__init__(id="held", cursor_type="row", zebra_stripes=False)
        self._rows: list[Row] = []
        self._drawn: list[tuple[object, ...]] = []

    def on_mount(self) -> None:
        """Make the columns."""
        for label, key in COLUMNS:
            self.add_column(Text(label, style="dim"), key=key, width=9 if key == "age" else None)

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None

    def update(self, rows: Sequence[Row], more: int) -> None:
        """Show these rows, and how many more there are."""
        self.border_title = f"held inside the kernel: {len(rows) + more:,}"
        self.border_subtitle = f"and {more:,} more" if more else ""
        if [row.number for row in rows] == [row.number for row in self._rows]:
            self._tick()
            return
        chosen, place = self.chosen, self.cursor_row
        self._rows = list(rows)
        self._drawn = [_state(row) for row in rows]
        self.clear()
        for row in rows:
            self.add_row(*_cells(row), key=str(row.number))
        if rows:
            place = self._rows.index(chosen) if chosen in self._rows else min(max(place, 0), len(rows) - 1)
            self.move_cursor(row=place, animate=False)

    def _tick(self) -> None:
        """Update the ages of visible rows, and rows that were edited or marked."""
        first = int(self.scroll_y)
        for place, row in enumerate(self._rows):
            if self._drawn[place] != _state(row):
                self._drawn[place] = _state(row)
                for column, cell in enumerate(_cells(row)):
                    self.update_cell_at(Coordinate(place, column), cell, update_width=True)
            elif first <= place < first + self.size.height:
                self.update_cell_at(Coordinate(place, 1), _age(row))


def _state(row: Row) -> tuple[object, ...]:
    """Return what a row's cells depend on, except its age."""
    return row.marked, row.held.packet, row.leaves_at_ns


def _cells(row: Row) -> tuple[Text, ...]:
    mark = "*" if row.marked else " "
    return (
        Text(f"{mark}{row.number}", style="bold yellow" if row.marked else "dim"),
        _age(row),
        Text(row.held.function, style="cyan"),
        Text.assemble(("edited ", "bold magenta") if row.edited else "", summary(row)),
    )


def _age(row: Row) -> Text:
    if row.leaves_at_ns:
        left_s = max(row.leaves_at_ns - time.monotonic_ns(), 0) / 1e9
        return Text(f"in {left_s:.1f} s", style="bold green", justify="right")
    return Text(f"{row.held.age_s:,.1f} s", style="bold yellow", justify="right")


def summary(row: Row) -> str:
    """Return the packet in one line, with the addresses at the end, because a narrow screen cuts the end off.

    A TCP header's window and options are only in the detail.
    """
    said = row.held.packet.summary()
    ends, colon, what = said.partition(": ")
    short = WINDOW_AND_OPTIONS.sub("", what) if what.startswith("Flags") else what.partition(", length")[0]
    return f"{short}   {ends}" if colon and " > " in ends else said
