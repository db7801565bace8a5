"""The output of the system's own clients, as data."""

import re
from dataclasses import dataclass

REPLY = re.compile(r"icmp_seq=(\d+) .*?time=([\d.]+) ms( \(DUP!\))?")


@dataclass(frozen=True, slots=True)
class PingReply:
    """One reply as ping (iputils) reports it."""

    icmp_seq: int
    rtt_ms: float
    duplicate: bool


def parse_ping(output: str) -> list[PingReply]:
    """Return the replies in ping's output, in their order."""
    return [PingReply(int(seq), float(rtt), bool(dup)) for seq, rtt, dup in REPLY.findall(output)]
