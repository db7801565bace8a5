"""Many labs in one process, and many descriptors beside them."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab

LABS = 24
UNTIL_REFUSED = """
import contextlib, sys
from skblab import Lab
from skblab.errors import MissingPrerequisite
with contextlib.ExitStack() as stack:
    for number in range(20):
        try:
            stack.enter_context(Lab())
        except MissingPrerequisite as error:
            print(number, error)
            break
    else:
        print("all")
"""


@pytest.mark.usefixtures("many_descriptors")
def test_everything_works_above_1024_descriptors(image: Image) -> None:
    with Lab(f"above-{os.getpid()}", image=image, root="host") as lab:
        assert lab.guest.pidfd > 1024
        lab.keep()
    with Lab.join(lab.name) as lab:
        with lab.hold("icmp_rcv") as held:
            ping = lab.popen(["ping", "-n", "-c", "1", "guest"], stdout=-1)
            (packet,) = held.take(1)
            packet.release()
            assert parse_ping(process.finish(ping, timeout_s=20).stdout)
        assert lab.guest.run(["cat"], input="through the guest", timeout_s=20).stdout == "through the guest"
        assert lab.guest.mconsole.version().startswith("Linux")
        with lab.debugger() as gdb:
            assert gdb.evaluate("1 + 1") == "2"
            gdb.resume()
        lab.end()


def test_many_labs_at_once(image: Image) -> None:
    labs = [Lab(f"many-{os.getpid()}-{number}", image=image) for number in range(LABS)]
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        list(pool.map(stack.enter_context, labs))
        pings = pool.map(lambda lab: lab.run(["ping", "-c", "1", "-W", "20", "guest"], timeout_s=60), labs)
        assert [done.returncode for done in pings] == [0] * LABS


@pytest.mark.parametrize(("limits", "says"), [("48:4096", "all"), ("100:100", "may not have so many files open")])
def test_a_limit_of_descriptors_is_raised_or_told(limits: str, says: str) -> None:
    done = process.run(["prlimit", f"--nofile={limits}", sys.executable, "-c", UNTIL_REFUSED], timeout_s=100)
    assert says in done.stdout, done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
