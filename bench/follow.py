"""Measure what following packets costs: a ping flood with every function armed that takes a packet, and with none."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from numbers_table import Number, single, summary

from agent import calls_ns
from skblab.agent import abi
from skblab.image.image import Image
from skblab.lab import Lab

GUEST = "192.168.10.1"
FLOOD = 100_000
ROUNDS = 5
RING_BYTES = 64 << 20


def flood_s(lab: Lab) -> float:
    """Return how long a flood of pings takes, in s."""
    begun_s = time.perf_counter()
    done = lab.run(["ping", "-q", "-f", "-c", str(FLOOD), GUEST], timeout_s=120)
    assert f"{FLOOD} received" in done.stdout, done.stdout
    return time.perf_counter() - begun_s


def step_cost(lab: Lab) -> Iterator[Number]:
    """Measure what following adds to a call."""
    bare = statistics.median(calls_ns(lab))
    for what, returns, target in (("a followed call", False, 40), ("the same, with its return", True, 0)):
        probe = abi.TraceProbe(0, lab.agent.channel.measured_address, 0, returns=returns)
        lab.agent.follower.follow(abi.Follow(), [probe], len)
        try:
            yield summary(what, [one - bare for one in calls_ns(lab)], "ns", target)
        finally:
            lab.agent.follower.unfollow()


def measure(image: Image) -> Iterator[Number]:
    """Flood in turn: with nothing armed, followed, followed without returns."""
    plain_s: list[float] = []
    followed_s: list[float] = []
    flat_s: list[float] = []
    lost = size_bytes = 0
    with Lab(image=image, steps_bytes=RING_BYTES) as lab, tempfile.TemporaryDirectory() as scratch:
        yield from step_cost(lab)
        flood_s(lab)
        for number in range(ROUNDS):
            plain_s.append(flood_s(lab))
            for returns, times in ((True, followed_s), (False, flat_s)):
                path = Path(scratch, f"{number}-{returns}")
                with lab.trace(filter="icmp", returns=returns, to=path) as tracer:
                    times.append(flood_s(lab))
                    tracer.end()
                    lost += tracer.losses()["lost"]
                size_bytes = max(size_bytes, path.stat().st_size)
                os.unlink(path)  # noqa: PTH108 - of 450 MB
    plain = statistics.median(plain_s)
    yield single("a ping of a flood, nothing armed", plain / FLOOD * 1e6, "us")
    yield single("the same, followed through every function", statistics.median(followed_s) / FLOOD * 1e6, "us")
    yield single("the same, without returns", statistics.median(flat_s) / FLOOD * 1e6, "us")
    yield single("a followed ping's bytes on file", size_bytes / FLOOD, "bytes")
    yield single("records lost in all these floods", lost, "")
