"""Journeys: a packet, the packets that came of it, and the calls of all of them, nested.

A journey begins with a packet that nothing in the trace has brought forth. To it belong the packets that it caused (a
reply, an error, a segment), those that were made of it (copies, segments), and what they caused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from skblab.agent.abi import Role
from skblab.edit import difference
from skblab.packet import Packet
from skblab.trace.model import Kin, Step, Trace


@dataclass
class Followed:
    """A followed packet: its steps in order, the packet that it comes from, and the one that it was merged into."""

    number: int
    steps: list[Step] = field(default_factory=list)
    origin: Kin | None = None
    joined: Kin | None = None

    @cached_property
    def best(self) -> Step | None:
        """The first step at which its network header is known, or None."""
        return next((step for step in self.steps if is_readable(step)), None)

    @property
    def summary(self) -> str:
        """The packet in one line, as tcpdump writes it."""
        if self.best is None:
            longest = max((step.length for step in self.steps), default=None)
            return "a packet that was not seen" if longest is None else f"{longest} bytes that are no IP packet"
        return packet_at(self.best).summary()

    @property
    def freed(self) -> Step | None:
        """The step at which its bytes were freed, or None."""
        return next((step for step in reversed(self.steps) if step.freed), None)


@dataclass
class Call:
    """A step and the calls in it. *by_rule*: a rule, or a person, dropped the packet in the call around."""

    step: Step
    by_rule: bool = False
    inner: "list[Call]" = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    came: list[Kin] = field(default_factory=list)

    def walk(self, depth: int = 0) -> "Iterator[tuple[int, Call]]":
        """Yield this call and all calls in it in the order of their entry, each with its depth."""
        yield depth, self
        for one in self.inner:
            yield from one.walk(depth + 1)


@dataclass
class Journey:
    """A packet, the packets that came of it, and their outermost calls."""

    packets: dict[int, Followed]
    calls: list[Call]

    @property
    def first(self) -> Followed:
        """The packet that began it."""
        return next(iter(self.packets.values()))

    @property
    def begin_ns(self) -> int:
        """The time of its first step, on the host's CLOCK_MONOTONIC."""
        return self.calls[0].step.at_ns

    @property
    def end_ns(self) -> int:
        """The latest return of its outermost calls; of those without a return, the entry."""
        return max(call.step.end_ns for call in self.calls)

    @property
    def is_of_network(self) -> bool:
        """Whether it has a network packet. Netlink messages and empty buffers are skbs, too."""
        return any(packet.best for packet in self.packets.values())

    def walk(self) -> Iterator[tuple[int, Call]]:
        """Yield all calls in the order of their entry, each with its depth."""
        for call in self.calls:
            yield from call.walk()


def packet_at(step: Step) -> Packet:
    """Return the packet as it is at a step, its first bytes."""
    return Packet(step.data, step.protocol)


def is_readable(step: Step) -> bool:
    """Whether the packet's bytes at a step begin with the header that its protocol names."""
    return packet_at(step).is_readable


def journeys(trace: Trace) -> list[Journey]:
    """Return the journeys of a trace, in the order of their first steps."""
    packets: dict[int, Followed] = {}
    for kin in trace.kin:
        packet = packets.setdefault(kin.packet, Followed(kin.packet))
        if kin.role is Role.MERGED:
            packet.joined = kin
        else:
            packet.origin = kin  # a copy has two records: its allocation in the packet's call (BORN), then COPIED
    for step in trace.steps:
        if step.packet:
            packets.setdefault(step.packet, Followed(step.packet)).steps.append(step)
    root_of = {number: _root(packets, number) for number in packets}
    families: dict[int, dict[int, Followed]] = {}
    for number in sorted(packets):
        families.setdefault(root_of[number], {})[number] = packets[number]
    calls = _nest(trace, packets)
    of_root: dict[int, list[Call]] = {}
    for call, packet_number in calls:
        of_root.setdefault(root_of.get(packet_number, packet_number), []).append(call)
    found = [Journey(families[root], outermost) for root, outermost in of_root.items() if root in families]
    return sorted(found, key=lambda one: one.begin_ns)


def _root(packets: dict[int, Followed], number: int) -> int:
    seen = {number}
    while (packet := packets.get(number)) and packet.origin and packet.origin.other not in seen:
        number = packet.origin.other
        seen.add(number)
    return number


def _nest(trace: Trace, packets: dict[int, Followed]) -> list[tuple[Call, int]]:
    """Put each call into the call around it; return the outermost ones, each with its packet's number."""
    by_number: dict[int, tuple[Call, int]] = {}
    outermost: list[tuple[Call, int]] = []
    last: dict[int, Step] = {}
    came: dict[int, list[Kin]] = {}
    for kin in trace.kin:
        came.setdefault(kin.call, []).append(kin)
    for step in trace.steps:
        around = by_number.get(step.outer)
        number = step.packet or (around[1] if around else 0)
        by_rule = around is not None and around[0].step.by_rule
        call = Call(step, by_rule, changes=_changes(last.get(step.packet), step), came=came.get(step.call, []))
        by_number[step.call] = (call, number)
        if step.packet:
            last[step.packet] = step
        if around and (around[1] == number or _comes_of(packets, number, around[1])):
            around[0].inner.append(call)
        else:
            outermost.append((call, number))
    return outermost


def _comes_of(packets: dict[int, Followed], number: int, other: int) -> bool:
    """Whether two packets are of one journey."""
    return _root(packets, number) == _root(packets, other)


def _changes(before: Step | None, step: Step) -> list[str]:
    """Return what differs from the packet's last step, in words: length, mark, header fields."""
    if before is None:
        return []
    said = []
    for name in ("length", "mark"):
        old, new = getattr(before, name), getattr(step, name)
        if old != new:
            said.append(f"{'len' if name == 'length' else name} {old} -> {new}")
    if step.changed and is_readable(before) and is_readable(step) and before.protocol == step.protocol:
        said += difference(packet_at(before), packet_at(step)).splitlines()
    return said
