"""Journeys: a packet, what came of it, and the calls of both, nested as they happened.

A journey begins with a packet that nothing in the trace has brought forth. To it belong the packets that it caused (a
reply, an error, a segment), those that were made of it (copies, segments), and what they caused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from skblab.agent.abi import Role
from skblab.edit import difference
from skblab.packet import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Packet
from skblab.trace.model import Kin, Step, Trace

ARP_OF_ETHERNET = b"\0\1"
VERSIONS = {ETH_P_IP: 4, ETH_P_IPV6: 6}


@dataclass
class Followed:
    """One packet: its steps in the order in which they were, how it came to be, and what it became a part of."""

    number: int
    steps: list[Step] = field(default_factory=list)
    origin: Kin | None = None
    joined: Kin | None = None

    @cached_property
    def best(self) -> Step | None:
        """The first step at which its network header is known; None for what is no packet of a network."""
        return next((step for step in self.steps if is_readable(step)), None)

    @property
    def summary(self) -> str:
        """The packet in one line, in tcpdump's manner."""
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
    """One step with what happened in it. *by_rule*: in a call in which a rule, or a person, dropped the packet."""

    step: Step
    by_rule: bool = False
    inner: "list[Call]" = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    came: list[Kin] = field(default_factory=list)

    def walk(self, depth: int = 0) -> "Iterator[tuple[int, Call]]":
        """Return this call and all in it, as they began, each with its depth."""
        yield depth, self
        for one in self.inner:
            yield from one.walk(depth + 1)


@dataclass
class Journey:
    """One packet's way, with those of the packets that came of it."""

    packets: dict[int, Followed]
    calls: list[Call]

    @property
    def first(self) -> Followed:
        """The packet with which it began."""
        return next(iter(self.packets.values()))

    @property
    def begin_ns(self) -> int:
        """When its first step was, on the host's monotonic clock."""
        return self.calls[0].step.at_ns

    @property
    def end_ns(self) -> int:
        """When its last step was over, as far as that is known."""
        return max(call.step.end_ns for call in self.calls)

    @property
    def is_of_network(self) -> bool:
        """Whether a network packet is in it; others are messages to netlink, and buffers that stayed empty."""
        return any(packet.best for packet in self.packets.values())

    def walk(self) -> Iterator[tuple[int, Call]]:
        """Return all calls as they began, each with its depth."""
        for call in self.calls:
            yield from call.walk()


def packet_at(step: Step) -> Packet:
    """Return the packet's first bytes as they are at a step."""
    return Packet(step.data, step.protocol)


def is_readable(step: Step) -> bool:
    """Whether the packet's bytes at a step begin with the header that its protocol says."""
    if step.protocol == ETH_P_ARP:
        return len(step.data) >= 28 and step.data[:2] == ARP_OF_ETHERNET
    version = VERSIONS.get(step.protocol)
    return version is not None and len(step.data) >= 20 and step.data[0] >> 4 == version


def journeys(trace: Trace) -> list[Journey]:
    """Return a trace's journeys, in the order in which they began."""
    packets: dict[int, Followed] = {}
    for kin in trace.kin:
        packet = packets.setdefault(kin.packet, Followed(kin.packet))
        if kin.role is Role.MERGED:
            packet.joined = kin
        else:
            packet.origin = kin  # a copy is first somebody's because of the packet, and then its copy
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
    """Put each call into the one that it happened in; return the outermost, each with its packet's number."""
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
    """Return what is different from the packet's last step, in words: length, mark, device, header fields."""
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
