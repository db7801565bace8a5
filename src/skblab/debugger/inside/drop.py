"""``skb-drop``: let the kernel drop the packet that it was about to work on."""

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.commands import one_clear_error, say
from skblab.debugger.inside.instead import call_instead, taking_over
from skblab.debugger.inside.wire import OpenPrompt


class SkbDrop(gdb.Command):
    """Drop the packet at the entry of the function that was about to take it over.

    skb-drop

    The kernel frees it as its own code would, and the function returns to its caller with what the caller is told of a
    drop. You stand in the caller then; continue goes on. It works at a function's first instruction, where
    break FUNCTION stops, and only where the function owns its packet: elsewhere somebody would go on to use it.
    """

    def __init__(self, order: OpenPrompt) -> None:
        super().__init__("skb-drop", gdb.COMMAND_RUNNING)
        self.order = order
        self.places = {place.address: place for place in order.path if place.told is not None}

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Do it."""
        self.dont_repeat()  # an empty line is not meant to drop the next one
        if argument:
            raise gdb.GdbError("skb-drop takes no argument: it drops the packet of the function at whose entry you are")
        place, skb = taking_over("skb-drop", self.places)
        packet, order = skbs.line(skb), self.order
        # The function that frees it is called in this one's place, by this one's caller: same stack, same way back.
        registers = dict.fromkeys(skbs.REGISTERS[:3], 0)
        registers |= {
            skbs.REGISTERS[order.drop.argument]: int(skb),
            skbs.REGISTERS[order.reason_argument]: order.reason,
            "rip": order.drop.address,
        }
        if not call_instead(registers):
            raise gdb.GdbError(f"the packet is being dropped, but something stopped {order.drop.function}() on the way")
        gdb.execute(f"set $rax = {place.told}", to_string=True)
        say(f"dropped: {packet}", f"{place.function}() returns {place.told} to {gdb.newest_frame().name() or '??'}()")


def register(order: OpenPrompt) -> None:
    """Bring the command to gdb."""
    SkbDrop(order)
