"""A guest kernel's panic: its line, the way there by file and line, and word of it the moment it happens."""

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
from skblab.host.waiting import wait
from skblab.image.image import INDEX
from skblab.image.index import FunctionIndex

# arch/um/kernel/sysrq.c _print_addr(), show_regs() in arch/x86/um/sysrq_64.c
ENTRY = re.compile(r"\[<([0-9a-f]+)>\] (?:\? )?([\w.]+)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")
FAULT = re.compile(r"^.*RIP: 0033:(?:\[<[0-9a-f]+>\] )?([\w.]+)\+0x([0-9a-f]+)/", re.MULTILINE)
BUILT_IN = re.compile(r"^/skblab/(?:obj/)?")  # what a build puts in the place of its directory (image/recipe.py)
OWN_BUSINESS = {"panic", "vpanic"}  # what is above it is the panic's own
# arch/um/kernel/sysrq.c show_stack(): in an interrupt that came while something ran, and not in one that idle was in.
NO_TRACE = "the kernel printed no way there: it was on its signal stack; a gdb that is attached before shows it"
PRINTING_S = 1.0  # it tells of its panic first (drivers/mconsole_kern.c add_notifier()), prints the trace, and ends


@dataclass(frozen=True, slots=True)
class Frame:
    """One function on the way to a panic; *file* and *line* are empty where the kernel has none for it."""

    function: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.function}()" + (f"  {self.file}:{self.line}" if self.file else "")


@dataclass(frozen=True, slots=True)
class GuestPanicked:
    """A guest kernel has panicked.

    *line* is its own word for it, *at_s* when, as time.time(), *console* what it printed last. *frames* are the return
    addresses on its stack, innermost first: some may be of calls that had returned (the kernel marks them all "?").
    There are none where the kernel printed none, as in an interrupt that came while something ran.
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
    """Return (function, an address of the call) of the way to a panic, innermost first, from what the kernel printed.

    The address is 0 in a module. An address at a function's very start is a pointer to it, and nobody's way.
    """
    entries = [
        (name, int(address, 16) - 1 if not module else 0)  # what is on the stack is of the line after the call
        for address, name, offset, module in ENTRY.findall(text.partition(panic)[2])
        if int(offset, 16)
    ]
    own = [number for number, (name, _) in enumerate(entries) if name in OWN_BUSINESS]
    return entries[own[-1] + 1 :] if own else entries


def fault(text: str, panic: str, kernel: Path) -> list[tuple[str, int]]:
    """Return (function, address) of the instruction that led to a panic, where the kernel has printed its registers."""
    found = FAULT.findall(text.partition(panic)[0])
    index = kernel.with_name(INDEX)
    if not found:
        return []
    name, offset = found[-1]
    function = FunctionIndex(index).lookup(name) if index.exists() else None
    return [(name, function.address + int(offset, 16) if function else 0)]


def frames(text: str, panic: str, kernel: Path) -> tuple[Frame, ...]:
    """Return the way to a panic by file and line; without lines where addr2line(1) is not installed."""
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
        return Frame(name)
    return Frame(name, BUILT_IN.sub("", file), int(line))


def panicked(console: Console, kernel: Path, at_s: float) -> GuestPanicked | None:
    """Return the panic that a console tells of."""
    line = console.panic()
    if line is None:
        return None
    return GuestPanicked(line, at_s, frames(console.text(), line, kernel), console.evidence())


class PanicWatch:
    """Call *told* from a thread of its own when the guest panics; close it, or leave it, to be told no more."""

    def __init__(
        self, listener: socket.socket, pidfd: int, look: Callable[[float], GuestPanicked | None],
        told: Callable[[GuestPanicked], object],
    ) -> None:  # fmt: skip
        self._listener = listener
        self._pidfd = os.dup(pidfd)
        self._look = look
        self._told = told
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
                self._told(event)
            return

    def close(self) -> None:
        """Tell no more; safe to call twice, and from what is told."""
        if self._enough < 0:
            return
        os.eventfd_write(self._enough, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._listener.close()
        os.close(self._pidfd)
        os.close(self._enough)
        self._enough = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
