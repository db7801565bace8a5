"""The screen itself: what is where, and what each key calls."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import DataTable, Static, Tree

from skblab.agent.held import State
from skblab.errors import SkblabError, UsageError
from skblab.lab import Lab
from skblab.packet import Packet, changing
from skblab.pcap import write_pcap
from skblab.tui.client import Client, ClientPane
from skblab.tui.detail import Hex, Layers
from skblab.tui.dialogs import Ask, Lost
from skblab.tui.driver import SteadyDriver
from skblab.tui.edit import Changes, EditForm
from skblab.tui.freeze import freezing
from skblab.tui.keys import Keys
from skblab.tui.model import HeldPackets, Row
from skblab.tui.table import HeldTable

if TYPE_CHECKING:
    from skblab.tui.layout import Field, Layer

TICK_S = 0.1
MOST_ROWS = 100
TOLD_ONE_BY_ONE = 5  # decisions that the client's pane tells of; of more it tells the sum
ENDING = (signal.SIGTERM, signal.SIGHUP)

KEYS: tuple[tuple[str, str, str, str], ...] = (
    ("r", "release", "release", "Let the marked packets, or the chosen one, go on"),
    ("R", "release_all", "all", "Release all"),
    ("v", "reverse", "reversed", "Release all, the youngest first"),
    ("a", "after", "after", "Release after a time"),
    ("x", "drop", "drop", "Free the marked packets, or the chosen one"),
    ("d", "duplicate", "duplicate", "Send a copy on its way; the packet stays held"),
    ("e", "edit", "edit", "Change the chosen packet's fields"),
    ("u", "revert", "revert", "Write the packet back as it came"),
    (
        "z",
        "freeze",
        "freeze",
        "Let it go on into gdb: the whole kernel stands still at its function; leave gdb to come back",
    ),
    ("f", "filter", "filter", "Hold only what a pcap filter takes; what is held is released"),
    ("m", "mark", "mark", "Mark the chosen packet, or take its mark away"),
    ("s", "save", "save", "Save the marked packets, or the chosen one, to a pcap file"),
    ("q", "quit", "quit", "Release everything and leave"),
)


class HoldApp(App[int]):
    """Packets held inside the kernel of a running lab, the client that sent them, and a person's decisions."""

    CSS_PATH = "hold.tcss"
    TITLE = "skblab hold"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (150, "-wide")]  # noqa: RUF012 - as App declares it
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, action, label, tooltip=tooltip) for key, action, label, tooltip in KEYS),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
    ]

    def __init__(self, lab: Lab, held: HeldPackets, command: Sequence[str]) -> None:
        super().__init__(driver_class=SteadyDriver)
        self.lab = lab
        self.held = held
        self.command = list(command)
        self.lost: SkblabError | None = None
        self.client: Client
        self._shown: tuple[Row | None, Packet | None] = (None, None)
        self._deciding = threading.Lock()  # one decision that waits for the agent at a time, in its order

    def compose(self) -> ComposeResult:
        """Yield the panes."""
        yield Static(id="title", markup=False)
        with Container(id="panes"):
            yield HeldTable()
            yield Layers()
            yield Hex()
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
        """Start the client, and look after it and the packets."""
        try:
            self.client = Client(self.lab, self.command)
        except SkblabError as error:
            self._leave_for(error)
            return
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:  # as Ctrl-C, or the terminal would be left as it is
                asyncio.get_running_loop().add_signal_handler(number, self.exit, 128 + number)
        self.query_one(HeldTable).focus()
        self.set_interval(TICK_S, self.tick)
        self.tick()

    def on_unmount(self) -> None:
        """Let the client's terminal go."""
        if hasattr(self, "client"):
            self.client.close()

    # What is shown.

    def tick(self) -> None:
        """Take in what has come since the last time, and show it."""
        self._tell_of(self.held.refresh())
        rows = self.held.in_hand()
        self.screen_stack[0].query_one(HeldTable).update(rows[:MOST_ROWS], len(rows[MOST_ROWS:]))
        rules = "; ".join(str(rule) for rule in self.held.rules)
        lost = f"   lost: {self.held.lost:,}" if self.held.lost else ""
        self.screen_stack[0].query_one("#title", Static).update(
            f"skblab hold   Linux {self.lab.image.release}   {rules}{lost}"
        )
        self.screen_stack[0].query_one(ClientPane).update(self.client)
        self._show_chosen()
        if self.lab.agent.gone and self.lost is None:
            self.lost = self.lab.agent.lost()
            self.push_screen(Lost(self.lost, lambda: self._leave_for(self.lost)))

    def _show_chosen(self) -> None:
        """Show the chosen packet in full, if that is another one now."""
        screen = self.screen_stack[0]
        row = screen.query_one(HeldTable).chosen
        packet = row.held.packet if row else None
        if self._shown == (row, packet):
            return
        self._shown = (row, packet)
        screen.query_one(Layers).show(packet, f"#{row.number} {self._place(row)}" if row else "no packet is held")
        screen.query_one(Hex).show(packet)

    def _place(self, row: Row) -> str:
        function = self.lab.image.functions.lookup(row.held.function)
        return f"{row.held.function}()" + (f" {function.file}:{function.line}" if function else "")

    def _tell_of(self, gone: Sequence[Row]) -> None:
        """Say in the client's pane what became of packets: its answers stand beside it."""
        if len(gone) > TOLD_ONE_BY_ONE:
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
        """Light the chosen field's bytes."""
        self.screen_stack[0].query_one(Hex).light(event.node.data)

    # What the keys call.

    @property
    def _chosen(self) -> Row | None:
        return self.screen_stack[0].query_one(HeldTable).chosen

    def _meant(self) -> list[Row]:
        """Return the marked rows, or the chosen one."""
        marked = self.held.marked()
        return marked or ([self._chosen] if self._chosen else [])

    def _decide(self, rows: Iterable[Row], decide: Callable[[Row], object]) -> None:
        """Decide about packets; what does not work is said once."""
        try:
            for row in rows:
                decide(row)
        except SkblabError as error:
            self._complain(error)
        self.tick()

    def _decide_and_wait(self, rows: Iterable[Row], decide: Callable[[Row], str]) -> None:
        """Decide what the agent has to answer, beside the screen."""

        def work() -> None:
            for row in rows:
                try:
                    with self._deciding:
                        said = decide(row)
                except SkblabError as error:
                    self.call_from_thread(self._complain, error)
                    return
                for line in said.splitlines():
                    self.call_from_thread(self.client.note, f"-- #{row.number} {line}", "magenta")

        self.run_worker(work, thread=True, group="decisions")

    def _complain(self, error: SkblabError) -> None:
        text = "\n".join(filter(None, (error.found, error.mend)))
        self.notify(text or " ", title=error.what, severity="error", markup=False)

    def action_release(self) -> None:
        """Let the marked packets, or the chosen one, go on."""
        self._decide(self._meant(), lambda row: row.held.release())

    def action_release_all(self) -> None:
        """Release all."""
        self._tell_of(self.held.refresh())
        self._decide_and_wait(self.held.in_hand(), _release_if_held)

    def action_reverse(self) -> None:
        """Release all, the youngest first."""
        self._tell_of(self.held.refresh())
        self._decide_and_wait(self.held.in_hand()[::-1], _release_if_held)

    def action_after(self) -> None:
        """Ask for a time, and release after it."""
        rows = self._meant()

        def take(text: str) -> None:
            try:
                after_s = float(text.removesuffix("s"))
            except ValueError:
                after_s = -1.0
            if not 0 <= after_s < 86400:
                raise UsageError(f"not a number of seconds: {text}")
            for row in rows:
                row.leaves_at_ns = time.monotonic_ns() + round(after_s * 1e9)
                row.held.release(after_s=after_s)

        if rows:
            self.push_screen(Ask(f"release {_names(rows)} after", "seconds", "1.0", take))

    def action_drop(self) -> None:
        """Free the marked packets, or the chosen one."""
        self._decide(self._meant(), lambda row: row.held.drop())

    def action_duplicate(self) -> None:
        """Send copies on their way."""

        def duplicate(row: Row) -> str:
            row.held.duplicate()
            return f"a copy goes on from {row.held.function}()"

        self._decide_and_wait(self._meant(), duplicate)

    def action_edit(self) -> None:
        """Show the chosen packet as a form, and write what is typed."""
        row = self._chosen
        if row is None:
            return
        field = self.screen_stack[0].query_one(Layers).chosen

        def take(changes: Changes) -> None:
            if changes:
                self._decide_and_wait([row], lambda row: row.held.edit(changing(changes)))

        title = f"edit #{row.number} in {row.held.function}()"
        self.push_screen(EditForm(row.held.packet, title, field.name if field else "", take))

    def action_freeze(self) -> None:
        """Give the terminal to gdb, and stop the whole kernel where the chosen packet goes on."""
        row = self._chosen
        if row is None:
            return
        try:
            with self.suspend():
                self.lab.gdb_prompt(freezing(self.lab, row.held), attached=row.held.release)
        except SkblabError as error:
            self._complain(error)
        self.refresh(layout=True)

    def action_revert(self) -> None:
        """Write the marked packets, or the chosen one, back as they came."""
        self._decide_and_wait(self._meant(), lambda row: row.held.revert())

    def action_filter(self) -> None:
        """Ask for a filter, and hold only what it takes."""
        now = next((rule.filter for rule in self.held.rules if rule.verdict == "hold"), "")
        hint = "pcap-filter(7), as in tcpdump; nothing: all packets. What is held is released."
        self.push_screen(Ask("hold only", hint, now, self.held.refilter))

    def action_mark(self) -> None:
        """Mark the chosen packet, or take its mark away, and go to the next."""
        if self._chosen:
            self._chosen.marked = not self._chosen.marked
            self.screen_stack[0].query_one(HeldTable).action_cursor_down()
            self.tick()

    def action_save(self) -> None:
        """Ask for a file's name, and save the marked packets, or the chosen one."""
        rows = self._meant()
        real_ns = time.time_ns() - time.monotonic_ns()
        packets = [(row.held.held_at_ns + real_ns, row.held.packet) for row in rows]

        def take(text: str) -> None:
            count = write_pcap(Path(text).expanduser(), packets)
            self.notify(f"{count} saved to {text}")

        number = 1
        while Path(f"held-{number}.pcap").exists():
            number += 1
        if rows:
            self.push_screen(Ask(f"save {_names(rows)} to", "a new pcap file", f"held-{number}.pcap", take))

    async def action_quit(self) -> None:
        """Leave; what is held is released on the way out."""
        self._leave_for(self.lost)

    def _leave_for(self, error: SkblabError | None) -> None:
        self.lost = error
        self.exit(error.exit_status if error else 0)


def _release_if_held(row: Row) -> str:
    """Release a packet on which nobody has decided meanwhile."""
    if row.held.state is State.HELD:
        row.held.release()
    return ""


def _names(rows: Sequence[Row]) -> str:
    return f"#{rows[0].number}" if len(rows) == 1 else f"{len(rows)} packets"
