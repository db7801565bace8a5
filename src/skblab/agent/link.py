"""The conversation with the agent: a thread reads its events; any other sends a command and waits for the answer.

The reading thread is there for that alone. A thread that waits for what an event brings may read, too (``worker``). In
virtual time the thread that lets the guest run reads (``clock.VirtualClock.attend()``).
"""

import contextlib
import errno
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from skblab.agent import abi
from skblab.agent.channel import Channel
from skblab.agent.tasks import described
from skblab.clock import Clock, VirtualClock
from skblab.errors import AgentDamaged, GuestLost, SkblabError, Timeout, UsageError, to_be_raised
from skblab.host.process import undisturbed
from skblab.host.waiting import Queue, wait

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
FLOOD_TIMEOUT_S = 60.0  # of answers behind a flood of events
CLOSE_TIMEOUT_S = 10.0
TASKS_TIMEOUT_S = 3.0  # of this machine's time
MOST_MEMORY_MIB = 1984  # of a guest: the agent lies behind it, and a call of 5 bytes reaches 2 GiB

Encode = Callable[[int], bytes]
"""Returns a command's bytes for a cookie."""


class Callbacks:
    """Calls what others have registered. Their errors must not end the reading thread: the first of each owner is kept.

    An owner is a rule's number, or None for a trace.
    """

    def __init__(self) -> None:
        self._failed: dict[int | None, Exception] = {}

    def call(self, owner: int | None, callback: Callable[..., object], *arguments: object) -> None:
        """Call a callback of an owner."""
        try:
            callback(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised where the rule, or the trace, ends
            self._failed.setdefault(owner, to_be_raised(error))

    def has_failed(self, owner: int | None) -> bool:
        """Whether a callback of an owner has raised an error that was not taken yet."""
        return owner in self._failed

    def take_error(self, owner: int | None) -> Exception | None:
        """Return and forget the first error of an owner's callbacks."""
        return self._failed.pop(owner, None)


class Link:
    """Commands, their answers, and who reads them.

    :param channel: the memory and the socket shared with the agent
    :param lost: returns the error that says how the guest's kernel ended
    :param clock: the guest's
    """

    def __init__(self, channel: Channel, lost: Callable[[], SkblabError], clock: Clock) -> None:
        self.channel = channel
        self.clock = clock
        self.callbacks = Callbacks()
        self.changed = threading.Condition()  # an answer or an event has come, or the agent is gone
        self._pid = os.getpid()
        self._lost = lost
        self._gone = False
        self._cookies = itertools.count(1)
        self._asked: set[int] = set()  # cookies whose answers are awaited
        self._answers: dict[int, abi.Done] = {}
        self._when_gone: list[Callable[[], None]] = []
        self._tasks: list[abi.Task] = []
        self._waiting = 0  # threads, for changed
        self._reader: threading.Thread | None = None
        self._reading = threading.Lock()  # events are read, and handed on, by one thread at a time:
        self._reads: int | None = None
        self._handed_on = 0  # as Channel.written
        self._heard = 0  # events, one by one

    def start(
        self,
        hear: Callable[[abi.Hit | abi.End], None],
        steps: Callable[[memoryview], None],
        ended: Callable[[], None],
    ) -> None:
        """Start reading; the thread that reads calls what is given here.

        :param hear: with each event that is no answer
        :param steps: with the records of steps, whole ones
        :param ended: once, when the agent is gone, before anybody who waits learns of that
        """
        self._hear, self._steps, self._ended = hear, steps, ended
        if isinstance(self.clock, VirtualClock):
            self.clock.attend(self.listen)
            self.clock.name_tasks(self._name_tasks)
            return
        self._handed_on = self.channel.written
        self._queue = self.channel.queue()
        self._reader = threading.Thread(target=self._read, name="skblab-agent", daemon=True)
        self._reader.start()

    def close(self, last: Callable[[], object]) -> None:
        """Hang up; the agent releases what it holds and disarms everything.

        :param last: called when nothing more comes, and the channel is still open
        """
        self.channel.hang_up()
        if self._reader:
            self._reader.join(CLOSE_TIMEOUT_S)
        if self._reading.acquire(timeout=0 if self._reader and self._reader.is_alive() else CLOSE_TIMEOUT_S):
            self._end()
            last()
            self.channel.close()
            self._reading.release()
        else:  # it uses the shared memory
            log.warning("a callback of a rule or a trace has not returned within %g s", CLOSE_TIMEOUT_S)

    @property
    def gone(self) -> bool:
        """Whether the agent is gone, or the host has hung up."""
        return self._gone

    @property
    def is_forked(self) -> bool:
        """Whether this is the copy of a forked child. Rules and traces are its parent's, and stay in force."""
        return os.getpid() != self._pid

    def lost(self) -> SkblabError:
        """Return the error that says how the agent ended, for the caller to raise."""
        return self._lost()

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when the agent is gone, by the thread that notices."""
        self._when_gone.append(callback)

    @property
    def is_calling(self) -> bool:
        """Whether this thread is in a callback, and reads on once that has returned."""
        return self._reads == threading.get_ident() or self.clock.is_listening

    def refuse_to_wait(self) -> None:
        """Refuse to wait on the thread that reads every answer and every event.

        :raises UsageError: this is that thread, in a callback
        """
        if self.is_calling:
            raise UsageError(
                "a callback cannot wait for the agent, whose answer comes once the callback has returned",
                hint="decide in a thread of your own: lab.hold(), and take(); release() and drop() do not wait",
            )

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until an event makes *done* true, or the agent is gone; return whether it is true."""
        if not done():
            self.refuse_to_wait()
        with self._waits():
            self.clock.wait_for(self.changed, lambda: done() or self._gone, timeout_s)
            return done()

    def catch_up(self) -> None:
        """Wait until every event that the agent has written so far is handed on. In a callback, return at once."""
        if self.clock.is_virtual or self.is_forked or self._reads == threading.get_ident():
            return  # in virtual time, who lets the guest run reads
        if not self._reading.acquire(timeout=ANSWER_TIMEOUT_S):  # a callback has not returned
            return
        written = 0 if self._gone else self.channel.written
        self._reading.release()
        self.wait_until(lambda: self._handed_on >= written, ANSWER_TIMEOUT_S)

    def wait_ready(self) -> None:
        """Wait until the agent is loaded.

        :raises Timeout: it is not within READY_TIMEOUT_S
        :raises GuestLost: the guest kernel is gone
        """
        self._wait(lambda: self.channel.ready, READY_TIMEOUT_S, "the agent to load")

    def send(self, command: bytes) -> None:
        """Send a command without waiting for its answer.

        :raises GuestLost: the guest kernel is gone
        """
        try:
            self.channel.send(command)
            self.clock.given()
        except GuestLost:
            raise self._lost() from None

    def ask(self, encode: Encode, what: str, *, timeout_s: float | None = None) -> int:
        """Send a command, wait for its answer and return it.

        :raises SkblabError: the agent refused
        :raises Timeout: it has not answered within *timeout_s*, by default ANSWER_TIMEOUT_S
        """
        (answer,) = self.ask_each([encode], what, timeout_s=timeout_s)
        if answer.result < 0:
            raise refusal(what, -answer.result)
        return answer.result

    def ask_each(self, encode: Sequence[Encode], what: str, *, timeout_s: float | None = None) -> list[abi.Done]:
        """Send commands, wait for all answers and return them, refusals too.

        :raises Timeout: they have not come within *timeout_s*, by default ANSWER_TIMEOUT_S
        """
        self.refuse_to_wait()
        if self._gone:
            raise self._lost()
        cookies = [next(self._cookies) for _ in encode]
        with self.changed:
            self._asked.update(cookies)
        try:
            for one, cookie in zip(encode, cookies, strict=True):
                self.send(one(cookie))
            timeout_s = ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
            self._wait(lambda: self._answers.keys() >= {*cookies}, timeout_s, what)
            return [self._answers[cookie] for cookie in cookies]
        finally:
            with self.changed:  # an answer that comes too late is dropped
                self._asked.difference_update(cookies)
                for cookie in cookies:
                    self._answers.pop(cookie, None)

    def _name_tasks(self, *, in_turn: bool) -> str:
        """Return who runs in the guest, or waits for what; "" where the agent does not answer.

        :param in_turn: the guest does not rest, and this thread has the turn: look here for the answer
        """
        self._tasks.clear()
        try:
            if in_turn:
                self._look_for(next(self._cookies))
            else:
                self.ask(lambda cookie: abi.encode_decide(abi.Command.TASKS, cookie), "its tasks")
        except SkblabError:
            return ""
        return described(self._tasks)

    def _look_for(self, cookie: int) -> None:
        """Ask for the tasks of a guest that does not rest, and read until the answer is there."""
        self._asked.add(cookie)
        try:
            self.channel.send(abi.encode_decide(abi.Command.TASKS, cookie))
            deadline_s = time.monotonic() + TASKS_TIMEOUT_S
            while cookie not in self._answers and (left_s := deadline_s - time.monotonic()) > 0 and not self._gone:
                wait([self.channel.socket], left_s)
                with undisturbed(only_once=True):
                    self.listen()
        finally:
            self._asked.discard(cookie)
            self._answers.pop(cookie, None)

    @contextlib.contextmanager
    def _waits(self) -> Iterator[None]:
        """Be woken by what changes from now on; ``changed`` is held."""
        with self.changed:
            self._waiting += 1
            try:
                yield
            finally:
                self._waiting -= 1

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for an answer; it stands behind the events before it, so the time begins again while these are read."""
        with self._waits():
            answered, heard, deadline_s = False, -1, time.monotonic() + FLOOD_TIMEOUT_S
            while not answered and heard != self._heard and time.monotonic() < deadline_s:
                heard = self._heard
                answered = self.clock.wait_for(self.changed, lambda: done() or self._gone, timeout_s, of_agent=True)
                if self.clock.is_virtual:  # who waits reads
                    break
            if not answered and not self.clock.guest_is_gone:
                raise Timeout(f"the agent did not answer within {timeout_s:g} s", found=f"waited for: {what}")
            if not done():
                raise self._lost()

    def queue(self, own: int) -> Queue | None:
        """Return where a thread waits that may call ``listen()``: before the reading thread, so that it is woken first.

        :param own: a descriptor for which it waits, too
        :return: None where it has no need to listen: in virtual time, or without an agent
        """
        self.refuse_to_wait()
        with self._reading:
            if self.clock.is_virtual or self._gone:
                return None
            queue = self.channel.queue(own)
            self._queue.step_back()
            return queue

    def listen(self, *, silence: bool = True) -> bool:
        """Read the events that are there, and hand them on; return False if the agent is gone.

        :param silence: the doorbell, first; who does not do so now does so before he waits for it again
        """
        with self._reading:
            if self._gone:
                return False
            self._reads = threading.get_ident()
            try:
                is_there = self.channel.hear() if silence else True
                self._hand_on()
                if self.channel.ask_to_be_rung():
                    self._hand_on()
                if not is_there:
                    self._end()
            except AgentDamaged as error:
                damaged = error
                self._lost = lambda: damaged
                self._end()
            except BaseException:
                self._end()
                raise
            finally:
                self._reads = None
        if self._waiting:
            with self.changed:
                self.changed.notify_all()
        return not self._gone

    def _hand_on(self) -> None:
        events = self.channel.events()
        self.channel.steps(self._steps)  # first: the answer that ends a trace stands behind its last step
        for event in events:
            self._heard += 1
            if isinstance(event, abi.Done):
                self._take(event)
            elif isinstance(event, abi.Task):
                self._tasks.append(event)
            else:
                self._hear(event)
        self._handed_on = self.channel.taken

    def _read(self) -> None:
        """Read events until the agent is gone, or the host hangs up; the reading thread."""
        while self.listen():
            if self._queue.wait():
                with self._reading:
                    self._end()
        with self._reading:
            self._queue.close()

    def _end(self) -> None:
        """Note, once, that the agent is gone."""
        if self._gone:
            return
        with self.changed:
            self._gone = True
            self._ended()
            self.changed.notify_all()
        for callback in self._when_gone:
            self.callbacks.call(None, callback)

    def _take(self, answer: abi.Done) -> None:
        with self.changed:
            if answer.cookie in self._asked:
                self._answers[answer.cookie] = answer


def refusal(what: str, number: int) -> SkblabError:
    """Return the error for an errno with which the agent has refused something."""
    if number == errno.ERANGE:
        return SkblabError(
            f"the agent cannot do that: {what}",
            found="it is too far from the kernel's functions: the guest's memory lies between them",
            hint=f"--memory {MOST_MEMORY_MIB}, or less",
        )
    return SkblabError(f"the agent refused: {what}", found=os.strerror(number))
