"""A policy: a Python function decides about each packet that enters a kernel function, as a rule does by itself."""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skblab.agent import abi
from skblab.agent.control import Agent
from skblab.agent.packets import MOST_DELAY_S, HeldPacket
from skblab.agent.worker import Worker
from skblab.edit import changing
from skblab.errors import CallbackFailed, GuestLost, PacketGone, UsageError, check_times, to_be_raised
from skblab.packet import Packet
from skblab.rule import Occurrence, Rule
from skblab.summary import ETH_P_IP

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
COUNT_TIMEOUT_S = 1.0
LEASE_S = 1.0

Decide = Callable[[HeldPacket], str | None]
"""Returns a verdict as a rule writes it, ``drop`` or ``delay 20ms``; or None: the packet goes on."""


def _edit(packet: HeldPacket, verdict: Rule) -> None:
    packet.edit(changing(verdict.changes), fix=verdict.fix)
    packet.release()


def _duplicate(packet: HeldPacket, verdict: Rule) -> None:
    packet.duplicate(verdict.copies)
    packet.release()


_CARRY_OUT: dict[str, Callable[[HeldPacket, Rule], object]] = {
    "accept": lambda packet, _: packet.release(),
    "hold": lambda *_: None,  # somebody else decides, within the lease
    "delay": lambda packet, verdict: packet.release(after_s=verdict.delay_ns / 1e9),
    "drop": lambda packet, _: packet.drop(),
    "duplicate": _duplicate,
    "edit": _edit,
}


class Policy:
    """A function that decides about packets, in force until ``close()``, the end of the ``with``, or the lab's end.

    It is called on a thread of the policy's own, with one packet after another; in virtual time no time passes until it
    has decided. A packet about which it raises, or does not decide within the lease, goes on as it is. It may also
    decide by the packet's own methods, and return None.

    :param decide: returns what happens to a packet
    :param lease_s: how long a packet waits for a decision
    """

    def __init__(self, agent: Agent, rule: Rule, decide: Decide, lease_s: float = LEASE_S) -> None:
        check_times(lease_s=lease_s, longest_s=MOST_DELAY_S, positive=True)  # a policy may hang
        assert Packet(bytes(20), ETH_P_IP).layers is not None  # scapy takes 0.4 s to import: not while a packet waits
        self.rule = rule
        self._decided = self._late = 0
        self._deciding = threading.RLock()  # from a packet's decision until it is counted
        self._decide = decide
        self._failed: Exception | None = None
        self._is_closed = False
        self._clock = agent.link.clock
        self._held = agent.held
        self._worker: Worker[tuple[HeldPacket, Callable[[], None]]] = Worker(agent.link, "skblab-policy", self._work)
        try:
            self._armed = agent.rules.arm(rule, self._heard, lease_s=lease_s, at_once=True)
        except BaseException:
            self._worker.end(CLOSE_TIMEOUT_S)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(raising=error is None)

    @property
    def counts(self) -> abi.Counts:
        """What has become of the packets; ``expired`` counts those that were not decided in time."""
        return self._armed.counts

    @property
    def decided(self) -> int:
        """On how many packets it has decided in time."""
        if self._deciding.acquire(timeout=COUNT_TIMEOUT_S):  # its answer may be here before it is counted
            self._deciding.release()
        return self._decided

    @property
    def late(self) -> int:
        """How many packets had gone on before it decided that something else was to become of them."""
        return self._late

    @property
    def fired(self) -> bool:
        """Whether the function has decided about a packet in time."""
        return self.decided > 0

    @property
    def error(self) -> Exception | None:
        """The first error that the function has raised, until ``close()`` raises it."""
        return self._failed

    def close(self) -> None:
        """Disarm, and end; packets that wait go on. Safe to call twice.

        :raises CallbackFailed: the function has raised; the first error, once
        """
        self._close(raising=True)

    def _close(self, *, raising: bool) -> None:
        try:
            self._armed.disarm(raising=raising)
        finally:
            if not self._worker.end(CLOSE_TIMEOUT_S):
                log.warning("the policy at %s() has not returned within %g s", self.rule.function, CLOSE_TIMEOUT_S)
        is_first, self._is_closed = not self._is_closed, True
        if (error := self._failed) and is_first and raising:
            self._failed = None
            raise CallbackFailed(f"the policy at {self.rule.function}()", error) from error

    def _heard(self, hit: abi.Hit, held: HeldPacket | None) -> None:
        del hit
        if held:
            held.quiet = not self._clock.is_virtual
            has_decided = self._clock.expect()
            if not self._worker.put((held, has_decided)):  # its rule outlives it: close() was interrupted
                has_decided()
                with contextlib.suppress(PacketGone, GuestLost):
                    held.release()

    def _work(self, work: tuple[HeldPacket, Callable[[], None]]) -> None:
        held, has_decided = work
        self._clock.decides_here(self._held.let_run)
        try:
            self._decide_about(held)
            with contextlib.suppress(GuestLost):
                held.later()
        finally:
            has_decided()

    def _decide_about(self, held: HeldPacket) -> None:
        verdict = None
        try:
            verdict = _verdict(self.rule.function, self._decide(held) or "accept")
            with self._deciding:
                _CARRY_OUT[verdict.verdict](held, verdict)
                self._decided += held.decided or verdict.verdict == "hold"
        except (PacketGone, GuestLost) as error:  # by its lease, with its rule, or the function itself has decided
            self._decided += held.decided
            goes_on = verdict is not None and verdict.verdict == "accept"
            self._late += held.cause is abi.Cause.LEASE and not (held.decided or goes_on)
            if held.decided and verdict and not goes_on:
                self._failed = self._failed or error
        except BaseException as error:  # noqa: BLE001 - raised by close()
            self._failed = self._failed or to_be_raised(error)
            with contextlib.suppress(PacketGone, GuestLost):
                held.release()


@functools.lru_cache(maxsize=1024)
def _verdict(function: str, text: object) -> Rule:
    """Return a verdict that a policy has returned, as a rule.

    :raises UsageError: a policy cannot return that
    """
    if not isinstance(text, str):
        raise UsageError(f"no verdict: {text!r}", found="a policy returns text, or None", hint='"drop", "delay 20ms"')
    rule = Rule.parse(f"{function} = {text}")
    plain = not (rule.filter or rule.reason or rule.hold_count or rule.jitter_ns) and rule.occurrence == Occurrence()
    if rule.verdict not in _CARRY_OUT or not plain:
        raise UsageError(
            f"a policy cannot return: {text}", hint=f"one of: {', '.join(_CARRY_OUT)}; without @, if or a drop reason"
        )
    return rule
