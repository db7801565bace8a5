"""UML's management console: datagrams to and from the guest kernel (arch/um/drivers/mconsole.h)."""

import enum
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from skblab.clock import REAL, Clock
from skblab.errors import MconsoleRefused, SkblabError, Timeout, UsageError, check_times
from skblab.host.waiting import wait

MAGIC = 0xCAFEBABE
VERSION = 2
REQUEST = struct.Struct("<III512s")
REPLY_HEAD = struct.Struct("<III")
NOTIFY_HEAD = struct.Struct("<IIiI")
TIME = struct.Struct("<Q")  # process 1 of the lab prepends it to each (host/lab_init.py Notifications)
LONGEST_BYTES = 511  # length of a command (MCONSOLE_MAX_DATA)
STACK_WITHIN_S = 2.0
TIMEOUT_S = 5.0
END_TIMEOUT_S = 5.0
ENDING_KEYS = "bco"  # sysrq keys: reboot, crash, power off


class Kind(enum.IntEnum):
    """The kind of a notification (enum in mconsole.h)."""

    SOCKET = 0
    PANIC = 1
    HANG = 2
    USER = 3


@dataclass(frozen=True)
class Notification:
    """One datagram from the guest's kernel: its mconsole is open, it panics, or a process wrote to /proc/mconsole."""

    kind: Kind
    text: str
    at_s: float = 0.0  # time.time()


def parse_notification(datagram: bytes) -> Notification:
    """Decode one notification.

    :raises ValueError: it is malformed
    """
    if len(datagram) < NOTIFY_HEAD.size:
        raise ValueError(f"mconsole notification of {len(datagram)} bytes")
    magic, version, kind, length = NOTIFY_HEAD.unpack_from(datagram)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"mconsole notification with magic {magic:#x}, version {version}")
    data = datagram[NOTIFY_HEAD.size : NOTIFY_HEAD.size + length]
    return Notification(Kind(kind), data.rstrip(b"\0").decode(errors="replace"))


def receive(listener: socket.socket) -> Notification:
    """Wait for the next notification that process 1 of the lab passes on, and return it.

    A malformed datagram, which the guest's root can send, becomes an empty notification.
    """
    message = listener.recv(4096)
    if not message:
        raise ConnectionResetError("process 1 of the lab is gone")
    (at_ns,) = TIME.unpack_from(message)
    try:
        notification = parse_notification(message[TIME.size :])
    except ValueError:
        notification = Notification(Kind.USER, "")
    return replace(notification, at_s=at_ns / 1e9)


