"""``skb-watch``: continue until one packet reaches its next function, changes, or is freed."""

import gdb

from skblab.debugger.inside import skbs
from skblab.debugger.inside.commands import one_clear_error, say
from skblab.debugger.inside.wire import OpenPrompt, Place
from skblab.summary import ETH_P_IP

WATCHED = ("len", "data_len", "mark", "users.refs.counter", "cloned")
ALL_BYTES = 1 << 16


class Waypoint(gdb.Breakpoint):
    """A stop at a function's entry for one packet: it compares the argument's register with the packet's address."""

    def __init__(self, place: Place, skb: int) -> None:
        super().__init__(f"*{place.address:#x}", internal=True)
        self.silent = True
        self.place = place
        self.skb = skb

    def stop(self) -> bool:
        """Whether the argument is this packet."""
        return _argument(self.place) == self.skb


class Change(gdb.Breakpoint):
    """A stop when some bytes of a packet are written, by one of the processor's four watchpoints."""

    def __init__(self, kind: str, address: int) -> None:
        super().__init__(f"*({kind} *){address:#x}", type=gdb.BP_WATCHPOINT, wp_class=gdb.WP_WRITE, internal=True)
        self.silent = True


class SkbWatch(gdb.Command):
    """Continue until a packet reaches its next function, changes, or is freed; say which, and what has changed in it.

    skb-watch [EXPR]

    EXPR is as for skb. The next function is one that takes over its packet, from ip_rcv() to __dev_queue_xmit(), or one
    that frees it. A change is a write to len, data_len or mark, or to 16 bytes of the network header: in IPv4 from the
    TTL to the destination, in others the first 16. Without hardware watchpoints, changes are printed when the packet
    reaches a function. Other packets pass. Your own breakpoints stop the kernel, too. A copy or a clone is another
    packet with an address of its own: the reply to a ping is not the request.
    """

    def __init__(self, order: OpenPrompt) -> None:
        super().__init__("skb-watch", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)
        self.path, self.ends = order.path, order.ends

    @one_clear_error
    def invoke(self, argument: str, from_tty: bool) -> None:  # noqa: ARG002, FBT001 - gdb's own
        """Do it."""
        skb = skbs.find(argument)
        address, before = int(skb), _look(skb)
        say(f"watching skb {address:#x}: {skbs.line(skb)}")
        # The current function does not count as reached: a pending signal would stop here a second time.
        here = gdb.newest_frame().pc()
        places = {place.address: place for place in (*self.path, *self.ends) if place.address != here}
        stops = [*(Waypoint(place, address) for place in places.values()), *_changes(skb)]
        try:
            _go_on(stops)
        finally:
            for stop in stops:
                stop.delete()
        if not gdb.selected_inferior().pid:
            raise gdb.GdbError("the guest kernel has ended")
        place = places.get(gdb.newest_frame().pc())
        if place is None or _argument(place) != address:
            changes = [f"{name}: {old} -> {new}" for name, old, new in _compare(before, _look(skb))]
            name = gdb.newest_frame().name() or "??"
            said = f"skb {address:#x} changes in {name}()" if changes else "stopped before the packet went anywhere:"
            say(said, *(f"  {change}" for change in changes))
        else:
            if place in self.ends:
                users = int(skb["users"]["refs"]["counter"])
                others = "" if users < 2 else f", one of its {users} users"
                say(f"skb {address:#x} is freed{others}: {place.function}() called by {_caller()}()")
            else:
                say(f"skb {address:#x} reaches {place.function}()")
            changes = [f"{name}: {old} -> {new}" for name, old, new in _compare(before, _look(skb))]
            say(*(f"  {change}" for change in changes or ["unchanged"]))
        gdb.execute("frame")


def _changes(skb: gdb.Value) -> list[gdb.Breakpoint]:
    """Return the watchpoints on the packet."""
    ipv4 = skbs.protocol_of(skb) == ETH_P_IP
    network = int(skb["head"]) + int(skb["network_header"]) + (8 if ipv4 else 0)
    return [
        Change("unsigned long", int(skb["len"].address)),  # and data_len after it
        Change("unsigned int", int(skb["mark"].address)),
        Change("unsigned long", network),
        Change("unsigned long", network + 8),
    ]


def _go_on(stops: list[gdb.Breakpoint]) -> None:
    """Continue the kernel; without watchpoints if the processor has no free one."""
    try:
        gdb.execute("continue", to_string=True)
    except gdb.error as error:
        if "watchpoint" not in str(error) and "hardware" not in str(error):
            raise
        for stop in stops:
            if isinstance(stop, Change):
                stop.enabled = False
        say("no hardware watchpoints here: changes are printed when the packet reaches a function")
        gdb.execute("continue", to_string=True)


def _argument(place: Place) -> int:
    """Return the packet argument of the function at whose first instruction the kernel is stopped."""
    return int(gdb.parse_and_eval(f"(unsigned long)${skbs.REGISTERS[place.argument]}"))


def _caller() -> str:
    """Return the name of the newest frame's caller, past inline functions of headers."""
    frame = gdb.newest_frame().older()
    while frame is not None and frame.type() == gdb.INLINE_FRAME:
        frame = frame.older()
    return (frame.name() if frame else None) or "??"


def _look(skb: gdb.Value) -> dict[str, object]:
    """Return the watched parts of a packet."""
    found: dict[str, object] = {}
    for name in WATCHED:
        value = skb
        for part in name.split("."):
            value = value[part]
        found[name.partition(".")[0]] = int(value)
    found["bytes"] = skbs.read_bytes(skb, ALL_BYTES).data
    return found


def _compare(before: dict[str, object], after: dict[str, object]) -> list[tuple[str, object, object]]:
    """Return the changes as (name, before, after); of the bytes, the range that differs."""
    changes = [(name, before[name], after[name]) for name in before if name != "bytes" and before[name] != after[name]]
    old, new = before["bytes"], after["bytes"]
    assert isinstance(old, bytes)
    assert isinstance(new, bytes)
    differing = [at for at in range(min(len(old), len(new))) if old[at] != new[at]]
    if differing and len(old) == len(new):
        first, last = differing[0], differing[-1] + 1
        changes.append((f"bytes {first}-{last - 1}", old[first:last].hex(), new[first:last].hex()))
    return changes


def register(order: OpenPrompt) -> None:
    """Bring the command to gdb."""
    SkbWatch(order)
