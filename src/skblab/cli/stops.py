"""Waiting for a command's end: the kernel may stop for a person to read until Enter, or be gone before it."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from skblab.cli.keyboard import hearing, read_line
from skblab.debugger.inside.wire import Stopped
from skblab.debugger.session import Debugger
from skblab.guest.boot import LAST_WORDS_S, Guest
from skblab.guest.mconsole import Kind
from skblab.host import process, waiting
from skblab.packet import Packet

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    Watched = Debugger | socket.socket | int

SHOWN_FRAMES = 12


def wait(
    command: process.Running | None,
    guest: Guest,
    debugger: Debugger | None,
    out: TextIO,
    stopped: "Callable[[], int]" = lambda: 0,
) -> int:
    """Wait for a command's end, and show each stop meanwhile; off a terminal the kernel goes on at once.

    A command may give up and end before gdb has said where the kernel stands. *stopped* is how many stops there have
    been: all of them are shown.

    A Ctrl-C is the command's, which says what it has to say and ends; the second one is ours, as is every one where
    there is no command to wait for.

    :raises GuestLost: the kernel has panicked, or ended, before the command
    """
    pidfd = os.pidfd_open(command.pid) if command else None
    watched: list[Watched] = [guest.notifications, guest.pidfd]
    watched += [debugger] if debugger else []
    watched += [pidfd] if pidfd is not None else []
    shown, ended = 0, False
    with contextlib.ExitStack() as stack:
        woken = stack.enter_context(hearing())
        if pidfd is not None:
            stack.callback(os.close, pidfd)
        while True:
            ready = _ready(watched, woken, command)
            if guest.pidfd in ready:
                raise guest.lost()
            if guest.notifications in ready and guest.notification().kind is Kind.PANIC:
                waiting.wait([guest.pidfd], LAST_WORDS_S)  # gdb may hold it there
                raise guest.lost()
            if debugger and debugger in ready:
                stop = debugger.wait_stop(1)
                _show(stop, out)
                shown += 1
                if sys.stdin.isatty() and out.isatty():
                    out.write("the whole kernel stands still; Enter lets it go ")
                    out.flush()
                    read_line()
                print(f"it stood still for {(debugger.resume() - stop.at_ns) / 1e9:.3f} s", file=out)
            elif pidfd is not None and pidfd in ready:
                ended = True
                watched.remove(pidfd)
            if command and ended and not (debugger and stopped() > shown):
                return command.wait()


def _ready(watched: "Sequence[Watched]", woken: int, command: process.Running | None) -> "list[Watched]":
    """Wait for one of those that are watched, and pass a Ctrl-C on to the command."""
    try:
        return _select(watched, woken)
    except KeyboardInterrupt:
        if command is None:
            raise
    process.interrupt(command)
    return _select(watched, woken)


def _select(watched: "Sequence[Watched]", woken: int) -> "list[Watched]":
    while True:
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        ready: list[Watched] = waiting.wait([*watched, woken])
        if ready != [woken]:
            return ready


def _show(stopped: Stopped, out: TextIO) -> None:
    """Print the packet in words and the way to the stop."""
    frames = [frame for frame in stopped.frames if not frame.inline]
    if stopped.packet:
        print(Packet(bytes.fromhex(stopped.packet.linear), stopped.packet.protocol).summary(), file=out)
    for number, frame in enumerate(frames[:SHOWN_FRAMES]):
        print(f"  #{number:<2} {frame.function}()  {frame.file}:{frame.line}", file=out)
    if len(frames) > SHOWN_FRAMES:
        print(f"  ... {len(frames) - SHOWN_FRAMES} more, down to {frames[-1].function}()", file=out)
