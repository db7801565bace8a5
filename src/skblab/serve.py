"""Start commands in the guest and wait until each of them listens."""

import os
import select
import time
from typing import TYPE_CHECKING

from skblab.agent.control import Agent
from skblab.errors import GuestCommandFailed, Timeout
from skblab.guest.boot import Guest
from skblab.guest.mconsole import Kind

if TYPE_CHECKING:
    import socket

LISTEN = "inet_csk_listen_start"  # net/ipv4/inet_connection_sock.c: every TCP socket that listens comes by
TIMEOUT_S = 20.0


def start_commands(guest: Guest, agent: Agent, commands: tuple[str, ...]) -> None:
    """Let the guest's init run its commands; return when each listens on a TCP port.

    :raises GuestCommandFailed: one has ended instead
    :raises Timeout: one does neither
    """
    heard = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with agent.watch(LISTEN, lambda *_: os.eventfd_write(heard, 1)):
            guest.mconsole.cad()
            _wait(guest, heard, commands)
            # Taking the watch away needs a task of the guest, and there is one processor: the task that was in
            # listen(2) has come out of it by then.
    finally:
        os.close(heard)


def _wait(guest: Guest, heard: int, commands: tuple[str, ...]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    listening = 0
    while listening < len(commands):
        watched: list[int | socket.socket] = [heard, guest.notifications, guest.pidfd]
        ready, _, _ = select.select(watched, [], [], max(deadline - time.monotonic(), 0))
        if guest.pidfd in ready:
            raise guest.lost()
        if not ready:
            raise Timeout(
                f"{len(commands) - listening} of the guest's commands do not listen after {TIMEOUT_S:g} s",
                found="\n".join((*commands, guest.console.evidence())),
            )
        if heard in ready:
            listening += os.eventfd_read(heard)
        if guest.notifications in ready:
            said = guest.notification()
            if said.kind is Kind.USER and said.text.startswith("ended "):
                status = int(said.text.removeprefix("ended "))
                raise GuestCommandFailed(
                    f"a command in the guest has ended (status {status}) before it listened",
                    found="\n".join((*commands, guest.console.evidence())),
                )
