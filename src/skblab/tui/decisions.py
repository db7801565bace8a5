"""What the keys call: decisions about held packets. Each is a call that the Python API has too."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import App

from skblab import files
from skblab.agent.packets import State
from skblab.edit import changing
from skblab.errors import SkblabError, UsageError
from skblab.lab import Lab
from skblab.pcap import write_pcap
from skblab.tui.detail import Layers
from skblab.tui.dialogs import Ask
from skblab.tui.driver import SteadyDriver
from skblab.tui.edit import Changes, EditForm
from skblab.tui.freeze import freezing
from skblab.tui.model import HeldPackets, Row
from skblab.tui.table import HeldTable

if TYPE_CHECKING:
    from skblab.tui.client import Client

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
    ("t", "stack", "stack", "Show who called, or the bytes again"),
    ("f", "filter", "filter", "Hold only what a pcap filter takes; what is held stays"),
    ("m", "mark", "mark", "Mark the chosen packet, or take its mark away"),
    ("s", "save", "save", "Save the marked packets, or the chosen one, to a pcap file"),
    ("q", "quit", "quit", "Release everything and leave"),
)


class Decisions(App[int]):
    """A person's decisions about the packets in hand; how they look is for others to say."""

    def __init__(self, lab: Lab, held: HeldPackets) -> None:
        super().__init__(driver_class=SteadyDriver)
        self.lab = lab
        self.held = held
        self.client: Client
        self._deciding = threading.Lock()  # one decision that waits for the agent at a time, in its order

    def tick(self) -> None:
        """Take in what has come since the last time, and show it."""
        raise NotImplementedError

    def tell_of(self, gone: Sequence[Row]) -> None:
        """Say what became of packets."""
        raise NotImplementedError

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
        text = "\n".join(filter(None, (error.found, error.hint)))
        self.notify(text or " ", title=error.what, severity="error", markup=False)

    def action_release(self) -> None:
        """Let the marked packets, or the chosen one, go on."""
        self._decide(self._meant(), lambda row: row.held.release())

    def action_release_all(self) -> None:
        """Release all."""
        self.tell_of(self.held.refresh())
        self._decide_and_wait(self.held.in_hand(), _release_if_held)

    def action_reverse(self) -> None:
        """Release all, the youngest first."""
        self.tell_of(self.held.refresh())
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
        hint = "pcap-filter(7), as in tcpdump; nothing: all packets. What is held stays held."
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
            count = write_pcap(files.typed(text), packets)
            self.notify(f"{count} saved to {text}")

        number = 1
        while Path(f"held-{number}.pcap").exists():
            number += 1
        if rows:
            self.push_screen(Ask(f"save {_names(rows)} to", "a new pcap file", f"held-{number}.pcap", take))


def _release_if_held(row: Row) -> str:
    """Release a packet on which nobody has decided meanwhile."""
    if row.held.state is State.HELD:
        row.held.release()
    return ""


def _names(rows: Sequence[Row]) -> str:
    return f"#{rows[0].number}" if len(rows) == 1 else f"{len(rows)} packets"
