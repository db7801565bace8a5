"""What a run reports: frozen records for people and programs, none of them a record of the agent's."""

from dataclasses import dataclass

from skblab.packet import Packet


@dataclass(frozen=True)
class Hit:
    """A packet met a rule; or, of a function without one, its call did.

    :param at_ns: when, on the host's CLOCK_MONOTONIC
    :param function: the kernel's function that the rule is at
    :param occurrence: which of the packets that the filter took, from 1
    :param verdict: what was done with the packet, in words
    :param skb: the address of its struct sk_buff in the guest; 0: there is no packet to look at
    :param length_bytes: skb->len
    :param caller: where there is no packet, the function that called this one, ``arp_create()``, or the return address
    """

    at_ns: int
    function: str
    occurrence: int
    packet: Packet
    verdict: str
    skb: int
    length_bytes: int
    caller: str = ""

    def __str__(self) -> str:
        return f"{self.function} #{self.occurrence}: {self.verdict}: {self.summary()}"

    def summary(self) -> str:
        """Return the packet in one line; or, without one, the caller."""
        if self.skb:
            return self.packet.summary()
        return f"called by {self.caller}" if self.caller else "no packet to look at"


@dataclass(frozen=True)
class Stop:
    """The whole kernel is stopped by gdb, at a rule's function.

    :param at_ns: since when, on the host's CLOCK_MONOTONIC
    :param frames: the backtrace, innermost first, without inlined calls: function, file and line
    """

    at_ns: int
    packet: Packet | None
    frames: tuple[tuple[str, str, int], ...]
