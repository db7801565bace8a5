"""Measure the guest's programs, run by ptrace and by seccomp, by turns; on a kernel that has both."""

import time
from collections.abc import Iterator

from numbers_table import Number, stopwatch, summary

from skblab.image.image import Image
from skblab.image.recipe import USERSPACES
from skblab.lab import Lab
from skblab.parts import SECCOMPS_OWN

ROUNDS = 10
TRUES = 100
LOOP = f"i=0; while [ $i -lt {TRUES} ]; do /bin/true; i=$((i+1)); done"
SERVER = "python3 -m http.server 80 --directory /usr/share"


def measure(image: Image) -> Iterator[Number]:
    """Fork and execute; then a web server and one request: from the server's start to curl's end."""
    ways = USERSPACES if image.functions.lookup(SECCOMPS_OWN) else USERSPACES[:1]
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for way in ways:
            with Lab(image=image, root="host", memory_mib=128, userspace=way) as lab:
                with stopwatch(times.setdefault((f"{TRUES} times /bin/true", way), [])):
                    lab.guest.run(["sh", "-c", LOOP], timeout_s=60)
                with stopwatch(times.setdefault(("python's imports of http.server", way), [])):
                    lab.guest.run(["python3", "-c", "import http.server"], timeout_s=60)
            begun_s = time.perf_counter()
            with Lab(image=image, root="host", memory_mib=128, userspace=way, commands=[SERVER]) as lab:
                done = lab.run(["curl", "-4", "-sf", "-o", "/dev/null", "http://guest/"], timeout_s=60)
                assert done.returncode == 0, done.stderr
                took_ms = (time.perf_counter() - begun_s) * 1e3
            times.setdefault(("a lab, http.server in it, and curl's answer", way), []).append(took_ms)
    for (what, way), values in times.items():
        yield summary(f"{what}, by {way}", values, "ms")
