"""The screen: its panes, and what they show."""

import asyncio
import signal
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import DataTable, Static, Tree

from skblab.agent.packets import HeldPacket, State
from skblab.errors import SkblabError
from skblab.lab import Lab
from skblab.tui.client import Client, ClientPane
from skblab.tui.decisions import KEYS, Decisions
from skblab.tui.detail import Hex, Layers
from skblab.tui.dialogs import Lost
from skblab.tui.keys import Keys
from skblab.tui.model import HeldPackets, Row
from skblab.tui.stack import Stack
from skblab.tui.table import HeldTable

if TYPE_CHECKING:
    from skblab.packet import Packet
    from skblab.tui.layout import Field, Layer

TICK_S = 0.1
MOST_ROWS = 100
LISTED_ONE_BY_ONE = 5  # decisions that the client's pane lists; of more it prints the sum
LAST_WORDS_S = 1.0  # for the client's summary, when the user leaves
ENDING = (signal.SIGTERM, signal.SIGHUP)
STOPPING = (signal.SIGTSTP, signal.SIGCONT)


class HoldApp(Decisions):
    """The held packets of a running lab, the client that sent them, and the user's decisions."""

    CSS_PATH = "hold.tcss"
    TITLE = "skblab hold"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (150, "-wide")]  # noqa: RUF012 - as App declares it
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, action, label, tooltip=tooltip) for key, action, label, tooltip in KEYS),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
    ]

    def __init__(self, lab: Lab, held: HeldPackets, command: Sequence[str]) -> None:
        super().__init__(lab, held)
        self.command = list(command)
        self.lost: SkblabError | None = None
        self._shown: tuple[Row | None, Packet | None] = (None, None)
        self._stack_of: HeldPacket | None = None

    def compose(self) -> ComposeResult:
        """Yield the panes."""
        yield Static(id="title", markup=False)
        with Container(id="panes"):
            yield HeldTable()
            yield Layers()
            with Container(id="side"):
                yield Hex()
                yield Stack(self.lab.image)
            yield ClientPane(self.command)
        yield Keys(binding for binding in self.BINDINGS if isinstance(binding, Binding))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer the keys in the command palette too."""
        yield from (
            SystemCommand(f"{key}  {label}", tooltip, getattr(self, f"action_{action}"))
            for key, action, label, tooltip in KEYS
        )
        yield from (command for command in super().get_system_commands(screen) if command.title != "Quit")

    def on_mount(self) -> None:
        """Start the client, and the timer that updates the screen."""
        try:
            self.held.decided.begin()
            self.client = Client(self.lab, self.command, self.held.decided.end)
        except SkblabError as error:
            self._leave_for(error)
            return
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:  # as for Ctrl-C: restores the terminal
                asyncio.get_running_loop().add_signal_handler(number, self.exit, 128 + number)
        self.client.note("-- held packets wait in the kernel: r releases, x drops, e edits")
        self.query_one(HeldTable).focus()
        self.set_interval(TICK_S, self.tick)
        self.tick()

    def on_unmount(self) -> None:
        """Close the client's terminal; Ctrl-Z is the shell's again."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:  # Textual's handlers need its loop, which ends before this process
                signal.signal(number, signal.SIG_DFL)
        if hasattr(self, "client"):
            self.client.close()

    def stop_reading(self) -> None:
        """End the thread that reads keys: after a signal at the wrong moment it keeps the program from ending."""
        if self._driver:
            self._driver.disable_input()

    # Display.

    def tick(self) -> None:
        """Take the packets that have come since the last tick, and show them."""
        if not self.is_running:  # the timer outlives the widgets by a moment
            return
        self.tell_of(self.held.refresh())
        rows = self.held.in_hand()
        self.screen_stack[0].query_one(HeldTable).update(rows[:MOST_ROWS], len(rows[MOST_ROWS:]))
        rules = "; ".join(str(rule) for rule in self.held.rules)
        lost = f"   events lost: {self.held.lost:,}" if self.held.lost else ""
        self.screen_stack[0].query_one("#title", Static).update(
            f"skblab hold   Linux {self.lab.image.release}   {rules}{lost}"
        )
        self.screen_stack[0].query_one(ClientPane).update(self.client)
        self._show_chosen()
        if self.lab.agent.link.gone and self.lost is None:
            self.lost = self.lab.agent.link.lost()
            self.push_screen(Lost(self.lost, lambda: self._leave_for(self.lost)))

    def _show_chosen(self) -> None:
        """Show the chosen packet in full, if the choice has changed."""
        screen = self.screen_stack[0]
        row = screen.query_one(HeldTable).chosen
        packet = row.held.packet if row else None
        if self._shown == (row, packet):
            return
        self._shown = (row, packet)
        screen.query_one(Layers).show(packet, f"#{row.number} {self._place(row)}" if row else "no packet is held")
        screen.query_one(Hex).show(packet)
        self._show_stack(row.held if row else None)

    def _show_stack(self, held: HeldPacket | None) -> None:
        """Show the backtrace. A thread looks up its source lines, which takes a moment."""
        if held is self._stack_of:
            return
        self._stack_of = held
        stack = self.screen_stack[0].query_one(Stack)
        stack.show(None)
        if held is None:
            return

        def work() -> None:
            try:
                frames = held.backtrace
            except SkblabError as error:
                self.call_from_thread(self._complain, error)
                return
            if held is self._stack_of:
                self.call_from_thread(stack.show, frames)

        self.run_worker(work, thread=True, group="stack")

    def action_stack(self) -> None:
        """Toggle between the backtrace and the bytes."""
        side = self.screen_stack[0].query_one("#side")
        side.toggle_class("-stack")
        if side.has_class("-stack"):
            self.screen_stack[0].query_one(Stack).focus()
        else:
            self.screen_stack[0].query_one(HeldTable).focus()

    def _place(self, row: Row) -> str:
        function = self.lab.image.functions.lookup(row.held.function)
        return f"{row.held.function}()" + (f" {function.file}:{function.line}" if function else "")

    def tell_of(self, gone: Sequence[Row]) -> None:
        """Print what became of packets in the client's pane, between the client's lines."""
        if len(gone) > LISTED_ONE_BY_ONE:
            self.client.note(f"-- {len(gone):,} packets are gone: #{gone[0].number} to #{gone[-1].number}")
            return
        for row in gone:
            style = "red" if row.held.state is not State.RELEASED else "green"
            self.client.note(
                f"-- #{row.number} {row.held.state.value} by {row.held.function}() after {row.held.age_s * 1e3:.0f} ms",
                style,
            )

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the packet under the cursor."""
        del event
        self._show_chosen()

    def on_tree_node_highlighted(self, event: "Tree.NodeHighlighted[Field | Layer]") -> None:
        """Highlight the chosen field's bytes."""
        self.screen_stack[0].query_one(Hex).light(event.node.data)

    # The end.

    async def action_quit(self) -> None:
        """Quit: release the held packets, and let the client print its summary."""
        status = self.client.status or 0
        if self.lost is None:
            if self.client.status is None:
                self.held.decided.interrupt()
            await self.client.interrupt(LAST_WORDS_S)
        self._leave_for(self.lost, status)

    def _leave_for(self, error: SkblabError | None, status: int = 0) -> None:
        self.lost = error
        self.exit(error.exit_status if error else status)
