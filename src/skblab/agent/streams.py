"""A rule as a stream: of the packets that it holds, or of those that pass its function."""

import collections
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from skblab.agent import abi
from skblab.agent.control import Agent
from skblab.agent.packets import COLUMNS, HeldPacket
from skblab.agent.rules import ignore
from skblab.errors import EventsLost, Timeout, check_times
from skblab.event import Hit
from skblab.host.process import interruptible
from skblab.html import shown, table
from skblab.rule import Rule

Item = TypeVar("Item")


class Stream(Generic[Item]):
    """A rule in force, and its items: iterate, or ``take`` so many. Leaving the ``with`` disarms the rule."""

    def __init__(self, agent: Agent, rule: Rule) -> None:
        self._items: collections.deque[Item] = collections.deque()
        self._heard_of, self._lost_before = 0, agent.rules.lost
        self._news = threading.Condition()
        self._rules, self._link, self._held = agent.rules, agent.link, agent.held
        self._rule = rule
        self._link.when_gone(self._wake)
        self.armed = agent.rules.arm(rule, self._heard)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.armed.disarm(raising=error is None)

    def close(self) -> None:
        """Disarm; what is still held is released."""
        self.armed.disarm()

    @property
    def counts(self) -> abi.Counts:
        """What has become of the packets that the filter took."""
        return self.armed.counts

    @property
    def fired(self) -> bool:
        """Whether a packet got the rule's verdict."""
        return self.counts.verdicts > 0

    def refilter(self, expression: str) -> None:
        """Replace the rule's filter by another; what is held stays held.

        :raises RuleError: libpcap does not understand it; nothing was changed
        """
        self._rules.refilter(self.armed, expression)

    def take(self, count: int = 1, *, timeout_s: float = 10.0) -> list[Item]:
        """Wait until there are *count* items and return them, oldest first.

        :raises Timeout: there are fewer; they stay
        :raises GuestLost: the guest's kernel is gone
        """
        check_times(timeout_s=timeout_s)
        self._link.refuse_to_wait()
        with self._news:
            enough = self._link.clock.wait_for
            enough(self._news, lambda: len(self._items) >= count or self._link.gone, timeout_s)
            if len(self._items) < count:
                if self._link.gone:
                    raise self._link.lost()
                raise Timeout(
                    f"{len(self._items)} of {count} packets at {self.armed.rule.function}() within {timeout_s:g} s"
                )
            return [self._items.popleft() for _ in range(count)]

    def take_all(self) -> list[Item]:
        """Return the items of all packets until now, oldest first, without waiting for others.

        :raises EventsLost: some are missing, because the ring of events was full; ``take()`` has the others
        """
        seen = self.counts.traced
        self._link.catch_up()
        with self._news:
            if seen > self._heard_of and self._rules.lost > self._lost_before:
                raise EventsLost(
                    f"{seen - self._heard_of} of {seen} packets at {self.armed.rule.function}() are missing",
                    found="the ring of events was full: in virtual time it is read when the guest rests",
                    hint="a filter that takes fewer; counts.traced has their number",
                )
            items = list(self._items)
            self._items.clear()
        return items

    def __iter__(self) -> Iterator[Item]:
        """Yield each item when it comes.

        :raises GuestLost: the guest's kernel is gone
        """
        while True:
            with self._news:
                self._link.clock.wait_for(self._news, lambda: bool(self._items) or self._link.gone, None)
                if not self._items:
                    raise self._link.lost()
                item = self._items.popleft()
            yield item

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        raise NotImplementedError

    def _put(self, item: Item) -> None:
        with self._news:
            self._items.append(item)
            self._heard_of += 1
            self._news.notify_all()


class Hold(Stream[HeldPacket]):
    """Packets that are held, and wait for a decision.

    :param report: called for each, on the reading thread
    """

    def __init__(self, agent: Agent, rule: Rule, report: Callable[[Hit], object] = ignore) -> None:
        self._report = report
        super().__init__(agent, rule)

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        if held:
            self._put(held)
        with interruptible():
            self._report(self._rules.event(hit, self._rule.function, self._rule.verdict))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the packets that the rule holds now, also those that were taken."""
        packets = self._held.of_rule(self.armed.number) if self.armed.in_force else []
        return shown(f"{self._rule}: {len(packets)} held", table(COLUMNS, (one.row for one in packets)))


class Probe(Stream[Hit]):
    """Packets that passed."""

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        del held
        self._put(self._rules.event(hit, self._rule.function, self._rule.verdict))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the packets that were not taken yet."""
        with self._news:
            hits = list(self._items)
        rows = ((one.occurrence, f"{(one.at_ns - hits[0].at_ns) / 1e6:.3f}", one.summary()) for one in hits)
        return shown(f"{self._rule}: {len(hits)} not taken", table(("occurrence", "ms", "packet"), rows))
