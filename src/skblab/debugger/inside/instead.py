"""Call another function instead of the one at whose entry the kernel is stopped."""

from collections.abc import Mapping

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.wire import Place


def stack_pointer() -> int:
    """Return the stack pointer."""
    return int(gdb.parse_and_eval("(unsigned long)$rsp"))


class Return(gdb.Breakpoint):
    """A stop at a function's return address, in the frame that called it."""

    def __init__(self, address: int, stack: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self.silent = True
        self.stack = stack

    def stop(self) -> bool:
        """Whether the stack pointer is that frame's."""
        return stack_pointer() == self.stack


def taking_over(command: str, places: Mapping[int, Place]) -> tuple[Place, gdb.Value]:
    """Return the function at whose first instruction the kernel is stopped, and the packet that it takes over.

    :raises gdb.GdbError: not at a first instruction, or the function is not known to take over its packet
    """
    frame = gdb.newest_frame()
    place = places.get(frame.pc())
    if place is None:
        names = ", ".join(one.function for one in places.values())
        raise gdb.GdbError(
            f"not here: {frame.name() or '??'}() is not at its first instruction, or is not known to take over "
            f"its packet, so its caller may go on to use it. {command} works at the entry of {names}"
        )
    frame.select()
    return place, skbs.find(f"${skbs.REGISTERS[place.argument]}")


def call_instead(registers: Mapping[str, int]) -> bool:
    """Set registers, continue, and stop at the return address; return whether it was reached.

    The user's own breakpoints are disabled until then.
    """
    stack, caller = stack_pointer(), int(gdb.parse_and_eval("*(unsigned long *)$rsp"))
    theirs = [one for one in gdb.breakpoints() if one.enabled]
    back = Return(caller, stack + 8)
    for one in theirs:
        one.enabled = False
    try:
        for register, value in registers.items():
            gdb.newest_frame().select()  # a register of another frame lies on the stack
            gdb.execute(f"set ${register} = {value:#x}", to_string=True)
        gdb.execute("continue", to_string=True)
    finally:
        for one in theirs:
            one.enabled = True
        back.delete()
    return (gdb.newest_frame().pc(), stack_pointer()) == (caller, stack + 8)
