"""Convert gdb's frames and packets to the records of wire.py."""

import gdb

from skblab.debugger.inside.skbs import device_name, linear_of, protocol_of
from skblab.debugger.inside.wire import AGENT_STOP, Argument, GdbFrame, RawPacket

SOURCE_PREFIX = "/skblab/"  # the build replaces the source tree's path by it
UNKNOWN = "??"
AGENT_TRAMPOLINE = "agent_trampoline"
# First functions of a kernel thread's and of a guest process's stack; older frames are stale
# (arch/um/kernel/process.c copy_thread()).
BOTTOM = frozenset({"new_thread_handler", "fork_handler"})
MAX_FRAMES = 200
MAX_PACKET_BYTES = 1 << 16


def read_frames() -> tuple[GdbFrame, ...]:
    """Return the stopped thread's frames, newest first."""
    frames: list[GdbFrame] = []
    frame = _probed(gdb.newest_frame())
    while frame is not None and len(frames) < MAX_FRAMES:
        frames.append(_read_frame(frame))
        if frames[-1].function in BOTTOM:
            break
        try:
            frame = frame.older()
        except gdb.error:
            break
    while frames and frames[-1].function == UNKNOWN:
        frames.pop()
    return tuple(frames)


def _probed(newest: gdb.Frame) -> gdb.Frame | None:
    """Select and return the frame of the function at which the agent stopped; without the agent, the newest frame."""
    if newest.name() != AGENT_STOP:
        return newest
    frame: gdb.Frame | None = newest
    while frame is not None:
        was_trampoline = frame.name() == AGENT_TRAMPOLINE
        frame = frame.older()
        if was_trampoline and frame is not None:
            frame.select()
            return frame
    return newest


def _read_frame(frame: gdb.Frame) -> GdbFrame:
    sal = frame.find_sal()
    file = sal.symtab.filename if sal.symtab else ""
    return GdbFrame(
        function=frame.name() or UNKNOWN,
        file=file.removeprefix(SOURCE_PREFIX).removeprefix("./"),
        line=sal.line if sal.symtab else 0,
        arguments=_read_arguments(frame),
        inline=frame.type() == gdb.INLINE_FRAME,
        pc=frame.pc(),
    )


def _read_arguments(frame: gdb.Frame) -> tuple[Argument, ...]:
    function = frame.function()
    if function is None:
        return ()
    try:
        block: gdb.Block | None = frame.block()
    except RuntimeError:
        return ()
    while block is not None and block.function is None:
        block = block.superblock
    arguments: list[Argument] = []
    for symbol in () if block is None else block:
        if not symbol.is_argument:
            continue
        try:
            value = symbol.value(frame)
            text = (
                "<optimized out>"
                if value.is_optimized_out
                else value.format_string(max_elements=32, max_depth=1, styling=False)
            )
        except (gdb.error, gdb.MemoryError) as error:
            text = f"<{error}>"
        arguments.append(Argument(symbol.name, str(symbol.type), text))
    return tuple(arguments)


def read_packet(expression: str) -> RawPacket:
    """Read the packet that a C expression of type ``struct sk_buff *`` names in the stopped frame.

    :raises gdb.error: no such packet, or its memory cannot be read
    """
    value = gdb.parse_and_eval(expression)
    if value.is_optimized_out:
        raise gdb.error(f"{expression} is optimized out here")
    skb = value.dereference()
    start, end = linear_of(skb)
    size = min(max(end - start, 0), MAX_PACKET_BYTES)
    return RawPacket(
        skb=int(value),
        head=int(skb["head"]),
        len=int(skb["len"]),
        data_len=int(skb["data_len"]),
        protocol=protocol_of(skb),
        mark=int(skb["mark"]),
        hash=int(skb["hash"]),
        dev=device_name(skb),
        linear=bytes(gdb.selected_inferior().read_memory(start, size)).hex() if size else "",
    )