class Mconsole:
    """The management console of one guest: commands to its kernel, without a program in the guest.

    Every command raises Timeout if the kernel does not answer, MconsoleRefused with the kernel's words if it refuses,
    GuestLost if it is gone.

    :param connect: returns a bound datagram socket connected to the guest's mconsole
    :param pidfd: of the kernel's process *pid*
    :param lost: returns the error for a kernel that has ended
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        pidfd: int,
        pid: int,
        lost: Callable[[], SkblabError],
        clock: Clock = REAL,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._pidfd = pidfd
        self._pid = pid
        self._lost = lost

    def command(self, text: str, *, timeout_s: float = TIMEOUT_S) -> str:
        """Send one command unchanged; return the answer.

        :raises UsageError: it is too long; or cannot be in virtual time
        """
        check_times(timeout_s=timeout_s)
        self._check_possible(text)
        data = text.encode()
        if len(data) > LONGEST_BYTES:
            raise UsageError(f"a command for mconsole has {LONGEST_BYTES} bytes at most", found=f"{len(data)} bytes")
        with self._channel() as channel:
            channel.send(REQUEST.pack(MAGIC, VERSION, len(data), data))
            error, answer = self._answer(channel, text, timeout_s)
        if error:
            raise _refused(text, answer)
        return answer

    def _check_possible(self, text: str) -> None:
        """Refuse what makes no sense for a kernel in virtual time, which rests when it is asked."""
        if self._clock.is_virtual and text.split()[:1] == ["stop"]:
            raise UsageError(
                "a kernel in virtual time is not stopped by mconsole: it stands still while nobody waits",
                hint="lab.clock, or the next command, lets it run",
            )
        if self._clock.is_virtual and text.split() == ["sysrq", "p"]:
            raise UsageError(
                "a kernel in virtual time has no registers to show: it rests when it is asked",
                hint="stack PID shows one task",
            )

    def version(self) -> str:
        """Return the guest's ``uname -a``."""
        return self.command("version")

    def help(self) -> str:
        """Return the kernel's list of commands."""
        return self.command("help")

    def log(self, text: str) -> None:
        """Write a line to the kernel's log."""
        self.command(f"log {text}\n")

    def proc(self, path: str) -> str:
        """Return a file of the guest's /proc: ``meminfo``, ``1/status``."""
        return self.command(f"proc {path.removeprefix('/proc/')}").removeprefix("\n")

    def stack(self, pid: int) -> str:
        """Return the kernel stack of a task of the guest.

        The kernel answers in an interrupt. An interrupt of kernel code runs on the signal stack, where ``show_stack()``
        (arch/um/kernel/sysrq.c) declines; so it is asked again, for STACK_WITHIN_S.

        :raises MconsoleRefused: it declined every time, or there is no such task
        """
        deadline = time.monotonic() + STACK_WITHIN_S
        while "aborting stack trace" in (shown := self.command(f"stack {pid:d}")):
            if time.monotonic() > deadline:
                raise MconsoleRefused(
                    f"the guest shows no stack of task {pid}",
                    found=shown.strip(),
                    hint="ask again: it shows none in an interrupt of kernel code",
                )
        return shown

    def config(self, device: str, value: str | None = None) -> str:
        """Return a device's configuration (``con0``, ``mem``); given a *value*, plug it in: ``con2``, ``null``."""
        return self.command(f"config {device}" + (f"={value}" if value is not None else ""))

    def remove(self, device: str) -> None:
        """Unplug a device; an interface must be down."""
        self.command(f"remove {device}")

    def cad(self) -> None:
        """Send Ctrl-Alt-Del to the guest's init."""
        self.command("cad")

    def stop(self) -> None:
        """Stop the kernel, without a debugger, until ``go()``; until then it answers only mconsole.

        :raises UsageError: it runs in virtual time
        """
        self.command("stop")

    def go(self) -> None:
        """Resume a kernel that ``stop()`` has stopped."""
        self.command("go")

    def sysrq(self, key: str) -> str:
        """Send a magic SysRq key and return what the kernel prints; ``h`` lists the keys.

        ``b``, ``c`` (a real panic) and ``o`` end the kernel; they return when it is gone.

        :raises UsageError: the key is ``t``, which panics this kernel, or ``p`` in virtual time, or not one character
        """
        if len(key) != 1 or key.isspace():
            raise UsageError(f"a key for sysrq is one character, not {key!r}", hint="h lists them")
        if key == "t":
            # kernel/workqueue.c print_worker_info() reads addresses that may be bad by copy_from_kernel_nofault();
            # arch/um/kernel/trap.c segv() panics on such a fault if the interrupted task is a kernel thread or idle.
            raise UsageError("sysrq t panics a UML kernel that is idle", hint="stack PID shows one task")
        if key in ENDING_KEYS:
            self._end(f"sysrq {key}")
            return ""
        return self.command(f"sysrq {key}")

    def halt(self) -> None:
        """End the kernel at once, as power off does; return when it is gone."""
        self._end("halt")

    def reboot(self) -> None:
        """Refuse: a lab cannot reboot. Use ``halt()`` and a new lab.

        :raises UsageError: always
        """
        raise UsageError(
            "a lab's kernel does not reboot: rules, held packets and gdb's stops would be the old one's",
            hint="end this lab, and start another: skblab down NAME; skblab up NAME",
        )

    def _end(self, text: str) -> None:
        with self._channel() as channel:
            channel.send(REQUEST.pack(MAGIC, VERSION, len(text), text.encode()))
        if not self._clock.wait([], END_TIMEOUT_S, at_once=[self._pidfd]):
            raise self._silent(text, END_TIMEOUT_S)

    def _channel(self) -> socket.socket:
        if wait([self._pidfd], 0):
            raise self._lost()
        return self._connect()

    def _answer(self, channel: socket.socket, text: str, timeout_s: float) -> tuple[bool, str]:
        """Collect the datagrams of one answer; return whether it is an error, and its text."""
        left_s = self._clock.countdown(timeout_s)
        answer = []
        refused = False
        while True:
            watched: list[socket.socket | int] = [channel]
            ready = self._clock.wait(watched, left_s(), at_once=[self._pidfd])
            if not ready:
                raise self._silent(text, timeout_s)
            if channel not in ready:
                raise self._lost()
            datagram = channel.recv(1 << 16)
            if len(datagram) < REPLY_HEAD.size:
                raise _refused(text, f"an answer of {len(datagram)} bytes")
            error, more, length = REPLY_HEAD.unpack_from(datagram)
            refused |= bool(error)
            answer.append(datagram[REPLY_HEAD.size : REPLY_HEAD.size + length].rstrip(b"\0").decode(errors="replace"))
            if not more:
                return refused, "".join(answer)

    def _silent(self, text: str, waited_s: float) -> Timeout:
        """Return the error for a kernel that does not answer, because it is stopped or busy."""
        fields = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{self._pid}/status").read_text().splitlines() if ":\t" in line
        )
        tracer = int(fields.get("TracerPid", "0"))
        if fields["State"].startswith(("t", "T")):
            by = f"gdb (pid {tracer})" if tracer else "a signal"
            found, hint = f"its process is stopped by {by}", "continue in gdb, or end gdb"
        else:
            found = "its process runs; a kernel that mconsole has stopped, or that has interrupts off, does not answer"
            hint = "skblab mconsole NAME go, if it was stopped so; skblab log NAME"
        return Timeout(f"the guest's kernel did not answer {text!r} within {waited_s:.1f} s", found=found, hint=hint)


REMEDIES = {
    "Unknown command": "skblab mconsole --help   (lists them)",
    "Read of file failed": "of /proc, mconsole reads what has read_iter() alone; others a program in the guest",
    "Couldn't find that pid": "0 is no pid; 1 is init",
    "Device is currently open": "of an interface: take it down in the guest first",
}


def _refused(text: str, answer: str) -> MconsoleRefused:
    answer = answer.strip()
    return MconsoleRefused(
        f"the guest's kernel refused {text.strip()!r}: {answer or 'it did not say why'}", hint=REMEDIES.get(answer, "")
    )
