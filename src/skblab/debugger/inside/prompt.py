"""gdb's own prompt on the guest kernel: attach, bring the packet commands, and leave the rest to the user."""

import socket
import sys

import gdb

from skblab.debugger.inside import commands, drop, follow, hold, watch, wire

ABSENT = "skblab: the kernel's own commands (lx-...) are absent: {}\n"


def main(descriptor: int) -> None:
    """Do what the message on an inherited socket says; what an interactive gdb is started with."""
    channel = socket.socket(fileno=descriptor)
    with channel.makefile("rb") as stream:
        order = wire.decode(stream.readline())
    assert isinstance(order, wire.OpenPrompt)
    follow.set_up()
    try:
        gdb.execute(f"attach {order.pid}", to_string=True)
    except gdb.error as error:
        channel.sendall(wire.encode(wire.Failed(str(error))))
        gdb.execute("quit 1")
    if order.from_boot:
        follow.execute_kernel()
    commands.register()
    watch.register(order)
    drop.register(order)
    hold.register(order, channel)
    _load_scripts(order.scripts)
    channel.sendall(wire.encode(wire.Done()))


def _load_scripts(scripts: str) -> None:
    """Bring the kernel's own commands; a kernel may be too new or too old for this gdb, and that is no reason to stop.

    They ask for nothing but leave compiled files behind, unless told not to.
    """
    if not scripts:
        return
    sys.dont_write_bytecode = True
    try:
        gdb.execute(f"source {scripts}", to_string=True)
    except gdb.error as error:
        gdb.write(ABSENT.format(error), gdb.STDERR)
