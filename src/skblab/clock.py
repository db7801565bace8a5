"""The clock of a guest: the machine's own, or one that runs only while somebody waits (virtual time).

In virtual time the guest's kernel asks before it lets idle time pass (``time-travel=ext:``, arch/um/kernel/time.c, as
image/corrections/virtual_time.py changes it). So a virtual clock is **at rest** where the guest is idle: all that it
could do at this moment is done, and it has named the moment of its next timer. A thread that waits lets it run, turn by
turn:

- to this same moment, if the guest was given something meanwhile: a command, input for a program
- else to its next timer, or to the moment at which somebody wants to wait no longer

and looks again whether what is waited for has come. Nobody waits: no time passes.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
import time
from typing import TYPE_CHECKING

from skblab.errors import RuleError, Timeout, UsageError, check_times
from skblab.host.process import undisturbed
from skblab.host.signals import wakeup
from skblab.host.waiting import wait
from skblab.line import Line
from skblab.timetravel import BEGIN_NS, Guest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from skblab.host.waiting import Watched

FOREVER_NS = 1 << 62  # the guest asks for about 292 years where it has no timer
MOST_NS = 1 << 60  # 36 years
LEAST_S = 0.1  # of this machine's, for the guest to say something after its limit
LAST_ANSWER_S = 1.0  # of this machine's, for the agent to answer something after its limit
MOST_S = 3600.0  # of virtual time, for those who wait without limit


class Clock:
    """The clock of a guest in real time; waiting for it is waiting."""

    is_virtual = False

    def fileno(self) -> int:
        """Return the descriptor by which time is granted; -1 in real time."""
        return -1

    @property
    def is_listening(self) -> bool:
        """Whether this thread is in a callback of ``attend()``, and so cannot wait."""
        return False

    def wait(
        self,
        reads: Iterable[Watched],
        timeout_s: float | None = None,
        writes: Iterable[Watched] = (),
        *,
        at_once: Iterable[Watched] = (),
    ) -> list[Watched]:
        """Wait for descriptors as ``waiting.wait()`` does.

        :param timeout_s: of the guest's time
        :param at_once: more that may become readable: events of this machine, which do not wait for the guest
        """
        return wait([*reads, *at_once], timeout_s, writes)

    def wait_for(
        self,
        condition: threading.Condition,
        done: Callable[[], bool],
        timeout_s: float | None,
        *,
        of_agent: bool = False,  # noqa: ARG002 - of a clock of ours
    ) -> bool:
        """Wait until *done*, which *condition* announces; return whether it is. *condition* is held.

        :param timeout_s: of the guest's time
        :param of_agent: for an answer, which it also gives while the kernel stands still
        """
        return condition.wait_for(done, timeout_s)

    def countdown(self, timeout_s: float | None) -> Callable[[], float | None]:
        """Return a function that returns how much is left of a time that begins now, 0 at least; of None, None."""
        if timeout_s is None:
            return lambda: None
        end_ns = self.monotonic_ns + round(timeout_s * 1e9)
        return lambda: max(end_ns - self.monotonic_ns, 0) / 1e9

    def given(self) -> None:
        """Note that the guest was given something that it has to look at."""

    def expect(self) -> Callable[[], None]:
        """Let no time pass until the function that is returned is called: a thread is about to decide."""
        return _nothing

    def decides_here(self, let_run: Callable[[], AbstractContextManager[None]]) -> None:
        """Note that this thread decides about packets for which the guest's kernel stands still; in virtual time alone.

        :param let_run: what is entered while the thread waits for the guest
        """

    @contextlib.contextmanager
    def hurried(self, most_s: float) -> Iterator[None]:  # noqa: ARG002 - of a clock of ours
        """Have this thread's waits end after so much of this machine's time, too, as if theirs were up."""
        yield

    @property
    def guest_is_gone(self) -> bool:
        """Whether waits end because the guest's kernel is gone; in virtual time alone."""
        return False

    def attend(self, listen: Callable[[], bool]) -> None:
        """Have *listen* called whenever the guest may have said something; in virtual time alone."""

    @contextlib.contextmanager
    def paced(self) -> Iterator[None]:
        """Let time pass no faster than this machine's meanwhile: a person is at a terminal of the guest's."""
        yield

    def seed(self) -> int:
        """Return a seed for a rule that has none, 32 bits: another each time."""
        return int.from_bytes(os.urandom(4))

    @property
    def monotonic_ns(self) -> int:
        """The moment, on the clock that has the times of events: the host's CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    @property
    def realtime_ns(self) -> int:
        """The time of day, since 1970."""
        return time.time_ns()


REAL = Clock()


def seconds(length: str | float) -> float:
    """Return a time in seconds: of ``"30s"``, ``"200ms"``, or a number of them.

    :raises UsageError: it is no time
    """
    if not isinstance(length, str):
        check_times(length=length)
        return length
    try:
        return Line(length).time_ns(MOST_NS) / 1e9
    except RuleError as error:
        raise UsageError(error.what, found=error.found, hint=error.hint) from None


def _nothing() -> None:
    """Do nothing."""


@contextlib.contextmanager
def _released(condition: threading.Condition) -> Iterator[None]:
    condition.release()
    try:
        yield
    finally:
        condition.acquire()


class _Here(threading.local):
    """What a thread is; *let_run*: one that decides about packets (``decides_here()``)."""

    let_run: Callable[[], AbstractContextManager[None]] | None = None
    until_s = math.inf  # on this machine's clock; ``hurried()``

    @property
    def left_s(self) -> float:
        """How much of this machine's time is left for its waits."""
        return max(self.until_s - time.monotonic(), 0)


