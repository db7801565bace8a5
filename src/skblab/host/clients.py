"""The output of the system's own clients, as data."""

import re
from dataclasses import dataclass, replace

SUMMARY = re.compile(r"rtt min/avg/max/mdev = ([\d.]+)/")
REPLY = re.compile(r"icmp_seq=(\d+) .*?time=([\d.]+) ms( \(DUP!\))?")


@dataclass(frozen=True, slots=True)
class PingReply:
    """One reply as ping (iputils) reports it."""

    icmp_seq: int
    rtt_ms: float
    duplicate: bool


def parse_ping(output: str) -> list[PingReply]:
    """Return the replies in ping's output, in their order.

    From 100 ms on, a reply's line has whole ms (iputils ping_common.c gather_statistics()); the summary has us.
    """
    replies = [PingReply(int(seq), float(rtt), bool(dup)) for seq, rtt, dup in REPLY.findall(output)]
    if len(replies) == 1 and (exact := SUMMARY.search(output)):
        return [replace(replies[0], rtt_ms=float(exact.group(1)))]
    return replies
