"""Run commands in the guest: their stdin, stdout and stderr are pipes of this machine.

Process 1 of the lab gives a connection for each command; its other end has a server in the guest (kernel/init/exec.c;
messages: exec_abi.h). The server receives the command's ends of the pipes, which the guest's kernel makes its own files
(kernel/agent/hostfile.c): nothing copies the bytes, and a slow reader blocks only its own command.
"""

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Self

from skblab.clock import REAL, Clock
from skblab.errors import GuestCommandFailed, GuestLost, NoSuchProgram, SkblabError, Timeout, UsageError, check_times
from skblab.guest.streams import AT_ONCE_BYTES, Drain, Streams
from skblab.host.process import Argument, Stream, undisturbed, words_of

HEADER = struct.Struct("=IiIIIIIII")
MESSAGE_BYTES = 192 * 1024
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 2.0


class Kind(IntEnum):
    """The kind of a message: kernel/init/exec_abi.h enum exec_kind."""

    START = 1
    SIGNAL = 2
    WINDOW = 3
    STARTED = 4
    FAILED = 5
    ENDED = 6
    READ = 7


class Step(IntEnum):
    """What failed: kernel/init/exec_abi.h enum exec_step."""

    PROGRAM = 0
    NO_PROGRAMS = 1
    DIRECTORY = 2
    ROOT = 3
    TERMINAL = 4
    FORK = 5
    REQUEST = 6
    NODE = 7


def _message(
    kind: Kind, value: int = 0, *, size: tuple[int, int] | None = None, rest: tuple[int, int, int] = (0, 0, 0)
) -> bytes:
    return HEADER.pack(kind, value, 0, size is not None, *(size or (0, 0)), *rest)


