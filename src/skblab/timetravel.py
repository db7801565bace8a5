"""The conversation about time with a guest's kernel in virtual time (``time-travel=ext:``).

include/uapi/linux/um_timetravel.h has the messages; what the kernel says more is in image/corrections/virtual_time.py.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from skblab.errors import SkblabError, Timeout
from skblab.host.waiting import wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from skblab.host.waiting import Watched

MESSAGE = struct.Struct("=IIQ")  # struct um_timetravel_msg: op, seq, time
IDLE = 1 << 63  # of WAIT's time
BEGIN_NS = 1_767_225_600 * 10**9  # 2026-01-01 00:00 UTC, the guest's time of day at its boot
SPIN_S = 1.0  # of real time: a guest that neither rests nor asks may have a program that spins
MOST_SPINS = 60
BRANCH_TIMEOUT_S = 20.0
MOST_PID, MOST_ERRNO = 1 << 22, 4096  # include/linux/threads.h, err.h


class Op(IntEnum):
    """The kind of a message: enum um_timetravel_ops, and what the agent says beside the kernel (agent_abi.h)."""

    ACK = 0
    START = 1
    REQUEST = 2
    WAIT = 3
    GET = 4
    UPDATE = 5
    RUN = 6
    FREE_UNTIL = 7
    GET_TOD = 8
    BROADCAST = 9
    STANDS = 100  # enum agent_op
    GOES_ON = 101
    BRANCHES = 102
    BRANCHED = 103


class Guest:
    """A guest's kernel that asks before time passes.

    :param connection: the other end of its socket
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.now_ns = 0  # when it has rested last
        self.next_ns = 0  # the moment of its next timer, from then
        self.rests = False
        self.stands = False  # its agent waits for commands, and nothing else runs
        self.gone = False
        self.stuck: Timeout | None = None  # why it cannot go on
        self.nudge: Callable[[], object] = lambda: None  # lets a second pass where one does
        self.name_tasks: Callable[..., str] = lambda **_: ""
        self.is_adopted = False  # it ran when its last controller left, and has said nothing since
        self._unread = b""

    def run(self, until_ns: int) -> None:
        """Let a guest that rests run, at this moment or another before ``next_ns``."""
        self.rests = False
        self._say(Op.RUN, until_ns)

    def branch(self, ask: Callable[[], object], order: bytes, descriptors: Sequence[int]) -> int:
        """Have a guest that rests copy its kernel's process; return the number of the new one.

        :param ask: sends the process the signal
        :param order: struct agent_branch, about *descriptors*
        :raises Timeout: it does not answer
        :raises SkblabError: it could not
        """
        deadline_s = time.monotonic() + BRANCH_TIMEOUT_S
        ask()
        while self._expect(Op.BRANCHES, deadline_s):  # it has yet to read our last word
            ask()
        socket.send_fds(self.connection, [order], list(descriptors))
        number = self._expect(Op.BRANCHED, deadline_s)
        if number > MOST_PID:
            error = (1 << 64) - number
            raise SkblabError(
                "the guest's kernel cannot be copied",
                found=os.strerror(error) if error < MOST_ERRNO else f"it says {number}",
                hint="a program that is stopped, traced, or has called modify_ldt(2)?" if error == errno.EBUSY else "",
            )
        return number

    def _expect(self, wanted: Op, deadline_s: float) -> int:
        """Return the value of the next message, which is the only one that a guest at rest can send."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            for op, _, value in self._messages():
                if op is wanted:
                    return value
                raise SkblabError(f"the guest's kernel says {op.name} while it rests")
            if wait([self.connection], left_s) and not self._read():
                break
        raise Timeout("the guest's kernel was asked to copy its process, and does not answer")

    def hear(self, at_once: list[Watched], deadline_s: float = math.inf) -> None:
        """Answer the guest until it rests, or stands, or is gone, or one of *at_once* is ready.

        :param deadline_s: the moment on this machine's clock at which to stop

        :raises Timeout: it does not rest, or cannot go on
        """
        spins = 0
        while True:
            for op, seq, time_ns in self._messages():
                self.rests = self._answer(op, seq, time_ns)
                if self.rests or op is Op.STANDS:
                    return
            if self.connection.fileno() < 0:  # another thread has closed the lab
                self.gone = True
                return
            watched: list[Any] = [self.connection, *at_once]
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            patience_s = left_s if self.stands else min(left_s, SPIN_S)
            ready = wait(watched, None if patience_s == math.inf else patience_s)
            if self.connection in ready:
                self.is_adopted = False
                if not self._read():
                    return
            elif ready:
                return
            elif patience_s == SPIN_S:
                self._spins(spins)
                spins += 1

    def _spins(self, before: int) -> None:
        """Move a guest on that has said nothing for SPIN_S, or give up."""
        if self.is_adopted and before >= 3:
            self.stuck = Timeout(
                "the guest waits for an answer about its time, which a command that was killed has not given",
                hint="this lab cannot go on: skblab down NAME, and skblab up",
            )
        elif before == MOST_SPINS:
            self.stuck = Timeout(
                f"the guest has run for {MOST_SPINS * SPIN_S:g} s, and does not rest",
                found=self.name_tasks(in_turn=True) or "its kernel does not answer: gdb has stopped it, or it is stuck",
            )
        if self.stuck:
            raise self.stuck
        self.nudge()

    def _answer(self, op: Op, seq: int, time_ns: int) -> bool:
        """Answer a message; return whether the guest rests now."""
        self.stands = op is Op.STANDS
        if op is Op.REQUEST:
            self.next_ns = time_ns
        elif op is Op.WAIT:
            self.now_ns = time_ns & ~IDLE
        if op not in {Op.ACK, Op.STANDS, Op.GOES_ON}:
            self._say(Op.ACK, {Op.GET: self.now_ns, Op.GET_TOD: BEGIN_NS + self.now_ns}.get(op, 0), seq)
        return op is Op.WAIT

    def _say(self, op: Op, time_ns: int, seq: int = 0) -> None:
        with contextlib.suppress(OSError):  # hear() finds that the guest is gone
            self.connection.sendall(MESSAGE.pack(op, seq, time_ns))

    def _read(self) -> bool:
        """Read what the guest has said of time; return False where it is gone."""
        data = b""
        with contextlib.suppress(OSError):
            data = self.connection.recv(4096)
        self._unread += data
        self.gone = not data
        return not self.gone

    def _messages(self) -> Iterator[tuple[Op, int, int]]:
        while len(self._unread) >= MESSAGE.size:
            op, seq, time_ns = MESSAGE.unpack_from(self._unread)
            self._unread = self._unread[MESSAGE.size :]
            try:
                yield Op(op), seq, time_ns
            except ValueError:  # the guest's root can write to any of its kernel's descriptors
                raise SkblabError(f"the guest's kernel says something of time that has no meaning: {op}") from None
