"""``skb-hold``, ``skb-held`` and ``skb-release``: hold a packet while the kernel runs on, and release it later."""

import socket
import struct
import time

import gdb

from skblab.agent.abi import BY_HAND_LAYOUT, ByHand
from skblab.debugger.inside import skbs
from skblab.debugger.inside.commands import one_clear_error, say
from skblab.debugger.inside.instead import call_instead, stack_pointer, taking_over
from skblab.debugger.inside.wire import OpenPrompt, Release, encode

ENTRY_BYTES = 5  # size of the NOPs at a function's entry, and of the call that replaces them


class Held:
    """The held packets: number -> function, summary, time."""

    def __init__(self) -> None:
        self.packets: dict[int, tuple[str, str, float]] = {}

    def lines(self) -> list[str]:
        """Return a line for each packet."""
        now_s = time.monotonic()
        return [f"{number:4}  {now_s - since_s:8.1f} s  {function}()  {line}"
                for number, (function, line, since_s) in self.packets.items()]  # fmt: skip


class SkbHold(gdb.Command):
    """Hold the packet at the entry of the function that would take it over.

    skb-hold

    The agent keeps it, and the function returns to its caller as if it had taken the packet; you are then stopped in
    the caller. continue resumes the kernel without the packet. skb-release calls the function with it. Leaving gdb
    releases everything. It works where skb-drop does.
    """

    def __init__(self, order: OpenPrompt, held: Held) -> None:
        super().__init__("skb-hold", gdb.COMMAND_RUNNING)
        self.order, self.held = order, held
        self.places = {place.address: place for place in order.path if place.dropped is not None}

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Do it."""
        self.dont_repeat()
        if argument:
            raise gdb.GdbError("skb-hold takes no argument: it holds the packet of the function at whose entry you are")
        if self.order.no_hold:
            raise gdb.GdbError(f"packets cannot be held here: {self.order.no_hold}")
        place, skb = taking_over("skb-hold", self.places)
        line, inferior = skbs.line(skb), gdb.selected_inferior()
        wanted = ByHand(
            place.address, 0, place.held, place.taken_from, place.taken_to,
            place.argument, place.devices, place.sockets, place.nets, place.transmits,
        )  # fmt: skip
        inferior.write_memory(self.order.by_hand, BY_HAND_LAYOUT.pack(*wanted))
        # Call the agent's trampoline as the function's entry does where a probe is armed.
        stack = stack_pointer() - 8
        inferior.write_memory(stack, struct.pack("=Q", place.address + ENTRY_BYTES))
        back = call_instead({"rsp": stack, "rip": self.order.trampoline})
        answer = bytes(inferior.read_memory(self.order.by_hand, BY_HAND_LAYOUT.size))
        number = ByHand._make(BY_HAND_LAYOUT.unpack(answer)).packet
        if not number:
            raise gdb.GdbError(
                "the kernel has no memory to hold it, or its route, socket or device is going away: it went on"
            )
        self.held.packets[number] = (place.function, line, time.monotonic())
        if not back:
            raise gdb.GdbError(f"packet {number} is held, but something stopped the kernel on the way")
        where = gdb.newest_frame().name() or "??"
        say(f"held as packet {number}: {line}", f"{place.function}() returns {place.held} to {where}()")


class SkbHeld(gdb.Command):
    """List the packets held by skb-hold: number, time held, function, summary.

    skb-held
    """

    def __init__(self, held: Held) -> None:
        super().__init__("skb-held", gdb.COMMAND_DATA)
        self.held = held

    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Print the list."""
        say(*(self.held.lines() or ["no packet is held"]))


class SkbRelease(gdb.Command):
    """Release packets held by skb-hold: each enters its function as soon as the kernel runs.

    skb-release [NUMBER]...

    Without a number, release all of them, in the order in which they were held.
    """

    def __init__(self, held: Held, channel: socket.socket) -> None:
        super().__init__("skb-release", gdb.COMMAND_RUNNING)
        self.held, self.channel = held, channel

    def complete(self, text: str, word: str) -> list[str]:  # noqa: ARG002 - gdb's own
        """Return the numbers that begin with *word*."""
        return [str(number) for number in self.held.packets if str(number).startswith(word)]

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Do it."""
        self.dont_repeat()
        numbers = argument.split() or [str(number) for number in self.held.packets]
        for number in numbers:
            if not number.isdigit() or int(number) not in self.held.packets:
                held = ", ".join(map(str, self.held.packets)) or "none"
                raise gdb.GdbError(f"no packet {number} is held here; held: {held}")
        for number in numbers:
            function, line, _ = self.held.packets.pop(int(number))
            self.channel.sendall(encode(Release(int(number))))
            say(f"packet {number} goes on in {function}() once the kernel runs: {line}")
        if not numbers:
            say("no packet is held")


def register(order: OpenPrompt, channel: socket.socket) -> None:
    """Register the commands with gdb; *channel* is the socket to skblab."""
    held = Held()
    SkbHold(order, held)
    SkbHeld(held)
    SkbRelease(held, channel)
