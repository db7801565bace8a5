"""gdb's own prompt on the guest's kernel: attach, register the packet commands, then the user has it."""

import socket
import sys

import gdb

from skblab.debugger.inside import commands, drop, follow, frozen, hold, watch, wire

ABSENT = "skblab: the kernel's own commands (lx-...) are absent: {}\n"


def main(descriptor: int) -> None:
    """Carry out the message on an inherited socket; an interactive gdb starts with this."""
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
    else:
        frozen.begin()
    commands.register()
    watch.register(order)
    drop.register(order)
    hold.register(order, channel)
    _load_scripts(order.scripts)
    channel.sendall(wire.encode(wire.Done()))


def _load_scripts(scripts: str) -> None:
    """Load the kernel's own commands; print a message if they do not work with this gdb.

    Without dont_write_bytecode they would leave compiled files behind.
    """
    if not scripts:
        return
    sys.dont_write_bytecode = True
    try:
        gdb.execute(f"source {scripts}", to_string=True)
    except gdb.error as error:
        gdb.write(ABSENT.format(error), gdb.STDERR)
