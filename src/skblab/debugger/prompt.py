"""gdb's own prompt on the guest's kernel, for a person or a script on standard input."""

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from skblab.agent.contracts import Contract
from skblab.agent.control import Agent
from skblab.agent.functions import owners, plain_packet, references
from skblab.debugger import attach
from skblab.debugger.inside import wire
from skblab.errors import DebuggerError, LabBusy, SkblabError, Timeout
from skblab.guest.boot import READY, Guest
from skblab.guest.mconsole import Kind
from skblab.host import process
from skblab.host.gdb import directory as gdb_directory
from skblab.host.gdb import find_gdb
from skblab.host.namespace import Namespaces
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.reasons import drop_reason
from skblab.image.scripts import ensure_scripts

log = logging.getLogger(__name__)

ATTACH_TIMEOUT_S = 60.0
NOT_BOOTED = "the kernel was attached to before it had booted, and the agent loads when it has"
# Functions that free a packet or its last reference (net/core/skbuff.c); some are inlined, or of one series only.
ENDS = (
    "sk_skb_reason_drop", "kfree_skb_reason", "consume_skb", "__kfree_skb", "napi_consume_skb", "__napi_kfree_skb",
    "skb_attempt_defer_free", "kfree_skb_partial", "kfree_skb_list_reason", "__consume_stateless_skb",
    "napi_skb_free_stolen_head", "skb_release_head_state", "skb_release_data", "kfree_skbmem",
)  # fmt: skip


@dataclass(frozen=True)
class Holds:
    """How gdb's user holds packets: two addresses in the agent, and the callback that releases one (0: all)."""

    trampoline: int
    by_hand: int
    release: Callable[[int], object]


@dataclass(frozen=True)
class Wanted:
    """What gdb's user wants.

    :param commands: gdb commands to run first
    :param user_init: read the user's ~/.gdbinit first
    :param attached: called when gdb has attached; from boot, when the guest is ready
    :param booted: called when the guest is ready; if given, the kernel is stopped before its first instruction
    """

    commands: tuple[str, ...] = ()
    user_init: bool = False
    attached: Callable[[], object] = lambda: None
    booted: Callable[[], object] | None = None


def run(image: Image, guest: Guest, namespaces: Namespaces, wanted: Wanted, ready_agent: Callable[[], Agent]) -> int:
    """Run gdb's prompt on standard input; return gdb's exit status when its user has left it.

    Attaching stops the kernel until the user continues it; leaving detaches, and the guest runs on.

    :param ready_agent: returns the agent, which holds packets by hand
    :raises DebuggerError: gdb cannot attach
    """
    from_boot = wanted.booted is not None
    holds, no_hold = (None, NOT_BOOTED) if from_boot else _holds(ready_agent)
    gdb = find_gdb()
    ours, theirs = socket.socketpair()
    with ours, contextlib.ExitStack() as stack:
        with theirs:
            argv: list[process.Argument] = [
                *gdb.argv, "-quiet", *([] if wanted.user_init else ["-nx"]),
                "-iex", "set debuginfod enabled off",
                *(["-iex", "set style emoji off"] if gdb.origin == "wheel" else []),
                "-ex", f"set substitute-path /skblab {image.source}",
                *attach.symbols_of(guest.modules),
                "-ex", f"python from skblab.debugger.inside import prompt; prompt.main({theirs.fileno()})",
                *(word for command in wanted.commands for word in ("-ex", command)),
                image.kernel,
            ]  # fmt: skip
            stack.enter_context(_terminal_lent())
            # In this process's group, which is the terminal's foreground group.
            running = process.start(
                namespaces.command(argv),
                cwd=gdb_directory(),
                env=attach.environment(gdb, guest),
                stdin=None,
                pass_fds=[namespaces.pidfd, theirs.fileno()],
            )
        stack.callback(process.end, running)
        _attach(ours, _order(image, guest, holds, no_hold, from_boot=from_boot), guest)
        if not from_boot:
            wanted.attached()
        if holds:
            stack.callback(holds.release, 0)  # gdb's user has left
        status = _wait(running, guest, wanted, ours, holds)
    if status and guest.alive:
        attach.restore_all(guest.pid, image.kernel)
    return process.exit_status(status)


