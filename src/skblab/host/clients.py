"""The output of the system's own clients, as data."""

import re
from dataclasses import dataclass, replace

SUMMARY = re.compile(r"rtt min/avg/max/mdev = ([\d.]+)/")
REPLY = re.compile(r"icmp_seq=(\d+) .*?time=([\d.]+) ms( \(DUP!\))?")


@dataclass(frozen=True)
class PingReply:
    """One reply as ping (iputils) reports it."""

    icmp_seq: int
    rtt_ms: float
    duplicate: bool


def parse_ping(output: str, *, exact: bool = False) -> list[PingReply]:
    """Return the replies in ping's output, in their order.

    :param exact: take an only reply's RTT from the summary, which has us; from 100 ms on, the reply's line has whole ms
        (iputils ping_common.c gather_statistics())
    """
    replies = [PingReply(int(seq), float(rtt), bool(dup)) for seq, rtt, dup in REPLY.findall(output)]
    if exact and len(replies) == 1 and (summary := SUMMARY.search(output)):
        return [replace(replies[0], rtt_ms=float(summary.group(1)))]
    return replies
