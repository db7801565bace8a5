"""At full rate, with rules and traces that come and go: nothing grows, in the guest or here.

Some seconds in every run of the tests, an hour by ``make soak``.
"""

import contextlib
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule

SOAK_S = float(os.environ.get("SKBLAB_SOAK_S", "15"))
WARM_UP = 0.3  # of that time: caches fill
LOOK_S = min(60.0, SOAK_S / 10)
FLOODS = (["ping", "-q", "-f", "192.168.10.1"], ["ping", "-6", "-q", "-f", "-s", "1000", "fd00:10::1"])
RULES = (
    "icmp_rcv = trace @every 100",
    "icmp_rcv = delay 2ms @every 50",
    "icmp_rcv = edit ip.ttl=9 @every 1000",
    "ip_rcv = duplicate 2 @every 100 if icmp",
    "ip_output = drop @every 100 if icmp",
    "icmpv6_rcv = hold 5 release reverse @every 500",
    "ip6_output = delay 500us +-500us @every 100",
    "__dev_queue_xmit = accept",
)
MOST_RULES = 3  # in force at once
RARE = "icmp[icmptype] == icmp-echo and icmp[7] == 0"  # one in 256 by its sequence number
# What may come and go without being a leak.
SLACK = {
    "guest_available_kib": 6 << 10,
    "guest_slab_kib": 3 << 10,
    "kernel_kib": 2 << 10,
    "python_kib": 32 << 10,  # the largest trace that is read
    "init_kib": 1 << 10,
    "descriptors": 0,
    "init_descriptors": 0,
    "threads": 0,
}
TRANSMITTED = re.compile(r"^(\d+) packets transmitted", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What is used at a moment when no rule is in force."""

    guest_available_kib: int
    guest_slab_kib: int
    kernel_kib: int
    python_kib: int
    init_kib: int
    descriptors: int
    init_descriptors: int
    threads: int


@pytest.fixture
def lab(image: Image) -> Iterator[Lab]:
    with Lab(image=image, root="host", memory_mib=256) as lab:
        yield lab


def used(lab: Lab) -> Usage:
    meminfo = lab.guest.run(["cat", "/proc/meminfo"], timeout_s=60).stdout
    here, init = os.getpid(), lab.namespaces.pid
    return Usage(
        guest_available_kib=kib_of("MemAvailable", meminfo),
        guest_slab_kib=kib_of("Slab", meminfo),
        kernel_kib=own_kib(lab.guest.pid),
        python_kib=own_kib(here),
        init_kib=own_kib(init),
        descriptors=entries("/proc/self/fd"),
        init_descriptors=entries(f"/proc/{init}/fd"),
        threads=entries("/proc/self/task"),
    )


def entries(directory: str) -> int:
    return len(list(Path(directory).iterdir()))


def kib_of(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, text
    return int(found.group(1))


def own_kib(pid: int) -> int:
    """Return a process's memory without what it shares: the rings, and the guest's memory, seen from inside."""
    return kib_of("RssAnon", Path(f"/proc/{pid}/status").read_text())


def some_rules(lab: Lab, chance: random.Random) -> tuple[int, int]:
    """Let some rules, and at times a trace, be in force for a moment; return how many packets and steps they took."""
    with contextlib.ExitStack() as stack:
        rules = [
            stack.enter_context(contextlib.closing(lab.rule(Rule.parse(one))))
            for one in chance.sample(RULES, chance.randint(1, MOST_RULES))
        ]
        tracer = stack.enter_context(lab.trace(filter=RARE)) if chance.random() < 0.2 else None
        select.select([], [], [], chance.uniform(0.02, 0.2))
    return sum(one.armed.counts.arrived for one in rules), len(tracer.trace().steps) if tracer else 0


def transmitted(flood: process.Client) -> int:
    """End a flood; return how many packets it has sent."""
    flood.send_signal(signal.SIGINT)
    said = process.finish(flood, timeout_s=60).stdout
    found = TRANSMITTED.search(said)
    assert found, said
    return int(found.group(1))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows(lab: Lab) -> None:
    seed = int(os.environ.get("SKBLAB_SOAK_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    floods = [lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for argv in FLOODS]
    began_s = time.monotonic()
    looks: list[tuple[float, Usage]] = []
    rounds = taken = steps = 0
    while (now_s := time.monotonic() - began_s) < SOAK_S:
        if now_s >= LOOK_S * (len(looks) + 1):
            looks.append((now_s, used(lab)))
        packets, passed = some_rules(lab, chance)
        taken, steps = taken + packets, steps + passed
        rounds += 1
        assert all(flood.poll() is None for flood in floods), seed
    looks.append((now_s, used(lab)))
    sent = sum(map(transmitted, floods))
    first = next(usage for at_s, usage in looks if at_s >= WARM_UP * SOAK_S)
    last = looks[-1][1]
    growth = {name: value - getattr(first, name) for name, value in asdict(last).items()}
    growth["guest_available_kib"] = -growth["guest_available_kib"]
    sys.stdout.write(
        f"seed {seed}: {SOAK_S:g} s, {sent} pings sent, {taken} packets taken by {rounds} sets of rules, "
        f"{steps} steps traced; {last}; grown by {growth}\n"
    )
    assert 2 * MOST_RULES * sent > taken > rounds > 0  # a ping and its reply, at each rule
    assert sent > rounds
    assert steps
    assert not {name: grown for name, grown in growth.items() if grown > SLACK[name]}, (seed, growth, looks)
