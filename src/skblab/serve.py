"""Start commands in the guest and wait until each of them listens."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from skblab.agent.control import Agent
from skblab.agent.rules import Listener
from skblab.errors import GuestCommandFailed, Timeout, UsageError
from skblab.guest.boot import Guest
from skblab.guest.exec import Command

# net/ipv4/inet_connection_sock.c inet_csk_listen_start() calls one of them once a TCP socket has its port. A
# listen(2) that fails enters that function, too. Linux 7.3 has the first alone.
LISTEN = ("inet_hash", "inet6_hash")
BINDS = ("__inet_bind", "__inet6_bind")  # net/ipv4/af_inet.c, net/ipv6/af_inet6.c: bind(2), of whatever protocol
GET_PORT = "udp_lib_get_port"  # net/ipv4/udp.c: bind(2) of a UDP socket calls it next, and so does the first send
UDP = "udp:"
TIMEOUT_S = 20.0


def start_commands(guest: Guest, agent: Agent, lines: Sequence[str], nodes: Sequence[str] = ()) -> None:
    """Run shell command lines in the guest; return when each listens on a TCP port. They run as long as the lab does.

    They begin in the guest's `/`. Their output goes to the kernel's log. A line that begins with ``udp:`` has to bind a
    UDP socket instead.

    :param nodes: of the lab; a line that begins with ``NODE:`` runs on that one

    :raises GuestCommandFailed: one has ended before it listened
    :raises Timeout: one has done neither in TIMEOUT_S
    :raises UsageError: one is no string
    """
    for of_udp in (False, True):
        chosen = [(node, line) for node, line, is_udp in (_read(line, nodes) for line in lines) if is_udp is of_udp]
        if not chosen:
            continue
        with ExitStack() as stack:
            heard = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, heard)
            # Removing the watch needs a task of the guest, and the guest has one CPU: by then the task in listen(2) or
            # bind(2) has returned from it.
            for function, listener in _listeners(heard, of_udp=of_udp).items():
                if agent.rules.image.functions.lookup(function):
                    stack.enter_context(agent.watch(function, listener))
            _wait(guest, heard, [stack.enter_context(_start(guest, node, line)) for node, line in chosen])


def _listeners(heard: int, *, of_udp: bool) -> dict[str, Listener]:
    """Return what listens to which function of the kernel, and writes to *heard* for each server that is ready."""
    if not of_udp:
        return dict.fromkeys(LISTEN, lambda *_: os.eventfd_write(heard, 1))
    is_bind = False  # else the socket sends, as a resolver's does, and a client's

    def binds(*_: object) -> None:
        nonlocal is_bind
        is_bind = True

    def gets_port(*_: object) -> None:
        nonlocal is_bind
        if is_bind:
            os.eventfd_write(heard, 1)
        is_bind = False

    return {**dict.fromkeys(BINDS, binds), GET_PORT: gets_port}


def _read(line: str, nodes: Sequence[str]) -> tuple[str, str, bool]:
    """Return a line's node, its command, and whether that is a server of UDP."""
    if not isinstance(line, str):  # a list is what everything else wants for a command
        raise UsageError(f"a server's command is a line for the guest's shell: {line}", hint=repr(shlex.join(line)))
    node, found, there = line.partition(":")
    node, line = (node, there) if found and node in nodes else ("", line)
    return node, line.removeprefix(UDP), line.startswith(UDP)


def _start(guest: Guest, node: str, line: str) -> Command:
    log = guest.console.writer
    environment = {"PYTHONUNBUFFERED": "1"}
    return guest.popen(
        ["sh", "-c", line], stdout=log, stderr=subprocess.STDOUT, cwd="/", env=environment, stays=True, node=node
    )


def _wait(guest: Guest, heard: int, commands: list[Command]) -> None:
    clock = guest.clock
    left_s = clock.countdown(TIMEOUT_S)
    listening = 0
    while listening < len(commands):
        watched: list[int | Command] = [heard, *commands]
        ready = clock.wait(watched, left_s(), at_once=[guest.pidfd])
        if guest.pidfd in ready:
            raise guest.lost()
        evidence = "\n".join((*(command.args[-1] for command in commands), guest.console.evidence()))
        if not ready:
            raise Timeout(
                f"{len(commands) - listening} of the guest's commands do not listen after {TIMEOUT_S:g} s",
                found=evidence,
            )
        if heard in ready:
            listening += os.eventfd_read(heard)
        for command in commands:
            if command in ready and listening < len(commands):
                raise GuestCommandFailed(
                    f"a command in the guest has ended (status {command.wait()}) before it listened", found=evidence
                )
