"""What the system's own clients print, as data."""

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
    """Return the replies of a ping's output, in the order in which they came."""
    return [PingReply(int(seq), float(rtt), bool(dup)) for seq, rtt, dup in REPLY.findall(output)]
