"""Measure virtual time: virtual seconds in a real one, and what a run from boot to answer takes."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from numbers_table import Number, stopwatch, summary

from skblab.image.image import Image
from skblab.spec import LabSpec

ROUNDS = 10
CELLS = 40
NOBODY = "192.168.10.98"
NEIGHBOUR = ["ip", "neigh", "add", NOBODY, "lladdr", "02:00:00:00:00:01", "dev", "vec0"]
SERVER = "python3 -m http.server 80"


def measure(image: Image) -> Iterator[Number]:
    """TCP to a neighbour that never answers; a held ping; labs with a web server and one request."""
    rates: list[float] = []
    pings: list[float] = []
    runs: list[float] = []
    for seed in range(ROUNDS):
        with LabSpec(image=image, time="virtual", seed=seed).start() as lab:
            lab.guest.run(NEIGHBOUR, check=True)
            before_s, began_s = lab.clock.now, time.perf_counter()
            lab.guest.run(["curl", "-s", f"http://{NOBODY}/"])
            rates.append((lab.clock.now - before_s) / (time.perf_counter() - began_s))
            with stopwatch(pings):
                lab.run(["ping", "-c", "1", "guest"])
        with stopwatch(runs):
            cell((image, seed))
    yield summary("virtual seconds in a real one, while TCP gives up", rates, "s/s")
    yield summary("virtual time: a ping, from its start to its end", pings, "ms")
    yield summary("virtual time: a lab, http.server in it, and curl's answer", runs, "ms")
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(cell, [(image, 0)] * workers))
        began_s = time.perf_counter()
        list(pool.map(cell, [(image, seed) for seed in range(CELLS)]))
        rate = CELLS / (time.perf_counter() - began_s)
    yield summary(f"virtual time: such labs a second, on {workers} processors", [rate], "1/s")


def cell(of: tuple[Image, int]) -> None:
    """Boot, serve, ask, end."""
    image, seed = of
    with LabSpec(image=image, time="virtual", seed=seed, commands=[SERVER]).start() as lab:
        done = lab.run(["curl", "-sf", "http://guest/etc/services"])
        assert done.returncode == 0, done.stderr
