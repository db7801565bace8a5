"""A rule that runs by itself: the host does what its verdict needs of the host."""

import collections
import contextlib
import random
import re
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skblab.agent import abi
from skblab.agent.control import Agent
from skblab.agent.packets import HeldPacket, State
from skblab.agent.rules import ignore
from skblab.clock import Clock
from skblab.edit import changing, corrupting
from skblab.errors import CallbackFailed, GuestLost, PacketGone, Timeout, UsageError, check_times, to_be_raised
from skblab.event import Hit
from skblab.host.process import interruptible
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.summary import ETH_P_IP
from skblab.verdict import VERDICTS

NO_DIFFERENCE = "makes no difference"  # what is said of an edit that has found the bytes as it wants them

Report = Callable[[Hit], object]
"""Called for each packet that met the rule; on the reading thread, or for an edit on a thread of the rule's."""


class _Reports:
    """Calls what the caller gave. Its errors must not keep packets from going on: the first one is kept."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.failed: Exception | None = None

    def __call__(self, hit: Hit) -> None:
        try:
            with interruptible():
                self._report(hit)
        except BaseException as error:  # noqa: BLE001 - raised by Running.close(); a signal by undisturbed()
            self.failed = self.failed or to_be_raised(error)


class _Groups:
    """``hold N release ...``: releases every N packets together."""

    def __init__(self, rule: Rule, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock
        self._group: list[HeldPacket] = []
        self.complete = 0

    def add(self, held: HeldPacket) -> None:
        """Add a packet; release the group if it is complete: so many are held together."""
        self._group.append(held)
        if len(self._group) >= self._rule.hold_count:  # some may have gone: by their lease, with their device
            self._group = [one for one in self._group if one.state is State.HELD]
        if len(self._group) < self._rule.hold_count:
            return
        group, self._group = self._group, []
        self.complete += 1
        if self._rule.order == "reverse":
            group.reverse()
        elif self._rule.order == "random":
            random.Random(self._rule.occurrence.seed or self._clock.seed()).shuffle(group)  # noqa: S311
        for one in group:
            _release(one)


class _Edits:
    """``edit``, ``corrupt``: changes and releases packets, on a thread of its own: it waits for the agent's answers."""

    def __init__(self, rule: Rule, agent: Agent, report: _Reports) -> None:
        self._rule = rule
        self._rules = agent.rules
        self._clock = agent.link.clock
        self._held = agent.held
        self._report = report
        self._work: collections.deque[tuple[HeldPacket, Callable[[], None]]] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._added = self._done = 0
        self._named = changing(rule.changes)
        self.edited = self.failed = 0
        self.why_failed = ""  # the first time
        assert Packet(bytes(20), ETH_P_IP).layers is not None  # scapy takes 0.4 s to import: not while a packet waits
        self._thread = threading.Thread(target=self._run, name="skblab-edit", daemon=True)
        self._thread.start()

    def add(self, held: HeldPacket) -> None:
        """Add a packet to be changed."""
        with self._changed:
            if not self._ended:
                self._work.append((held, self._clock.expect()))
                self._added += 1
                self._changed.notify_all()
                return
        _release(held)  # its rule outlives it: close() was interrupted

    def finish(self) -> None:
        """Wait until what was added before this call is done: its rule may end then."""
        with self._changed:
            added = self._added
            self._changed.wait_for(lambda: self._done >= added)

    def close(self) -> None:
        """Finish what was added, and end."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _change(self, held: HeldPacket) -> str:
        """Change a packet as the rule says; return what was changed."""
        if self._rule.verdict == "corrupt":
            seed = f"{self._rule.occurrence.seed} {held.hit.occurrence}"
            return held.edit(corrupting(self._rule.corrupted_bytes, seed), fix=False)
        return held.edit(self._named, fix=self._rule.fix)

    def _run(self) -> None:
        self._clock.decides_here(self._held.let_run)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or bool(self._work))
                if not self._work:
                    return
                held, has_decided = self._work.popleft()
            before = held.packet
            try:
                changed = self._change(held)
                said = f"{self._rule.verdict} {changed or NO_DIFFERENCE}".replace("\n", ", ")
                with self._rules.changed:
                    self.edited += bool(changed)
                    self._rules.changed.notify_all()
            except PacketGone as error:  # with its rule
                said = f"not edited: {error.what}"
            except Exception as error:  # noqa: BLE001 - scapy may raise anything; the packet is released as it was
                why = re.sub(r"\n\s*", "; ", str(error))
                said = f"{self._rule.verdict} failed, released as it was: {why}"
                self.failed, self.why_failed = self.failed + 1, self.why_failed or why
            try:
                _release(held)
                self._report(self._rules.event_of(held, said, before))
            finally:
                has_decided()
                with self._changed:
                    self._done += 1
                    self._changed.notify_all()


def _release(held: HeldPacket) -> None:
    """Release a packet that may have gone with its rule."""
    with contextlib.suppress(PacketGone, GuestLost):
        held.release()


class Running:
    """A rule in force with its host side: ``hold N release ...`` and ``edit`` have one.

    Close it, or use it in a ``with``.

    :param report: called for each packet
    """

    def __init__(self, agent: Agent, rule: Rule, report: Report) -> None:
        self._rule = rule
        self._rules = agent.rules
        self._report = _Reports(report)
        self._reports = report is not ignore
        self._is_closed = False
        self._link = agent.link
        self._hits, self._lost_before = 0, agent.rules.lost
        self._groups = _Groups(rule, agent.link.clock) if rule.hold_count else None
        changes = VERDICTS[rule.verdict].changes_bytes
        self._edits = _Edits(rule, agent, self._report) if changes else None
        try:
            self.armed = agent.rules.arm(rule, self._heard, at_once=changes, in_order=changes)
        except BaseException:
            if self._edits:
                self._edits.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(raising=error is None)

    @property
    def counts(self) -> abi.Counts:
        """What has become of the packets that the filter took; also when it is closed."""
        return self.armed.counts

    @property
    def fired(self) -> bool:
        """Whether the rule gave its verdict at least once: an edit changed a packet, ``hold N`` held N together."""
        if self._edits:
            return self._edits.edited > 0
        if self._groups:
            return self._groups.complete > 0
        return self.counts.verdicts > 0

    @property
    def error(self) -> Exception | None:
        """The first error that *report* has raised, until ``close()`` raises it."""
        return self._report.failed

    def wait(self, count: int = 1, *, timeout_s: float = 10.0) -> None:
        """Wait until the rule has given its verdict to *count* packets.

        :raises Timeout: it has not
        :raises UsageError: the verdict is ``accept``, of which nobody hears; or this is a callback
        """
        check_times(timeout_s=timeout_s)
        if self._rule.verdict == "accept":
            raise UsageError("nobody hears of a packet that is accepted", hint=f"{self._rule.function} = trace")
        if not self._link.wait_until(lambda: self._given >= count, timeout_s):
            if self._link.gone:
                raise self._link.lost()
            raise Timeout(
                f"{self._rule}: {self._given} of {count} packets within {timeout_s:g} s",
                found=f"the ring of events was full for {lost} others" if (lost := self._unheard) else "",
            )

    @property
    def unheard(self) -> int:
        """How many packets that met the rule *report* has missed: the ring of events was full."""
        return self._unheard if self._reports else 0

    @property
    def _unheard(self) -> int:
        if self._rule.verdict == "accept" or self._rules.lost == self._lost_before:
            return 0
        verdicts = self.counts.verdicts
        self._link.catch_up()
        return max(verdicts - self._hits, 0)

    @property
    def _given(self) -> int:
        return self._edits.edited if self._edits else self._hits

    @property
    def unedited(self) -> int:
        """How many packets went on unchanged because their edit had failed."""
        return self._edits.failed if self._edits else 0

    @property
    def why_unedited(self) -> str:
        """Why the first of them did; "" where none did."""
        return self._edits.why_failed if self._edits else ""

    def close(self) -> None:
        """Disarm, and end. Safe to call twice.

        :raises CallbackFailed: *report* has raised; the first time
        """
        self._close(raising=True)

    def _close(self, *, raising: bool) -> None:
        try:
            if self._edits:
                self._edits.finish()
        finally:
            self.armed.disarm(raising=raising)
            if self._edits:
                self._edits.close()
        is_first, self._is_closed = not self._is_closed, True
        if (error := self._report.failed) and is_first and raising:
            self._report.failed = None
            raise CallbackFailed(str(self._rule), error) from error

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        self._hits += 1
        if held and self._edits:
            self._edits.add(held)
            return
        self._report(self._rules.event(hit, self._rule.function, self._rule.verdict))
        if held and self._groups:
            self._groups.add(held)