def _holds(ready_agent: Callable[[], Agent]) -> tuple[Holds | None, str]:
    """Return how gdb's user holds packets; or None, and why not."""
    try:
        agent = ready_agent()
    except (LabBusy, Timeout) as error:
        return None, error.what
    return Holds(*agent.channel.by_hand, agent.release_by_hand), ""


def _wait(
    running: process.Process,
    guest: Guest,
    wanted: Wanted,
    channel: socket.socket,
    holds: Holds | None,
) -> int:
    """Wait for gdb's end; until then, call *booted* when the guest is ready, and release packets that gdb names."""
    pidfd = os.pidfd_open(running.pid)
    said = channel.makefile("rb")
    watched: list[socket.socket | int] = [pidfd, channel, *([guest.notifications] if wanted.booted else [])]
    try:
        while True:
            ready = wait(watched)
            if guest.notifications in ready and wanted.booted:
                notification = guest.notification()
                if notification.kind is Kind.USER and notification.text == READY:
                    wanted.booted()
                    wanted.attached()
                    watched.remove(guest.notifications)
            elif channel in ready:
                message = wire.decode(line) if (line := said.readline()) else None
                if isinstance(message, wire.Release) and holds:
                    holds.release(message.packet)
                elif message is None:
                    watched.remove(channel)
            elif pidfd in ready:
                return running.wait()
    finally:
        os.close(pidfd)


def _attach(channel: socket.socket, order: wire.OpenPrompt, guest: Guest) -> None:
    """Make gdb attach, and wait until it has."""
    data = b""
    try:
        channel.sendall(wire.encode(order))
        if wait([channel], ATTACH_TIMEOUT_S):
            data = channel.recv(1 << 16)
        else:
            raise Timeout(f"gdb did not attach within {ATTACH_TIMEOUT_S:g} s")
    except ConnectionError:
        pass
    answer = wire.decode(data) if data else wire.Failed("it ended before it attached; its own words are above")
    if isinstance(answer, wire.Failed):
        if not guest.alive:
            raise guest.lost()
        raise attach.explain(DebuggerError(answer.reason), guest.pid)


@contextlib.contextmanager
def _terminal_lent() -> Iterator[None]:
    """Leave Ctrl-C to the program that has the terminal, and restore the terminal's modes after it, as a shell does.

    The handler does nothing; SIG_IGN would be inherited by gdb.
    """
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)}
    modes = termios.tcgetattr(0) if sys.stdin.isatty() else None
    try:
        yield
    finally:
        if modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, modes)
        for number, handler in before.items():
            signal.signal(number, handler)


def _scripts(image: Image) -> str:
    """Return the file of the kernel's own gdb commands; if it cannot be made, log why and return ""."""
    try:
        return str(ensure_scripts(image.path))
    except (SkblabError, OSError) as error:
        log.warning("the kernel's own commands for gdb (lx-...) are absent: %s", error)
        return ""


def _order(image: Image, guest: Guest, holds: Holds | None, no_hold: str, *, from_boot: bool) -> wire.OpenPrompt:
    """Return what gdb needs of this kernel: functions that packets pass, functions that free them, how to drop one."""
    found = [one for name in ENDS if (one := image.functions.lookup(name)) and plain_packet(one)]
    drop = next(one for one in found if one.parameters[-1].name == "reason")
    return wire.OpenPrompt(
        pid=guest.inner_pid,
        from_boot=from_boot,
        scripts=_scripts(image),
        path=tuple(_place(one, contract) for one, contract in owners(image)),
        ends=tuple(map(_place, found)),
        drop=_place(drop),
        reason_argument=len(drop.parameters) - 1,
        reason=drop_reason(image, ""),
        trampoline=holds.trampoline if holds else 0,
        by_hand=holds.by_hand if holds else 0,
        no_hold=no_hold,
    )


def _place(function: Function, contract: Contract | None = None) -> wire.Place:
    packet, needed = plain_packet(function), references(function)
    assert packet
    place = wire.Place(function.name, function.address, packet.number)
    if contract is None:
        return place
    return dataclasses.replace(
        place,
        dropped=contract.dropped,
        held=contract.held,
        taken_from=contract.taken[0],
        taken_to=contract.taken[1],
        transmits=contract.transmits,
        devices=needed.devices,
        sockets=needed.sockets,
        nets=needed.nets,
    )
