"""``skb-drop``: make the kernel drop a packet at a function's entry."""

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.commands import one_clear_error, say
from skblab.debugger.inside.instead import call_instead, taking_over
from skblab.debugger.inside.wire import OpenPrompt


class SkbDrop(gdb.Command):
    """Drop the packet at the entry of the function that would take it over.

    skb-drop

    The kernel frees it as its own code would, and the function returns its return value for a drop to its caller. You
    are then stopped in the caller; continue resumes. It works at a function's first instruction, where break FUNCTION
    stops, and only if the function owns its packet: otherwise the caller would use a freed packet.
    """

    def __init__(self, order: OpenPrompt) -> None:
        super().__init__("skb-drop", gdb.COMMAND_RUNNING)
        self.order = order
        self.places = {place.address: place for place in order.path if place.dropped is not None}

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Drop it."""
        self.dont_repeat()  # an empty line must not drop the next packet
        if argument:
            raise gdb.GdbError("skb-drop takes no argument: it drops the packet of the function at whose entry you are")
        place, skb = taking_over("skb-drop", self.places)
        packet, order = skbs.line(skb), self.order
        # The function that frees it is called instead, with the same stack and the same return address.
        registers = dict.fromkeys(skbs.REGISTERS[:3], 0)
        registers |= {
            skbs.REGISTERS[order.drop.argument]: int(skb),
            skbs.REGISTERS[order.reason_argument]: order.reason,
            "rip": order.drop.address,
        }
        if not call_instead(registers):
            raise gdb.GdbError(f"the packet is being dropped, but something stopped {order.drop.function}() on the way")
        gdb.execute(f"set $rax = {place.dropped}", to_string=True)
        caller = gdb.newest_frame().name() or "??"
        say(f"dropped: {packet}", f"{place.function}() returns {place.dropped} to {caller}()")


def register(order: OpenPrompt) -> None:
    """Register the command with gdb."""
    SkbDrop(order)
