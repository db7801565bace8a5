"""Run a command in the guest with this process's terminal or pipes, Ctrl-C, window size and exit status."""

import contextlib
import os
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from skblab.clock import Clock
from skblab.guest.exec import Command
from skblab.guest.programs import Programs
from skblab.guest.streams import AT_ONCE_BYTES
from skblab.guest.terminal import read_some
from skblab.host import process


def run_here(guest: Programs, argv: Sequence[str]) -> int:
    """Run a command in the guest to its end; return its status, or minus the signal that killed it.

    It gets a terminal if standard input and output are terminals, else this process's stdin, stdout and stderr.
    """
    if os.isatty(0) and os.isatty(1):
        return _on_terminal(guest, argv)
    with interrupts_kept() as kept, guest.popen(argv, stdin=None) as command:
        kept.are_for(command)
        return command.wait()


class Interrupts:
    """Pass Ctrl-C on to a command, and an early one as soon as the command runs.

    By a handler that raises nothing: KeyboardInterrupt in wait() may lose the status that was just fetched, and
    subprocess then says 0.
    """

    def __init__(self) -> None:
        self._command: process.Client | None = None
        self._early = False

    def come(self, *_: object) -> None:
        """Handle a signal."""
        if self._command:
            process.interrupt(self._command)
        self._early = True

    def are_for(self, command: process.Client) -> None:
        """Send an early Ctrl-C to the command, and later ones from then on."""
        self._command = command
        if self._early:
            process.interrupt(command)


@contextlib.contextmanager
def interrupts_kept() -> Iterator[Interrupts]:
    """Keep Ctrl-C for a command for the block."""
    kept = Interrupts()
    before = signal.signal(signal.SIGINT, kept.come)
    try:
        yield kept
    finally:
        signal.signal(signal.SIGINT, before)


def _on_terminal(guest: Programs, argv: Sequence[str]) -> int:
    pipe = subprocess.PIPE
    environment = {"TERM": os.environ.get("TERM", "dumb")}
    with guest.popen(argv, stdin=pipe, stdout=pipe, env=environment, terminal=termios.tcgetwinsize(0)) as command:
        with raw_keyboard(), _window_followed(command), guest.clock.paced():
            _talk(command, guest.clock)
        return command.wait()


@contextlib.contextmanager
def raw_keyboard() -> Iterator[None]:
    """Put the terminal into raw mode for the block."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # keeps what was typed ahead
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _window_followed(command: Command) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, lambda *_: command.resize(*termios.tcgetwinsize(0)))
    command.resize(*termios.tcgetwinsize(0))  # it may have changed since the command was started
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _talk(command: Command, clock: Clock) -> None:
    """Copy bytes between the terminals until the command's is closed; typed bytes wait until the command reads them."""
    assert command.stdin
    assert command.stdout
    typed = b""
    to, said = command.stdin.fileno(), command.stdout.fileno()
    os.set_blocking(to, False)
    listening = True
    while True:
        ready = clock.wait([said], None, [to] if typed else (), at_once=() if typed or not listening else [0])
        if said in ready:
            data = os.read(said, AT_ONCE_BYTES)
            if not data:
                return
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        if 0 in ready:
            typed = read_some(0, AT_ONCE_BYTES)
            listening = bool(typed)
        if to in ready:
            try:
                typed = typed[os.write(to, typed) :]
            except BrokenPipeError:
                typed, listening = b"", False
