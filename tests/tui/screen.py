"""Help for tests of the screen: it runs without a terminal, against a real lab and a real client."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from textual.pilot import Pilot
from textual.widgets import Input, Static

from skblab.lab import Lab
from skblab.rule import Rule
from skblab.tui.app import HoldApp
from skblab.tui.detail import Layers
from skblab.tui.model import HeldPackets
from skblab.tui.table import HeldTable

ECHO = "icmp_rcv if icmp[icmptype] == icmp-echo"
WITHIN_S = 10.0


class Person:
    """A person who looks at the screen and presses keys."""

    def __init__(self, app: HoldApp, pilot: Pilot[int]) -> None:
        self.app = app
        self.pilot = pilot

    async def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until something is shown."""
        deadline = time.monotonic() + WITHIN_S
        while not true():
            assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}\n{self.said()}"
            await self.pilot.pause(0.02)

    async def presses(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def types(self, text: str, into: str = "Input") -> None:
        """Replace a line's text, and press Enter."""
        await self.until(lambda: bool(self.app.screen.query(into)), "the dialog")
        line = self.app.screen.query_one(into, Input)
        line.focus()
        await self.until(lambda: line.has_focus, "the focus")
        line.value = text
        await self.presses("enter")

    async def holds(self, count: int) -> None:
        await self.until(lambda: self.table.row_count == count, f"{count} packets in the table")

    async def reads(self, words: str) -> None:
        """Wait for words in the client's pane."""
        await self.until(lambda: words in self.said(), words)

    async def is_told(self, words: str) -> None:
        """Wait for a notification."""
        notes = self.app._notifications
        await self.until(lambda: any(words in f"{one.title} {one.message}" for one in notes), words)

    def said(self) -> str:
        return "\n".join(line.plain for line in self.app.client.lines)

    @property
    def table(self) -> HeldTable:
        return self.app.screen_stack[0].query_one(HeldTable)

    def cell(self, row: int, column: int) -> str:
        """Return a row of the table, or nothing if it has no such row now."""
        return str(self.table.get_row_at(row)[column]) if row < self.table.row_count else ""

    @property
    def title(self) -> str:
        return str(self.app.screen_stack[0].query_one("#title", Static).render())

    @property
    def fields(self) -> dict[str, str]:
        """The chosen packet's fields, as they are shown."""
        layers = self.app.screen_stack[0].query_one(Layers).root.children
        return {leaf.data.name: str(leaf.label) for layer in layers for leaf in layer.children if leaf.data}


def ping(count: int, *options: str, interval_s: float = 0.1) -> list[str]:
    return ["ping", "-n", "-c", str(count), "-i", f"{interval_s:g}", "-W", "60", *options, "192.168.10.1"]


@contextlib.asynccontextmanager
async def screen(
    lab: Lab, command: Sequence[str], *rules: str, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Person]:
    """Run the screen."""
    with contextlib.closing(HeldPackets(lab, [Rule.parse_hold(rule) for rule in rules or (ECHO,)])) as held:
        app = HoldApp(lab, held, command)
        async with app.run_test(size=size) as pilot:
            yield Person(app, pilot)
