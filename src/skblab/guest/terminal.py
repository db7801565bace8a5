"""The terminal of a shell in the guest: a pseudo-terminal, of which UML has one side as its tty1."""

import os
import pty
from contextlib import ExitStack
from typing import IO, Self

from skblab.host.waiting import wait

LEAVE = b"\x1d"  # Ctrl-], as telnet and virsh console have it
NAME_OF_LEAVE = "Ctrl-]"


class Terminal:
    """Our side of it; it is closed with *stack*."""

    def __init__(self, fd: int, stack: ExitStack) -> None:
        self.fd = fd
        self.guest_fd = -1
        stack.callback(os.close, fd)

    @classmethod
    def make(cls, stack: ExitStack) -> Self:
        """Return a new one; ``guest_fd`` is the guest's side, until it is handed over."""
        ours, guests = pty.openpty()
        terminal = cls(ours, stack)
        terminal.guest_fd = guests
        stack.callback(terminal.hand_over)
        return terminal

    def hand_over(self) -> None:
        """Close the guest's side here; the guest has it."""
        if self.guest_fd >= 0:
            os.close(self.guest_fd)
            self.guest_fd = -1

    def talk(self, keyboard: int, screen: IO[bytes], ended: int) -> bool:
        """Carry bytes to and fro until the person leaves, or the descriptor *ended* is readable; whether it is."""
        while True:
            ready = wait([self.fd, keyboard, ended])
            if ended in ready:
                return True
            if self.fd in ready:
                screen.write(os.read(self.fd, 65536))
                screen.flush()
            if keyboard in ready:
                typed = os.read(keyboard, 4096)
                before, leave, _ = typed.partition(LEAVE)
                os.write(self.fd, before)
                if leave or not typed:
                    return False
