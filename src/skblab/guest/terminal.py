"""The terminal of a shell in the guest: a pseudo-terminal whose other side is UML's tty1."""

import errno
import os
import pty
from contextlib import ExitStack
from typing import IO, Self

from skblab.clock import Clock

LEAVE = b"\x1d"  # Ctrl-], as in telnet and virsh console
NAME_OF_LEAVE = "Ctrl-]"


def read_some(terminal: int, most_bytes: int) -> bytes:
    """Return what a readable descriptor has; nothing at the end of a file, or if a terminal's other side is closed."""
    try:
        return os.read(terminal, most_bytes)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


class Terminal:
    """Our side of the terminal; it is closed with *stack*."""

    def __init__(self, fd: int, stack: ExitStack) -> None:
        self.fd = fd
        self.guest_fd = -1
        stack.callback(os.close, fd)

    @classmethod
    def make(cls, stack: ExitStack) -> Self:
        """Return a new terminal; ``guest_fd`` is the guest's side until hand_over()."""
        ours, guests = pty.openpty()
        terminal = cls(ours, stack)
        terminal.guest_fd = guests
        stack.callback(terminal.hand_over)
        return terminal

    def hand_over(self) -> None:
        """Close our copy of the guest's side."""
        if self.guest_fd >= 0:
            os.close(self.guest_fd)
            self.guest_fd = -1

    def talk(self, keyboard: int, screen: IO[bytes], ended: int, clock: Clock) -> bool:
        """Copy bytes both ways until the user leaves, or the descriptor *ended* is readable; return whether it is."""
        while True:
            ready = clock.wait([self.fd], at_once=[keyboard, ended])
            if ended in ready:
                return True
            if self.fd in ready:
                said = read_some(self.fd, 65536)
                if not said:  # the guest's kernel ends
                    return True
                screen.write(said)
                screen.flush()
            if keyboard in ready:
                typed = read_some(keyboard, 4096)
                before, leave, _ = typed.partition(LEAVE)
                os.write(self.fd, before)
                if leave or not typed:
                    return False
