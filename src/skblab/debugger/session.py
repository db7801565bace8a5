"""A gdb session on the guest's kernel, from outside gdb: typed requests and answers."""

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from skblab.agent.functions import plain_packet
from skblab.debugger import attach
from skblab.debugger.inside import wire
from skblab.errors import DebuggerError, Timeout, UsageError, check_times
from skblab.guest.boot import Guest
from skblab.host import process
from skblab.host.gdb import directory as gdb_directory
from skblab.host.gdb import find_gdb
from skblab.host.namespace import Namespaces
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.image.missing import find_function
from skblab.image.module import offset_in_text

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
DYING_S = 1.0  # from a SIGKILL to the end of a process as large as a guest

Answer = TypeVar("Answer", bound=wire.Message)


class Debugger:
    """gdb, attached to the guest's kernel. Use as a context manager: entering attaches, leaving detaches.

    Attaching and every stop stop the kernel until ``resume()``. Made by ``Lab.debugger()``.

    :raises DebuggerError: gdb cannot attach, or has ended; the guest runs on
    """

    def __init__(self, image: Image, guest: Guest, namespaces: Namespaces) -> None:
        self.image = image
        self._guest = guest
        self._namespaces = namespaces
        self._pid = os.getpid()
        self._buffer = b""
        self._awaited = 0  # answers of gdb that have not come
        self._stops: dict[int, tuple[int, bytes]] = {}  # number -> address and original byte
        self._interrupts = 0
        self.running = False
        self.attached_at: wire.Stopped

    def __enter__(self) -> Self:
        gdb = find_gdb()
        self._channel, theirs = socket.socketpair()
        self._errors = os.memfd_create("skblab-gdb", os.MFD_CLOEXEC)
        with theirs:
            argv: list[process.Argument] = [
                *gdb.argv, "-nx", "-quiet", "-batch",
                "-ex", f"set substitute-path /skblab {self.image.source}",
                *attach.symbols_of(self._guest.modules),
                "-ex", f"python from skblab.debugger.inside import server; server.main({theirs.fileno()})",
                self.image.kernel,
            ]  # fmt: skip
            self.process = process.start(
                self._namespaces.command(argv),
                cwd=gdb_directory(),
                env=attach.environment(gdb, self._guest),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[self._namespaces.pidfd, theirs.fileno()],
                new_session=True,
            )
        try:
            self.attached_at = self._attach()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attach(self) -> wire.Stopped:
        self._send(wire.Attach(self._guest.inner_pid))
        try:
            return self._receive(wire.Stopped, START_TIMEOUT_S)
        except DebuggerError as error:
            if not self._guest.alive:
                raise self._guest.lost() from error
            raise attach.explain(error, self._guest.pid) from error

    def set_stop(self, function: str, *, condition: str = "") -> int:
        """Stop the kernel whenever *function* is entered; return the stop's number.

        :param condition: a C expression of the function's arguments, as in gdb: ``skb->len > 100``
        :raises UnknownFunction: no such function, or it was inlined; the error says where it went
        :raises DebuggerError: gdb cannot parse the condition
        """
        found = find_function(self.image, function)
        packet = plain_packet(found)
        skb = found.parameters[packet.number].name if packet else ""
        return self._set(wire.SetStop(function, found.address, skb, condition))

    def set_agent_stop(self, address: int, module: Path) -> int:
        """Stop the kernel whenever the agent gives the verdict "stop"; return the stop's number.

        The reported frames begin with the function that the packet was entering.

        :param address: ``Channel.stop_address``
        :param module: the agent, with its symbols
        """
        self._ask(wire.AddSymbols(str(module), address - offset_in_text(module, wire.AGENT_STOP)), wire.Done)
        return self._set(wire.SetStop(wire.AGENT_STOP, address, "(struct sk_buff *)$rdi", ""))

    def _set(self, order: wire.SetStop) -> int:
        try:
            first = attach.first_byte(self._guest.pid, order.address)
        except OSError:
            raise self._guest.lost() from None
        number = self._ask(order, wire.StopSet).number
        self._stops[number] = (order.address, first)
        return number

    def clear_stop(self, number: int) -> None:
        """Remove a stop."""
        self._ask(wire.ClearStop(number), wire.Done)
        del self._stops[number]

    def resume(self, how: str = "continue") -> int:
        """Resume the kernel; return the time, CLOCK_MONOTONIC in ns.

        :param how: ``continue``, or ``step``, ``next``, ``stepi``, ``finish`` as in gdb
        """
        at_ns = self._ask(wire.Go(how), wire.Resumed).at_ns
        self.running = True
        return at_ns

    def wait_stop(self, timeout_s: float) -> wire.Stopped:
        """Wait until the kernel stops again.

        :raises Timeout: the kernel runs on
        :raises GuestLost: the kernel ended instead
        """
        check_times(timeout_s=timeout_s)
        if not self.running:
            raise UsageError("the kernel is not running: nothing to wait for", hint="resume() first")
        deadline = time.monotonic() + timeout_s
        while True:
            stopped = self._receive(wire.Stopped, max(deadline - time.monotonic(), 0))
            ours = stopped.reason == "signal" and stopped.detail == "SIGCONT"
            if ours and not self._interrupts:  # from an interrupt() that came too late
                self.resume()
                continue
            self._interrupts = 0
            return stopped

    def interrupt(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> wire.Stopped:
        """Stop the running kernel wherever it is.

        gdb stops the kernel for a signal sent to the kernel's process; a signal to gdb itself would end gdb while it is
        not waiting. The signal is SIGCONT, because it is harmless if the kernel has stopped already.
        """
        check_times(timeout_s=timeout_s)
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._guest.pidfd, signal.SIGCONT)
            self._interrupts += 1
        return self.wait_stop(timeout_s)

    def evaluate(self, expression: str) -> str:
        """Return the value of a C expression in the stopped frame, as gdb prints it.

        :raises DebuggerError: gdb refuses: its own words
        """
        return self._ask(wire.Evaluate(expression), wire.Value).text

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when gdb sends something."""
        return self._channel.fileno()

    def close(self) -> None:
        """Detach, so that the guest runs on, and end gdb; safe to call twice, and after gdb has ended."""
        if self._errors < 0 or os.getpid() != self._pid:  # a forked child's copy
            return
        if self.process.poll() is None and self._guest.alive:
            try:
                if self.running:
                    self.interrupt()
                self._ask(wire.Detach(), wire.Done)
            except (DebuggerError, Timeout) as error:
                log.warning("gdb did not detach: %s", error)
        self._end()

    def _end(self) -> None:
        """End gdb in any state, and remove the breakpoints that it may have left."""
        self._channel.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._errors)
        self._errors = -1
        if self._stops and self._guest.alive:
            attach.restore_text(self._guest.pid, dict(self._stops.values()))
        self._stops.clear()

    def _ask(self, request: wire.Message, answer: type[Answer]) -> Answer:
        if self.running:
            raise UsageError(
                "the kernel is running: gdb answers when it is stopped", hint="interrupt() or wait_stop() first"
            )
        self._awaited += 1
        self._send(request)
        return self._receive(answer, ANSWER_TIMEOUT_S)

    def _send(self, request: wire.Message) -> None:
        try:
            self._channel.sendall(wire.encode(request))
        except ConnectionError:
            raise self._lost() from None

    def _receive(self, answer: type[Answer], timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        while self._is_late(message := self._next(answer, deadline, timeout_s)):
            pass
        if isinstance(message, (wire.Stopped, wire.Gone)):
            self.running = False
        if isinstance(message, wire.Gone):
            raise self._guest.lost()
        if isinstance(message, wire.Failed):
            self.running = False
            # ptrace(2) knows a process that was killed no more, a moment before it has ended.
            dying = os.strerror(errno.ESRCH) in message.reason and wait([self._guest.pidfd], DYING_S)
            if dying or not self._guest.alive:
                raise self._guest.lost()
            raise DebuggerError(f"gdb refused: {message.reason}")
        assert isinstance(message, answer), message
        return message

    def _is_late(self, message: wire.Message) -> bool:
        """Count an answer; return whether nobody waits for it any more: Ctrl-C, or a limit, has ended the wait."""
        if not self._awaited or isinstance(message, (wire.Stopped, wire.Gone)):
            return False
        self._awaited -= 1
        return self._awaited > 0

    def _next(self, answer: type[Answer], deadline: float, timeout_s: float) -> wire.Message:
        """Return gdb's next message."""
        while b"\n" not in self._buffer:
            ready = wait([self._channel], max(deadline - time.monotonic(), 0))
            if not ready:
                raise Timeout(f"gdb did not answer within {timeout_s:g} s", found=f"waited for: {answer.__name__}")
            try:
                data = self._channel.recv(1 << 20)
            except ConnectionError:
                data = b""
            if not data:
                raise self._lost()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return wire.decode(line)

    def _lost(self) -> DebuggerError:
        """Return the error for a gdb that has ended; remove its breakpoints at once, before the next packet."""
        self.running = False
        if self._stops and self._guest.alive:
            attach.restore_text(self._guest.pid, dict(self._stops.values()))
        try:
            status: int | None = self.process.wait(2)
        except subprocess.TimeoutExpired:
            status = None
        size = os.fstat(self._errors).st_size
        said = os.pread(self._errors, size, 0).decode(errors="replace").strip()
        if not self._guest.alive:
            return DebuggerError("gdb ended, and the guest kernel with it", found=said)
        return DebuggerError(f"gdb is gone (status {status}); the guest runs on", found=said)
