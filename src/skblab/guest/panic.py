"""A panic of the guest's kernel: its line, its call trace by file and line, and a callback when it happens."""

import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from skblab.errors import MissingPrerequisite
from skblab.guest.console import Console
from skblab.guest.mconsole import Kind, receive
from skblab.host import process
from skblab.host.process import undisturbed
from skblab.host.waiting import wait
from skblab.image.image import INDEX
from skblab.image.index import FunctionIndex
from skblab.image.unwind import Frame

# arch/um/kernel/sysrq.c _print_addr(), show_regs() in arch/x86/um/sysrq_64.c
ENTRY = re.compile(r"\[<([0-9a-f]+)>\] (?:\? )?([\w.]+)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")
FAULT = re.compile(r"^.*RIP: 0033:(?:\[<[0-9a-f]+>\] )?([\w.]+)\+0x([0-9a-f]+)/", re.MULTILINE)
BUILT_IN = re.compile(r"^/skblab/(?:obj/)?")  # replaces the build's directory in debug info (image/recipe.py)
OWN_BUSINESS = {"panic", "vpanic"}  # frames above it belong to the panic itself
# arch/um/kernel/sysrq.c show_stack(): in an interrupt of running code, not in an interrupt of the idle task.
NO_TRACE = "the kernel printed no call trace: it was on its signal stack; a gdb attached before shows it"
PRINTING_S = 1.0  # the kernel notifies first (drivers/mconsole_kern.c add_notifier()), prints the trace, and ends


@dataclass(frozen=True)
class GuestPanicked:
    """A guest kernel has panicked.

    *line* is the kernel's message, *at_s* the time, as time.time(), *console* the end of its log. *frames* are the
    return addresses on its stack, innermost first: some may be of calls that had returned (the kernel marks them all
    "?"). *frames* is empty if the kernel printed no call trace, as in an interrupt of running code.
    """

    line: str
    at_s: float
    frames: tuple[Frame, ...]
    console: str

    def __str__(self) -> str:
        if not self.frames:
            return f"{self.line}\n  {NO_TRACE}"
        return "\n".join([self.line, *(f"  #{number:<2} {frame}" for number, frame in enumerate(self.frames))])


def call_trace(text: str, panic: str) -> list[tuple[str, int]]:
    """Return a panic's call trace as (function, address in the call), innermost first, from the console's text.

    The address is 0 in a module. An address at a function's start is a function pointer on the stack, not a return
    address.
    """
    entries = [
        (name, int(address, 16) - 1 if not module else 0)  # a return address may be of the line after the call
        for address, name, offset, module in ENTRY.findall(text.partition(panic)[2])
        if int(offset, 16)
    ]
    own = [number for number, (name, _) in enumerate(entries) if name in OWN_BUSINESS]
    return entries[own[-1] + 1 :] if own else entries


def fault(text: str, panic: str, kernel: Path) -> list[tuple[str, int]]:
    """Return (function, address) of the faulting instruction, if the kernel has printed its registers."""
    found = FAULT.findall(text.partition(panic)[0])
    index = kernel.with_name(INDEX)
    if not found:
        return []
    name, offset = found[-1]
    function = FunctionIndex(index).lookup(name) if index.exists() else None
    return [(name, function.address + int(offset, 16) if function else 0)]


def frames(text: str, panic: str, kernel: Path) -> tuple[Frame, ...]:
    """Return a panic's call trace by file and line; without lines if addr2line(1) is not installed."""
    entries = fault(text, panic, kernel) + call_trace(text, panic)
    addresses = [address for _, address in entries if address]
    try:
        argv: list[process.Argument] = ["addr2line", "-e", kernel, *(f"{address:#x}" for address in addresses)]
        lines = process.run(argv, timeout_s=30).stdout.splitlines() if addresses else []
    except MissingPrerequisite:
        lines = []
    places = dict(zip(addresses, lines, strict=False))
    return tuple(_frame(name, places.get(address, "")) for name, address in entries)


def _frame(name: str, place: str) -> Frame:
    file, _, line = place.partition(" ")[0].rpartition(":")
    if not line.isdecimal():
        return Frame(name, "", 0)
    return Frame(name, BUILT_IN.sub("", file), int(line))


def panicked(console: Console, kernel: Path, at_s: float) -> GuestPanicked | None:
    """Return the panic on a console, or None."""
    line = console.panic()
    if line is None:
        return None
    return GuestPanicked(line, at_s, frames(console.text(), line, kernel), console.evidence())


class PanicWatch:
    """Call *callback* when the guest panics, on a thread of its own, unless it is closed before."""

    def __init__(
        self, listener: socket.socket, pidfd: int, look: Callable[[float], GuestPanicked | None],
        callback: Callable[[GuestPanicked], object],
    ) -> None:  # fmt: skip
        self._listener = listener
        self._pidfd = os.dup(pidfd)
        self._look = look
        self._callback = callback
        self._enough = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="skblab-panic", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            watched: list[socket.socket | int] = [self._listener, self._enough]
            ready = wait(watched)
            if self._enough in ready:
                return
            try:
                said = receive(self._listener)
            except ConnectionError:  # the lab is gone
                return
            if said.kind is not Kind.PANIC:
                continue
            wait([self._pidfd, self._enough], PRINTING_S)
            event = self._look(said.at_s)
            if event:
                self._callback(event)
            return

    def close(self) -> None:
        """Stop; safe to call twice, and from the callback."""
        if self._enough < 0:
            return
        os.eventfd_write(self._enough, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        with undisturbed():
            if self._enough < 0:  # another thread was faster
                return
            enough, self._enough = self._enough, -1
            self._listener.close()
            os.close(self._pidfd)
            os.close(enough)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