class VirtualClock(Clock):
    """A clock of ours.

    A thread that waits, or another that waits, lets the guest run: one at a time takes the *turn*. It also reads what
    the guest has said, so callbacks run on it.

    :param connection: the other end of the socket that the guest's kernel has
    :param most_s: how much time a wait without limit may take
    :param seed: the lab's
    :param limit_s: how much of this machine's time all waiting may take
    """

    is_virtual = True

    def __init__(
        self, connection: socket.socket, most_s: float = MOST_S, seed: int = 0, limit_s: float | None = None
    ) -> None:
        self._guest = Guest(connection)
        self._random = random.Random(seed)  # noqa: S311 - the same again is what is wanted
        self._most_s = most_s
        self._limit_s = limit_s
        self._left_s = math.inf if limit_s is None else limit_s
        self.changed: Callable[[int, int, int], object] = lambda *_: None  # called with what begin_at() takes
        self._is_paced = False
        self._changed = threading.Condition()  # guards all that follows; a turn is taken without it
        self._turning = False
        self._listening: threading.Thread | None = None
        self._at_rest = False
        self._given = False
        self._expected = 0  # threads that are about to decide
        self._until_ns: list[int] = []  # of each who waits
        self._listeners: list[Callable[[], bool]] = []
        self._here = _Here()

    def fileno(self) -> int:
        """Return the connection's descriptor, for the next controller."""
        return self._guest.connection.fileno()

    def begin_at(self, now_ns: int, next_ns: int, rests: int) -> None:
        """Go on with a guest at *now_ns* that rests until *next_ns*, or runs."""
        self._guest.now_ns, self._guest.next_ns = now_ns, next_ns
        self._guest.rests = self._at_rest = bool(rests)
        self._guest.is_adopted = now_ns > 0 and not rests

    def rest(self) -> None:
        """Let the guest do what it can at this moment, where it has been given something since it rests."""
        if self._given or not self._at_rest:
            self.settle()

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Keep the guest at rest, at this moment, meanwhile.

        :raises UsageError: it does not rest: ``rest()``
        """
        with self._changed:  # nobody lets it run
            if not self._at_rest or self._given or self._turning:
                raise UsageError("another thread lets the guest run, so it has no moment at which it can branch")
            yield

    def branch(self, ask: Callable[[], object], order: bytes, descriptors: Sequence[int]) -> int:
        """Have the kernel of a guest that is ``standing()`` copy its process; return the number of the new one.

        :param ask: sends its process the signal
        :param order: struct agent_branch, about *descriptors*
        :raises SkblabError: it could not
        """
        return self._guest.branch(ask, order, descriptors)

    def like(self, connection: socket.socket) -> VirtualClock:
        """Return the clock of a copy of this guest's kernel, at the other end of *connection*."""
        clock = VirtualClock(connection, self._most_s, limit_s=self._limit_s)
        clock._random.setstate(self._random.getstate())
        clock.begin_at(self._guest.now_ns, self._guest.next_ns, 1)
        return clock

    def name_tasks(self, name: Callable[..., str]) -> None:
        """Have errors say what the guest's tasks do.

        :param name: returns it; with ``in_turn=True``, of a guest that does not rest, on the thread that has the turn
        """
        self._guest.name_tasks = name

    def nudge_by(self, nudge: Callable[[], object]) -> None:
        """Have *nudge* called for a guest that does not rest: it lets a second pass if a program only computes."""
        self._guest.nudge = nudge

    @contextlib.contextmanager
    def paced(self) -> Iterator[None]:
        """Let time pass no faster than this machine's meanwhile: a person is at a terminal of the guest's."""
        self._is_paced = True
        try:
            yield
        finally:
            self._is_paced = False

    def close(self) -> None:
        """Hang up; the guest's time stands still, and its kernel panics when it asks again."""
        self._guest.connection.close()

    @property
    def now(self) -> float:
        """The guest's time since it booted, in seconds."""
        return self._guest.now_ns / 1e9

    @property
    def monotonic_ns(self) -> int:
        """The moment, on the clock that has the times of events: the guest's time since it booted."""
        return self._guest.now_ns

    @property
    def realtime_ns(self) -> int:
        """The guest's time of day, since 1970."""
        return BEGIN_NS + self._guest.now_ns

    def seed(self) -> int:
        """Return a seed for a rule that has none, 32 bits; the lab's seed determines it."""
        return self._random.getrandbits(32)

    def given(self) -> None:
        """Note that the guest was given something that it has to look at."""
        with self._changed:
            self._given = True

    def expect(self) -> Callable[[], None]:
        """Let no time pass until the function that is returned is called: a thread is about to decide."""
        with self._changed:
            self._expected += 1
        return self._has_decided

    def _has_decided(self) -> None:
        with self._changed:
            self._expected -= 1
            self._given = True
            self._changed.notify_all()

    def decides_here(self, let_run: Callable[[], AbstractContextManager[None]]) -> None:
        """Note that this thread decides about packets for which the guest's kernel stands still.

        :param let_run: what is entered while the thread waits for the guest
        """
        self._here.let_run = let_run

    @contextlib.contextmanager
    def hurried(self, most_s: float) -> Iterator[None]:
        """Have this thread's waits end after so much of this machine's time, too, as if theirs were up."""
        before_s = self._here.until_s
        self._here.until_s = min(before_s, time.monotonic() + most_s)
        try:
            yield
        finally:
            self._here.until_s = before_s

    @property
    def guest_is_gone(self) -> bool:
        """Whether waits end because the guest's kernel is gone."""
        return self._guest.gone

    def attend(self, listen: Callable[[], bool]) -> None:
        """Have *listen* called whenever the guest may have said something, before more time passes.

        :param listen: returns whether it wants to be called again
        """
        self._listeners.append(listen)

    @property
    def is_listening(self) -> bool:
        """Whether this thread is in a callback of ``attend()``, and so cannot wait."""
        return self._listening is threading.current_thread()

    def wait(
        self,
        reads: Iterable[Watched],
        timeout_s: float | None = None,
        writes: Iterable[Watched] = (),
        *,
        at_once: Iterable[Watched] = (),
    ) -> list[Watched]:
        """Let the guest run until it has made one of *reads* readable or one of *writes* writable; return these.

        :param timeout_s: of virtual time; then return an empty list
        :param at_once: more that may become readable: events of this machine, which do not wait for the guest
        """
        reads, writes, at_once = list(reads), list(writes), list(at_once)
        ready: list[Watched] = []

        def is_ready() -> bool:
            ready[:] = wait([*reads, *at_once], 0, writes)
            return bool(ready)

        if not self.wait_until(is_ready, timeout_s, at_once) and self._guest.gone:
            return wait([*reads, *at_once], timeout_s, writes)  # what a guest leaves behind when it ends
        return ready

    def wait_for(
        self,
        condition: threading.Condition,
        done: Callable[[], bool],
        timeout_s: float | None,
        *,
        of_agent: bool = False,
    ) -> bool:
        """Let the guest run until *done*; return whether it is. *condition* is held, and is not meanwhile.

        :param of_agent: for an answer, which it also gives while the kernel stands still
        """
        with _released(condition):
            if not of_agent:
                return self.wait_until(done, timeout_s)
            with self.hurried(LAST_ANSWER_S if self._left_s <= 0 else math.inf):
                is_done = self._wait_until(done, timeout_s)
            assert isinstance(is_done, bool)  # it has a limit
            if not is_done and self._left_s <= 0:  # nor will it answer what it is asked next
                self._guest.stuck = self._guest.stuck or self._too_late()
            return is_done

    def settle(self) -> None:
        """Let the guest do what it can at this moment."""
        self.wait_until(lambda: False, 0)

    def advance(self, length: str | float) -> None:
        """Let a time pass in the guest: ``"30s"``, ``"200ms"``, or seconds."""
        self.wait_until(lambda: False, seconds(length))

    def step(self) -> float:
        """Let time pass to the guest's next timer; return ``now``."""
        self.settle()
        before_ns = self._guest.now_ns
        self.wait_until(lambda: self._guest.now_ns > before_ns, None)
        return self.now

    def run_until(self, when: str | float | Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Let time pass up to a moment since boot (``"30s"``, seconds), or until a function returns true.

        :param timeout_s: of virtual time, for a function; return whether it has returned true
        """
        check_times(timeout_s=timeout_s)
        if callable(when):
            return self.wait_until(when, timeout_s)
        return not self.wait_until(lambda: False, max(seconds(when) - self.now, 0))

    def wait_until(self, done: Callable[[], bool], timeout_s: float | None, at_once: Iterable[Watched] = ()) -> bool:
        """Let the guest run until *done*; return False after *timeout_s* of virtual time, or if the guest is gone.

        :raises Timeout: *most_s* has passed for one who waits without limit; or a program computes for ever
        :raises UsageError: this is a callback
        """
        let_run = self._here.let_run
        with let_run() if let_run and not done() else contextlib.nullcontext():
            error = self._wait_until(done, timeout_s, at_once, bounded=True)
        if isinstance(error, Timeout):
            error.found = error.found or self._guest.name_tasks(in_turn=False)
            raise error
        return error

    def _wait_until(
        self,
        done: Callable[[], bool],
        timeout_s: float | None,
        at_once: Iterable[Watched] = (),
        *,
        bounded: bool = False,
    ) -> bool | Timeout:
        """Do what ``wait_until()`` does; return an error, which lacks the tasks' names, where time has run away."""
        at_once = list(at_once)
        if self.is_listening and not done():
            raise UsageError(
                "a callback cannot wait in virtual time: the guest runs on once it has returned",
                hint="decide in a thread of your own: lab.hold(), and take(); or lab.on()",
            )
        with self._changed:
            until_ns = self._guest.now_ns + round((self._most_s if timeout_s is None else timeout_s) * 1e9)
            self._until_ns.append(until_ns)
            self._given = True  # what was done before may concern the guest
            try:
                while not done():
                    if self._guest.stuck:
                        raise self._guest.stuck
                    if self._guest.gone or not self._here.left_s:
                        return False
                    if self._at_rest and not self._given and self._guest.now_ns >= until_ns:
                        return self._too_long() if timeout_s is None else False
                    if bounded and self._left_s <= 0:
                        return self._too_late()
                    decide_first = self._at_rest and not self._given and self._expected
                    if decide_first and not self._turning and self._here.let_run:
                        raise UsageError(
                            "a policy waits for something that takes virtual time, which passes once it has decided",
                            hint="decide in a thread of your own: lab.hold(), and take()",
                        )
                    if self._turning or decide_first:
                        left_s = self._here.left_s
                        self._changed.wait(None if left_s == math.inf else left_s)
                    else:
                        self._turn(at_once)
                return True
            finally:
                self._until_ns.remove(until_ns)

    def _too_long(self) -> Timeout:
        """Return the error for one who has waited without limit."""
        return Timeout(
            f"{self._most_s:g} s have passed in the guest, and what is waited for has not come",
            hint="LabSpec(most_s=...), --most TIME",
        )

    def _too_late(self) -> Timeout:
        """Return the error for a guest that has taken too much of this machine's time."""
        return Timeout(
            f"the guest has run for {self._limit_s:g} s of this machine's time, {self.now:.6g} s of its own, "
            "and what is waited for has not come",
            found="" if self._guest.rests else self._guest.name_tasks(in_turn=True),
            hint="LabSpec(timeout_s=...), --timeout TIME",
        )

    def _turn(self, at_once: list[Watched]) -> None:
        """Let the guest run until it is at rest again, or one of *at_once* is ready, and hear what it has said.

        ``_changed`` is held, and is not meanwhile.
        """
        began_s = time.monotonic()
        try:
            self._turning = True
            with undisturbed(only_once=True):
                try:
                    with wakeup() as woken:  # a signal ends the conversation between two of its messages
                        self._converse([*at_once, woken])
                finally:  # what the guest has said it does not say again
                    with _released(self._changed):
                        self._hear()
        finally:
            self._left_s -= time.monotonic() - began_s
            self._turning = False
            self._at_rest = self._guest.rests
            self._changed.notify_all()

    def _converse(self, at_once: list[Watched]) -> None:
        run_ns = None
        if self._at_rest:
            run_ns = (
                self._guest.now_ns
                if self._given
                else max(min(self._guest.next_ns, *self._until_ns, FOREVER_NS), self._guest.now_ns)
            )
            self._at_rest = self._given = False
            self.changed(self._guest.now_ns, self._guest.next_ns, 0)
        with _released(self._changed):
            if run_ns is not None:
                self._guest.run(self._at_this_pace(run_ns, at_once) if self._is_paced else run_ns)
            self._guest.hear(at_once, time.monotonic() + min(max(self._left_s, LEAST_S), self._here.left_s))
        self.changed(self._guest.now_ns, self._guest.next_ns, int(self._guest.rests))

    def _hear(self) -> None:
        self._listening = threading.current_thread()
        try:
            for listen in tuple(self._listeners):
                if not listen():
                    self._listeners.remove(listen)
        finally:
            self._listening = None

    def _at_this_pace(self, run_ns: int, at_once: list[Watched]) -> int:
        """Wait for a moment on this machine's clock, too; return it, or now if *at_once* is ready."""
        began_ns = time.monotonic_ns()
        if wait(at_once, max(run_ns - self._guest.now_ns, 0) / 1e9):
            return min(self._guest.now_ns + time.monotonic_ns() - began_ns, run_ns)
        return run_ns
