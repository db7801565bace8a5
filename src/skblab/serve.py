"""Start commands in the guest and wait until each of them listens."""

import collections
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Self

from skblab.agent.abi import Hit
from skblab.agent.control import Agent
from skblab.errors import GuestCommandFailed, Timeout, UsageError
from skblab.guest.boot import Guest
from skblab.guest.exec import Command

if TYPE_CHECKING:
    from skblab.agent.rules import Listener

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
            heard = stack.enter_context(_Heard())
            # Removing the watch needs a task of the guest, and the guest has one CPU: by then the task in listen(2) or
            # bind(2) has returned from it.
            for function, listener in (heard.of_udp if of_udp else heard.of_tcp).items():
                if agent.rules.image.functions.lookup(function):
                    stack.enter_context(agent.rules.watch(function, listener))
            _wait(guest, heard, [stack.enter_context(_start(guest, node, line)) for node, line in chosen])


class _Heard:
    """The sessions whose programs have begun to listen: each command of the guest's is a session of its own."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions: collections.deque[int] = collections.deque()
        self._binding: set[int] = set()
        self.of_tcp: dict[str, Listener] = dict.fromkeys(LISTEN, self._listens)
        self.of_udp: dict[str, Listener] = {**dict.fromkeys(BINDS, self._binds), GET_PORT: self._gets_port}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._bell)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there is another one."""
        return self._bell

    def take(self) -> list[int]:
        """Return the sessions since the last time, in their order."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        return [self._sessions.popleft() for _ in range(len(self._sessions))]

    def _listens(self, hit: Hit, _: object) -> None:
        self._sessions.append(hit.session)
        os.eventfd_write(self._bell, 1)

    def _binds(self, hit: Hit, _: object) -> None:
        self._binding.add(hit.session)

    def _gets_port(self, hit: Hit, _: object) -> None:
        if hit.session in self._binding:  # else the socket sends, as a resolver's does, and a client's
            self._binding.discard(hit.session)
            self._listens(hit, _)


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


def _wait(guest: Guest, heard: _Heard, commands: list[Command]) -> None:
    clock = guest.clock
    left_s = clock.countdown(TIMEOUT_S)
    silent = {command.pid: command for command in commands}  # by their sessions, in their order
    while silent:
        watched: list[_Heard | Command] = [heard, *silent.values()]
        ready = clock.wait(watched, left_s(), at_once=[guest.pidfd])
        if guest.pidfd in ready:
            raise guest.lost()
        evidence = "\n".join((*(command.args[-1] for command in commands), guest.console.evidence()))
        if not ready:
            raise Timeout(f"{len(silent)} of the guest's commands do not listen after {TIMEOUT_S:g} s", found=evidence)
        for session in heard.take():
            silent.pop(_server_of(session, silent, commands), None)
        for command in silent.values():
            if command in ready:
                raise GuestCommandFailed(
                    f"a command in the guest has ended (status {command.wait()}) before it listened", found=evidence
                )


def _server_of(session: int, silent: Mapping[int, Command], commands: Sequence[Command]) -> int:
    """Return the session of the command that a session belongs to; 0: of none of them.

    A server may make a session of its own, as daemon(3) does: later than ours, and so the first's that is silent.
    """
    ours = [command.pid for command in commands]
    return session if session in ours or session < min(ours) else next(iter(silent), 0)