class Command:
    """A command that runs in the guest, in the manner of subprocess.Popen.

    ``stdin``, ``stdout``, ``stderr`` are files if PIPE was asked for, else None. ``close()``, or the end of this
    process, hangs up: the command gets SIGHUP. A *timeout* is in seconds of the guest's time.
    """

    def __init__(
        self, args: Sequence[str], connection: socket.socket, lost: Callable[[], SkblabError], clock: Clock = REAL
    ) -> None:
        self.args = args
        self._clock = clock
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.returncode: int | None = None
        self.pid = 0  # in the guest
        self._connection = connection
        self._lost = lost
        self.relays: list[threading.Thread | Drain] = []  # who copies its output
        self._ending = threading.RLock()  # of what follows, and of the last message; a signal's handler may take it
        self._waiting = 0  # threads in wait()
        self._said: dict[IO[bytes], bytearray] = {}  # to communicate(), which may be called again
        self._left: memoryview | None = None

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the command has ended."""
        return self._connection.fileno()

    def _receive(self, timeout_s: float | None) -> tuple[Kind, int, Step] | None:
        """Return the server's next message, or None after a time."""
        if not self._clock.wait([self._connection], timeout_s):
            return None
        return self._read()

    def _read(self) -> tuple[Kind, int, Step]:
        """Read a message that is there."""
        data = b""
        for _ in range(2):  # the first time refused, where the server has ended before it read our last message
            with contextlib.suppress(ConnectionError):
                data = self._connection.recv(HEADER.size)
                break
        if not data:
            raise self._lost()
        try:
            kind, value, step, *_ = HEADER.unpack(data)
            return Kind(kind), value, Step(step)
        except (struct.error, ValueError) as error:  # the guest's root can send anything
            raise GuestCommandFailed(
                f"what the guest says of {self.args[0]} cannot be understood", found=f"{data.hex()}: {error}"
            ) from None

    def started(self) -> Self:
        """Wait until the command runs.

        :raises NoSuchProgram: the guest has no such program
        :raises GuestCommandFailed: the guest cannot start it
        :raises Timeout: the guest does not answer
        """
        said = self._receive(START_TIMEOUT_S)
        if said is None:
            raise Timeout(
                f"the guest has not started {self.args[0]} within {START_TIMEOUT_S:g} s",
                hint="a kernel that gdb has stopped starts nothing: continue it",
            )
        kind, value, step = said
        if kind is Kind.FAILED:
            raise _refusal(self.args[0], step, value)
        self.pid = value
        return self

    def poll(self) -> int | None:
        """Return the exit status, minus the number of the signal that ended it, or None while it runs."""
        if self._connection.fileno() >= 0:  # else it was waited for, or hung up
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return as poll().

        :raises subprocess.TimeoutExpired: it is still running
        :raises GuestLost: the guest kernel is gone
        """
        check_times(timeout=timeout)
        if self.returncode is None:
            self._wait_ended(timeout)
        assert self.returncode is not None
        for relay in self.relays:
            relay.join()
        return self.returncode

    def _wait_ended(self, timeout: float | None) -> None:
        """Wait for the server's last message; several threads may."""
        with self._ending:
            self._waiting += 1
        try:
            ready = self.returncode is not None or self._clock.wait([self._connection], timeout)
            with undisturbed(), self._ending:
                if self.returncode is None:
                    if not ready:
                        assert timeout is not None
                        raise subprocess.TimeoutExpired(self.args, timeout)
                    self.returncode = self._read()[1]
                    with contextlib.suppress(OSError):
                        self._connection.shutdown(socket.SHUT_RDWR)  # wakes others
        finally:
            with self._ending:
                self._waiting -= 1
                if self.returncode is not None and not self._waiting:
                    self._connection.close()

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command's process group; do nothing if the command has ended."""
        self._order(_message(Kind.SIGNAL, sig))

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and wait for its end; not for long, since a kernel that stands still kills nothing yet."""
        with (
            self._clock.hurried(END_TIMEOUT_S),
            contextlib.suppress(subprocess.TimeoutExpired, Timeout, UsageError, GuestLost),
        ):
            self.kill()
            self.wait(END_TIMEOUT_S)

    def resize(self, rows: int, columns: int) -> None:
        """Resize its terminal."""
        self._order(_message(Kind.WINDOW, size=(rows, columns)))

    def _order(self, message: bytes) -> None:
        if self.returncode is None:
            with contextlib.suppress(ConnectionError), self._ending:
                if self.returncode is None:
                    self._connection.send(message)
                    self._clock.given()

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002
        """Write all of *input*, read all output, wait for the end. Called again after a timeout, it loses nothing.

        :raises subprocess.TimeoutExpired: it is still running
        """
        check_times(timeout=timeout)
        left_s = self._clock.countdown(timeout)
        self._left = left = memoryview(input or b"") if self._left is None else self._left
        said = self._said = self._said or {pipe: bytearray() for pipe in (self.stdout, self.stderr) if pipe}
        reads = {pipe for pipe in said if not pipe.closed}
        writes = {self.stdin} if self.stdin and not self.stdin.closed else set()
        if self.stdin and writes:
            os.set_blocking(self.stdin.fileno(), False)
        while reads or writes:
            wait_s = left_s()
            if wait_s == 0:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            ready = self._clock.wait(reads, wait_s, writes)
            for pipe in reads.intersection(ready):
                if data := os.read(pipe.fileno(), AT_ONCE_BYTES):
                    said[pipe] += data
                else:
                    reads.discard(pipe)
                    pipe.close()
            for pipe in writes.intersection(ready):
                try:
                    left = left[os.write(pipe.fileno(), left[:AT_ONCE_BYTES]) :] if left else left
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # it has closed its stdin
                    left = left[:0]
                self._left = left
                if not left:
                    writes.clear()
                    pipe.close()
        self.wait(left_s())
        out, err = (bytes(said[pipe]) if pipe else b"" for pipe in (self.stdout, self.stderr))
        return out, err

    def close(self) -> None:
        """Hang up: a command that still runs gets SIGHUP, and its pipes are closed."""
        self._connection.close()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Program:
    """A program to start in the guest; the fields are the parameters of ``Guest.popen()``.

    :param kind: START; or READ, where *argv* are paths of files to read
    """

    argv: Sequence[Argument]
    node: str = ""
    cwd: str = ""
    env: Mapping[str, str] | None = None
    terminal: tuple[int, int] | None = None
    stays: bool = False
    kind: Kind = Kind.START

    @property
    def words(self) -> list[str]:
        """The command line."""
        return words_of(self.argv)

    def request(self) -> bytes:
        """Return the message that asks the guest's init to start it.

        :raises UsageError: it has no words, too many, or one with a NUL byte
        """
        words = self.words
        pairs = [f"{name}={value}" for name, value in (self.env or {}).items()]
        if any("\0" in word for word in (self.node, self.cwd, *pairs)):
            raise UsageError("a command's directory, node and environment have no NUL byte")
        text = b"".join(os.fsencode(word) + b"\0" for word in (self.node, self.cwd, *words, *pairs))
        request = _message(self.kind, size=self.terminal, rest=(self.stays, len(words), len(pairs))) + text
        if len(request) > MESSAGE_BYTES:
            raise UsageError(
                f"a command's words come to {len(text)} bytes", hint=f"{MESSAGE_BYTES} at most; use a file"
            )
        return request


def start(
    open_connection: Callable[[], socket.socket],
    lost: Callable[[], SkblabError],
    program: Program,
    stdio: tuple[Stream, Stream, Stream],
    clock: Clock,
) -> Command:
    """Start a program in the guest, with its standard input, output and error; see ``Guest.popen()``."""
    request = program.request()
    streams = Streams(clock)
    command = Command(program.words, open_connection(), lost, clock)
    try:
        command.stdin = streams.add(stdio[0], 0)
        command.stdout = streams.add(stdio[1], 1)
        if program.terminal is None:
            command.stderr = streams.add(stdio[2], 2)
        with contextlib.suppress(ConnectionError):  # command.started() reports the error
            socket.send_fds(command._connection, [request], streams.given)  # noqa: SLF001
        streams.sent()
        command.started()
    except BaseException:
        streams.close()
        command.close()
        raise
    command.relays = streams.carry()
    return command


def _refusal(program: str, step: Step, number: int) -> SkblabError:
    reason = os.strerror(number)
    match step:
        case Step.NO_PROGRAMS:
            return NoSuchProgram(
                f"the guest has no program {program}",
                found="its built-in root has no programs at all, but its first process, /init",
                hint="skblab up NAME --root host (this machine's programs), --root DIR, or --disk FILE",
            )
        case Step.PROGRAM:
            error = NoSuchProgram(
                f"the guest has no program {program}" if number == errno.ENOENT else f"the guest cannot run {program}",
                found=reason,
            )
            error.exit_status = 127 if number == errno.ENOENT else 126
            return error
        case Step.DIRECTORY:
            return GuestCommandFailed(f"the guest cannot start {program} in that directory", found=reason)
        case Step.NODE:
            return GuestCommandFailed(f"the guest cannot start {program} on that node", found="it has no such node")
        case _:
            return GuestCommandFailed(f"the guest cannot start {program}: no {step.name.lower()}", found=reason)
