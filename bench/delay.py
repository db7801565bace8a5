"""Measure how late a delayed packet is: by the agent, by netem and by NFQUEUE, on the same kind of link."""

import contextlib
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from numbers_table import Number

from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab

GUEST = "192.168.10.1"
WANTED_MS = 5
PACKETS = 200
QUEUE_RULES = (
    "add table ip q; add chain ip q in { type filter hook input priority 0; }; "
    "add rule ip q in ip protocol icmp queue num 0"
)
NFQUEUE = f"{Path(sys.executable).resolve()} {Path(__file__).with_name('nfqueue.py')}"


def round_trips_us(lab: Lab) -> list[float]:
    """Return ping's RTTs, in us; ping prints them to 10 us below 10 ms, and does not wait for this process's reader."""
    done = lab.run(["ping", "-n", "-c", str(PACKETS), "-i", "0.02", GUEST], timeout_s=60)
    return [reply.rtt_ms * 1e3 for reply in parse_ping(done.stdout)]


def late(what: str, delayed: list[float], plain: list[float], target: float = 0.0) -> Number:
    """Return the median and the 99th percentile of the excess over the wanted delay, in us."""
    base = statistics.median(plain) + WANTED_MS * 1e3
    more = sorted(one - base for one in delayed)
    return Number(what, round(statistics.median(more), 1), round(more[len(more) * 99 // 100], 1), "us", target)


def measure(image: Image) -> Iterator[Number]:
    """Measure all three."""
    with Lab(image=image) as lab:
        plain = round_trips_us(lab)
        with contextlib.closing(lab.rule(f"icmp_rcv = delay {WANTED_MS}ms")):
            ours = round_trips_us(lab)
        yield late(f"delay {WANTED_MS}ms: RTT less what was asked, less a plain RTT (worst: p99)", ours, plain, 50)
    for what, command in (
        ("the same by netem in the guest", f"tc qdisc add dev vec0 root netem delay {WANTED_MS}ms && exec iperf3 -s"),
        ("the same by NFQUEUE and Python in the guest", f"nft '{QUEUE_RULES}' && exec {NFQUEUE} {WANTED_MS / 1e3}"),
    ):
        with Lab(image=image, root="host", commands=[command], memory_mib=256) as lab:
            yield late(what, round_trips_us(lab), plain)
