"""The gdb commands that only print: ``skb`` and ``skb-path``."""

import functools
from collections.abc import Callable
from typing import TypeVar

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.frames import BOTTOM, MAX_FRAMES, SOURCE_PREFIX

NETWORK = ("net/", "drivers/net/", "arch/um/drivers/")
Command = TypeVar("Command", bound=gdb.Command)


def one_clear_error(invoke: Callable[[Command, str, bool], None]) -> Callable[[Command, str, bool], None]:
    """Turn gdb's errors in a command into one line without a traceback."""

    @functools.wraps(invoke)
    def guarded(self: Command, argument: str, from_tty: bool) -> None:  # noqa: FBT001 - gdb's own
        try:
            invoke(self, argument, from_tty)
        except gdb.error as error:
            raise gdb.GdbError(str(error)) from None

    return guarded


def say(*lines: str) -> None:
    """Print lines."""
    gdb.write("".join(f"{line}\n" for line in lines))
    gdb.flush()  # into a pipe gdb would write it later, or never, where it is killed


class Skb(gdb.Command):
    """Print a packet: a line as from tcpdump, its struct sk_buff, its first bytes.

    skb [EXPR]

    EXPR is a C expression of type struct sk_buff *, or an address; default: skb in the selected frame.
    Header offsets are relative to skb->data; the bytes begin at the network header.

    (gdb) skb
    (gdb) skb $rdi
    (gdb) skb sk->sk_receive_queue.next
    """

    def __init__(self) -> None:
        super().__init__("skb", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Print it."""
        say(*skbs.describe(skbs.find(argument)))


class SkbPath(gdb.Command):
    """Print the network functions of the backtrace, newest first, each with its packet.

    skb-path

    The packet's address is printed unless it is optimized out. Functions outside net/ and the network drivers are only
    counted. The numbers are frame numbers: frame N goes there.
    """

    def __init__(self) -> None:
        super().__init__("skb-path", gdb.COMMAND_STACK)

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Print it."""
        frame: gdb.Frame | None = gdb.newest_frame()
        shown, others = [], 0
        for number in range(MAX_FRAMES):
            if frame is None:
                break
            sal, name = frame.find_sal(), frame.name() or ""
            file = sal.symtab.filename.removeprefix(SOURCE_PREFIX).removeprefix("./") if sal.symtab else ""
            if file.startswith(NETWORK):
                address = skbs.packet_of(frame)
                packet = f"skb {address:#x}" if address else ""
                shown.append(f"#{number:<3} {f'{name}()':32} {packet:18} {file}:{sal.line}")
            else:
                others += 1
            if name in BOTTOM:
                break
            frame = frame.older()
        if not shown:
            raise gdb.GdbError("no function of the network is on the stack here")
        say(*shown, f"and {others} more, outside the network: bt shows all")


def register() -> None:
    """Register the commands with gdb."""
    Skb()
    SkbPath()
