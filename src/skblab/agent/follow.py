"""Following packets for a trace: arming its functions, and handing on its steps."""

import contextlib
import errno
from collections.abc import Callable, Sequence

from skblab.agent import abi
from skblab.agent.link import Link, refusal
from skblab.errors import GuestLost, Timeout, UsageError

PROBES_AT_ONCE = 4096  # that fit into the ring of commands

TakeSteps = Callable[[memoryview], object]
"""Called on the reading thread with records of steps, whole ones (kernel/agent/agent_abi.h)."""

Witness = Callable[[abi.Hit, str, str, int], object]
"""Called on the reading thread for each verdict on a packet: the hit, the function, what was done, when (host's ns)."""


def _ignore(*_: object) -> None:
    pass


class Follower:
    """At most one trace at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.following = False
        self._steps: TakeSteps = _ignore
        self._witness: Witness = _ignore

    def follow(
        self, follow: abi.Follow, probes: Sequence[abi.TraceProbe], take: TakeSteps, witness: Witness = _ignore
    ) -> list[abi.TraceProbe]:
        """Follow packets through functions, until ``unfollow()``; return the probes that the agent could not arm.

        :param witness: called, after the step in question, with what rules do meanwhile
        :raises UsageError: packets are followed already
        """
        if self.following:
            raise UsageError("packets are followed already in this lab", hint="one trace at a time")
        self.following = True
        self._steps, self._witness = take, witness
        try:
            return self._arm(follow, probes)
        except BaseException:
            with contextlib.suppress(Timeout):
                self.unfollow()
            raise

    def _arm(self, follow: abi.Follow, probes: Sequence[abi.TraceProbe]) -> list[abi.TraceProbe]:
        self._link.ask(follow.encode, "following packets")
        refused = []
        for first in range(0, len(probes), PROBES_AT_ONCE):
            asked = probes[first : first + PROBES_AT_ONCE]
            answers = self._link.ask_each([probe.encode for probe in asked], "arming functions")
            results = [answer.result for answer in answers]
            if -errno.ERANGE in results:
                raise refusal("arming functions", errno.ERANGE)
            refused += [probe for probe, result in zip(asked, results, strict=True) if result < 0]
        return refused

    def unfollow(self) -> None:
        """Follow packets no more; all steps have been handed on when this returns."""
        if self._link.is_forked:
            return
        try:
            self._link.ask(lambda cookie: abi.encode_decide(abi.Command.UNFOLLOW, cookie), "ending a trace")
        except GuestLost:
            pass
        finally:
            self.following = False
            self._witness = _ignore
        if error := self._link.callbacks.take_error(None):
            raise error

    def take(self, piece: memoryview) -> None:
        """Hand on records of steps."""
        if not self._link.callbacks.has_failed(None):  # a file that lacks a piece must not go on
            self._link.callbacks.call(None, self._steps, piece)

    def saw(self, hit: abi.Hit, function: str, done: str, at_ns: int) -> None:
        """Hand on what a rule did to a packet, or what became of one that it held."""
        self._link.callbacks.call(None, self._witness, hit, function, done, at_ns)
