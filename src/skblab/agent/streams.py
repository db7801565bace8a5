"""What people hold in their hands: a stream of held packets, a stream of hits, a rule that runs by itself."""

import collections
import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from skblab.agent import abi
from skblab.agent.control import Agent, Armed
from skblab.agent.packets import HeldPacket
from skblab.edit import changing
from skblab.errors import CallbackFailed, GuestLost, PacketGone, Timeout
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.summary import ETH_P_IP

Item = TypeVar("Item")


class Stream(Generic[Item]):
    """A rule in force, and what it yields: iterate, or ``take`` so many. Leaving the ``with`` disarms it."""

    def __init__(self, agent: Agent, rule: Rule) -> None:
        self._items: collections.deque[Item] = collections.deque()
        self._news = threading.Condition()
        self._agent = agent
        agent.when_gone(self._wake)
        self.armed: Armed = agent.arm(rule, self._heard)

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

    def refilter(self, expression: str) -> None:
        """Take what this pcap filter takes, from now on; what is held stays held.

        :raises RuleError: libpcap does not understand it; nothing was changed
        """
        self._agent.refilter(self.armed, expression)

    def take(self, count: int = 1, *, timeout_s: float = 10.0) -> list[Item]:
        """Wait until there are so many and return them, oldest first.

        :raises Timeout: there are not; those that are, stay
        :raises GuestLost: there will not be any more
        """
        self._agent.refuse_to_wait()
        with self._news:
            self._news.wait_for(lambda: len(self._items) >= count or self._agent.gone, timeout_s)
            if len(self._items) < count:
                if self._agent.gone:
                    raise self._agent.lost()
                raise Timeout(
                    f"{len(self._items)} of {count} packets at {self.armed.rule.function}() within {timeout_s:g} s"
                )
            return [self._items.popleft() for _ in range(count)]

    def take_all(self) -> list[Item]:
        """Return what there is now, oldest first, without waiting."""
        with self._news:
            items = list(self._items)
            self._items.clear()
        return items

    def __iter__(self) -> Iterator[Item]:
        """Yield what comes, for as long as somebody asks.

        :raises GuestLost: nothing more will come
        """
        while True:
            with self._news:
                self._news.wait_for(lambda: bool(self._items) or self._agent.gone)
                if not self._items:
                    raise self._agent.lost()
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
            self._news.notify_all()


class Hold(Stream[HeldPacket]):
    """Packets that are set aside, and wait for a decision."""

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        del hit
        if held:
            self._put(held)


class Probe(Stream[tuple[abi.Hit, Packet]]):
    """Packets that went by."""

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        del held
        self._put((hit, Packet(hit.data, hit.protocol)))


class Running:
    """A rule that needs the host for what it does: ``hold N release ...`` and ``edit``. Others run in the agent alone.

    Close it, or use it in a ``with``. *told* is called for each hit, on the reading thread, with the packet and what
    was done.
    """

    def __init__(
        self, agent: Agent, rule: Rule, told: "collections.abc.Callable[[abi.Hit, Packet, str], None]"
    ) -> None:
        self._rule = rule
        self._told = told
        self._group: list[HeldPacket] = []
        self._work: collections.deque[HeldPacket] = collections.deque()
        self._news = threading.Condition()
        self._ended = False
        self._worker: threading.Thread | None = None
        self._failed: Exception | None = None
        self.unedited = 0  # packets that went on as they were, for their edit had failed
        self.why_unedited = ""  # the first one
        if rule.verdict == "edit":
            assert (
                Packet(bytes(20), ETH_P_IP).layers is not None
            )  # scapy takes 0.4 s to import: not while a packet waits
            self._worker = threading.Thread(target=self._edit_all, name="skblab-edit", daemon=True)
            self._worker.start()
        self.armed = agent.arm(rule, self._heard)

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

    def close(self) -> None:
        """Disarm, and end. Safe to call twice.

        :raises CallbackFailed: *told* raised; the first time
        """
        self._close(raising=True)

    def _close(self, *, raising: bool) -> None:
        self.armed.disarm(raising=raising)
        with self._news:
            self._ended = True
            self._news.notify_all()
        if self._worker:
            self._worker.join()
        error, self._failed = self._failed, None
        if error and raising:
            raise CallbackFailed(str(self._rule), error) from error

    def _tell(self, hit: abi.Hit, packet: Packet, done: str) -> None:
        """Call what the caller gave. An error of it must not keep packets from going on."""
        try:
            self._told(hit, packet, done)
        except Exception as error:  # noqa: BLE001 - raised by close()
            self._failed = self._failed or error

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        if held and self._rule.verdict == "edit":
            with self._news:
                self._work.append(held)
                self._news.notify_all()
            return
        self._tell(hit, Packet(hit.data, hit.protocol), str(self._rule.verdict))
        if held and self._rule.hold_count:
            self._group.append(held)
            if len(self._group) >= self._rule.hold_count:
                self._release_group()

    def _release_group(self) -> None:
        group, self._group = self._group, []
        if self._rule.order == "reverse":
            group.reverse()
        elif self._rule.order == "random":
            random.Random(self._rule.occurrence.seed or time.monotonic_ns()).shuffle(group)  # noqa: S311
        for held in group:
            _let_go(held)

    def _edit_all(self) -> None:
        """Edit and release what comes; a thread of its own, for it waits for the agent's answers."""
        change = changing(self._rule.changes)
        while True:
            with self._news:
                self._news.wait_for(lambda: self._ended or bool(self._work))
                if not self._work:
                    return
                held = self._work.popleft()
            before = held.packet
            try:
                said = "edit " + held.edit(change, fix=self._rule.fix).replace("\n", ", ")
            except PacketGone as error:  # with its rule
                said = f"not edited: {error.what}"
            except Exception as error:  # noqa: BLE001 - whatever a packet does to scapy, it is released as it was
                why = re.sub(r"\n\s*", "; ", str(error))
                said = f"edit failed, released as it was: {why}"
                self.unedited, self.why_unedited = self.unedited + 1, self.why_unedited or why
            _let_go(held)
            self._tell(held.hit, before, said)


def _let_go(held: HeldPacket) -> None:
    """Release a packet that may have gone with its rule."""
    with contextlib.suppress(PacketGone, GuestLost):
        held.release()
