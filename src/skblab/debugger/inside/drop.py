"""``skb-drop``: let the kernel drop the packet that it was about to work on."""

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.commands import one_clear_error, say
from skblab.debugger.inside.wire import OpenPrompt


def stack_pointer() -> int:
    """Return where the stack's end is."""
    return int(gdb.parse_and_eval("(unsigned long)$rsp"))


class Return(gdb.Breakpoint):
    """A stop where a function's caller goes on, in the very frame that called it."""

    def __init__(self, address: int, stack: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self.silent = True
        self.stack = stack

    def stop(self) -> bool:
        """Whether it is that frame."""
        return stack_pointer() == self.stack


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
        frame = gdb.newest_frame()
        place = self.places.get(frame.pc())
        if place is None:
            names = ", ".join(one.function for one in self.places.values())
            raise gdb.GdbError(
                f"not here: {frame.name() or '??'}() is not at its first instruction, or is not known to take over "
                f"its packet, so its caller may go on to use it. skb-drop works at the entry of {names}"
            )
        frame.select()
        skb = skbs.find(f"${skbs.REGISTERS[place.argument]}")
        packet, stack = skbs.line(skb), stack_pointer()
        theirs = [one for one in gdb.breakpoints() if one.enabled]
        caller = int(gdb.parse_and_eval("*(unsigned long *)$rsp"))
        back = Return(caller, stack + 8)
        # The function that frees it is called in this one's place, by this one's caller: same stack, same way back.
        order = self.order
        registers = dict.fromkeys(skbs.REGISTERS[:3], 0)
        registers |= {
            skbs.REGISTERS[order.drop.argument]: int(skb),
            skbs.REGISTERS[order.reason_argument]: order.reason,
            "rip": order.drop.address,
        }
        for one in theirs:
            one.enabled = False
        try:
            for register, value in registers.items():
                gdb.execute(f"set ${register} = {value:#x}", to_string=True)
            gdb.execute("continue", to_string=True)
        finally:
            for one in theirs:
                one.enabled = True
            back.delete()
        if (gdb.newest_frame().pc(), stack_pointer()) != (caller, stack + 8):
            raise gdb.GdbError(f"the packet is being dropped, but something stopped {order.drop.function}() on the way")
        gdb.execute(f"set $rax = {place.told}", to_string=True)
        say(f"dropped: {packet}", f"{place.function}() returns {place.told} to {gdb.newest_frame().name() or '??'}()")


def register(order: OpenPrompt) -> None:
    """Bring the command to gdb."""
    SkbDrop(order)
