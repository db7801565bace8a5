"""The keys' actions: decisions on held packets. The Python API has each of them, too."""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

Said = TypeVar("Said")

KEYS: tuple[tuple[str, str, str, str], ...] = (
    ("r", "release", "release", "Release the marked packets, or the chosen one"),
    ("R", "release_all", "all", "Release all"),
    ("v", "reverse", "reversed", "Release all, the youngest first"),
    ("a", "after", "after", "Release after a time"),
    ("x", "drop", "drop", "Drop the marked packets, or the chosen one"),
    ("d", "duplicate", "duplicate", "Release a copy; the packet stays held"),
    ("e", "edit", "edit", "Change the chosen packet's fields"),
    ("u", "revert", "revert", "Undo the edits of the packet"),
    (
        "z",
        "freeze",
        "freeze",
        "Release it into gdb: the whole kernel is stopped at its function; leave gdb to come back",
    ),
    ("t", "stack", "stack", "Show the backtrace, or the bytes again"),
    ("f", "filter", "filter", "Hold only packets that match a pcap filter; held packets stay held"),
    ("m", "mark", "mark", "Mark the chosen packet, or unmark it"),
    ("s", "save", "save", "Save the marked packets, or the chosen one, to a pcap file"),
    ("q", "quit", "quit", "Release everything and leave"),
)


class Decisions(App[int]):
    """The user's decisions on the held packets, without their display."""

    def __init__(self, lab: Lab, held: HeldPackets) -> None:
        super().__init__(driver_class=SteadyDriver)
        self.lab = lab
        self.held = held
        self.client: Client
        self._deciding = threading.Lock()  # one decision at a time waits for the agent, in order

    def tick(self) -> None:
        """Take the packets that have come since the last tick, and show them."""
        raise NotImplementedError

    def tell_of(self, gone: Sequence[Row]) -> None:
        """Print what became of packets."""
        raise NotImplementedError

    @property
    def _chosen(self) -> Row | None:
        return self.screen_stack[0].query_one(HeldTable).chosen

    def _meant(self) -> list[Row]:
        """Return the marked rows, or else the chosen one."""
        marked = self.held.marked()
        return marked or ([self._chosen] if self._chosen else [])

    def _decide(self, rows: Iterable[Row], decide: Callable[[Row], object]) -> None:
        """Decide on packets; show the first error."""
        try:
            for row in rows:
                decide(row)
        except SkblabError as error:
            self._complain(error)
        self.tick()

    def _decide_and_wait(self, rows: Iterable[Row], decide: Callable[[Row], str]) -> None:
        """Decide on a thread, because the agent has to answer."""

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

    def _noted(self, row: Row, word: str, decide: Callable[[], Said], **given: Any) -> Said:  # noqa: ANN401
        """Decide on a packet, and note that down; *given* are the word's arguments."""
        with self.held.decided.noting(word, row.place, row.held, **given):
            return decide()

    def _release(self, row: Row) -> None:
        self._noted(row, "release", row.held.release)

    def _release_if_held(self, row: Row) -> str:
        """Release a packet if it is still held."""
        if row.held.state is State.HELD:
            self._release(row)
        return ""

    def action_release(self) -> None:
        """Release the marked packets, or the chosen one."""
        self._decide(self._meant(), self._release)

    def action_release_all(self) -> None:
        """Release all."""
        self.tell_of(self.held.refresh())
        self._decide_and_wait(self.held.in_hand(), self._release_if_held)

    def action_reverse(self) -> None:
        """Release all packets, the youngest first."""
        self.tell_of(self.held.refresh())
        self._decide_and_wait(self.held.in_hand()[::-1], self._release_if_held)

    def action_after(self) -> None:
        """Ask for a time, and release the packets after it."""
        rows = self._meant()

        def take(text: str) -> None:
            try:
                after_s = float(text.removesuffix("s"))
            except ValueError:
                after_s = -1.0
            if not 0 <= after_s < 86400:
                raise UsageError(f"not a number of seconds: {text}")
            for row in rows:
                after_ns = round(after_s * 1e9)
                row.leaves_at_ns = time.monotonic_ns() + after_ns
                self._noted(row, "delay", functools.partial(row.held.release, after_s=after_s), delay_ns=after_ns)

        if rows:
            self.push_screen(Ask(f"release {_names(rows)} after", "seconds", "1.0", take))

    def action_drop(self) -> None:
        """Drop the marked packets, or the chosen one."""
        self._decide(self._meant(), lambda row: self._noted(row, "drop", row.held.drop))

    def action_duplicate(self) -> None:
        """Release a copy of each packet."""

        def duplicate(row: Row) -> str:
            self._noted(row, "duplicate", row.held.duplicate)
            return f"a copy goes on from {row.held.function}()"

        self._decide_and_wait(self._meant(), duplicate)

    def action_edit(self) -> None:
        """Show the chosen packet as a form, and write the typed changes."""
        row = self._chosen
        if row is None:
            return
        field = self.screen_stack[0].query_one(Layers).chosen

        def take(changes: Changes) -> None:
            def edit(row: Row) -> str:
                return self._noted(row, "edit", lambda: row.held.edit(changing(changes)), changes=tuple(changes))

            if changes:
                self._decide_and_wait([row], edit)

        title = f"edit #{row.number} in {row.held.function}()"
        self.push_screen(EditForm(row.held.packet, title, field.name if field else "", take))

    def action_freeze(self) -> None:
        """Give the terminal to gdb, and stop the whole kernel when the chosen packet enters its function."""
        row = self._chosen
        if row is None:
            return
        try:
            with self.suspend():
                self.lab.gdb_prompt(freezing(self.lab, row.held), attached=lambda: self._release(row))
        except SkblabError as error:
            self._complain(error)
        self.refresh(layout=True)

    def action_revert(self) -> None:
        """Undo the edits of the marked packets, or of the chosen one."""
        self._decide_and_wait(self._meant(), lambda row: self._noted(row, "revert", row.held.revert))

    def action_filter(self) -> None:
        """Ask for a filter, and hold only packets that match it."""
        now = next((rule.filter for rule in self.held.rules if rule.verdict == "hold"), "")
        hint = "pcap-filter(7), as in tcpdump; nothing: all packets. What is held stays held."
        self.push_screen(Ask("hold only", hint, now, self.held.refilter))

    def action_mark(self) -> None:
        """Mark or unmark the chosen packet, and go to the next."""
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


def _names(rows: Sequence[Row]) -> str:
    return f"#{rows[0].number}" if len(rows) == 1 else f"{len(rows)} packets"
