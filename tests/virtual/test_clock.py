"""Virtual time: the guest's clock is ours. It runs while somebody waits, and stands still between two waits."""

import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from skblab.errors import Timeout, UsageError
from skblab.event import Hit
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec
from support import cpu_ticks, skblab

WAITS_FOR_TIMES = """
import os, time
begin = os.times().elapsed
calls = 0
while os.times().elapsed == begin:
    calls += 1
print(calls, time.monotonic_ns())
"""
SPINS = """
import signal, sys
signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))
signal.setitimer(signal.ITIMER_REAL, 1.5)
while True:
    pass
"""
COMPUTES = """
import time
before = time.monotonic_ns()
for _ in range(10_000_000):
    pass
print((time.monotonic_ns() - before) / 1e9)
"""


@pytest.fixture(scope="module")
def lab(every_image: Image) -> Iterator[Lab]:
    with LabSpec(image=every_image, time="virtual", seed=7).start() as lab:
        yield lab


def test_a_minute_of_sleep_takes_no_minute(lab: Lab) -> None:
    began_s, before_s = time.monotonic(), lab.clock.now
    assert lab.run(["sleep", "60"]).returncode == 0
    assert 60 <= lab.clock.now - before_s < 60.1
    assert time.monotonic() - began_s < 10


def test_no_time_passes_while_nobody_waits(lab: Lab) -> None:
    lab.clock.settle()
    before_s, ticks = lab.clock.now, cpu_ticks(lab.guest.pid)
    wait([lab.guest.pidfd], 1)  # so long has what must not happen
    assert lab.clock.now == before_s
    assert cpu_ticks(lab.guest.pid) == ticks


def test_a_held_ping_takes_as_long_as_it_was_held(lab: Lab) -> None:
    with lab.hold("icmp_rcv", "icmp") as held:
        client = lab.popen(["ping", "-n", "-c1", "-W1000", "guest"], stdout=subprocess.PIPE)
        (packet,) = held.take()
        arrived_s = lab.clock.now
        lab.clock.advance("3.1s")
        assert lab.clock.now == pytest.approx(arrived_s + 3.1, abs=1e-6)
        packet.release()
        said, _ = client.communicate()
    before_s = arrived_s - packet.held_at_ns / 1e9  # the guest rested: some system calls, of half a microsecond each
    assert 0 <= before_s < 5e-6
    assert packet.age_s == pytest.approx(before_s + 3.1, abs=2e-6)
    rtt = re.search(rb"rtt min/avg/max/mdev = ([\d.]+)/", said)
    assert rtt, said
    assert float(rtt.group(1)) == pytest.approx(packet.age_s * 1e3, abs=0.002)


def test_a_delay_is_exact(lab: Lab) -> None:
    with lab.rule("icmp_rcv = delay 300ms @2 if icmp[icmptype] == icmp-echo"):  # the reply enters the host's
        said = lab.run(["ping", "-n", "-c3", "-i0.4", "guest"]).stdout
    times = [float(rtt) for rtt in re.findall(r"time=([\d.]+) ms", said)]
    assert times == [pytest.approx(0, abs=0.02), 300, pytest.approx(0, abs=0.02)]


def test_who_waits_for_a_coarse_clock_gets_on(lab: Lab) -> None:
    assert int(lab.run(["python3", "-c", WAITS_FOR_TIMES], timeout_s=10).stdout.split()[0]) > 100


def test_computing_takes_no_time(lab: Lab) -> None:
    assert float(lab.run(["python3", "-c", COMPUTES], timeout_s=10).stdout) < 1e-4


@pytest.mark.slow
def test_one_who_computes_for_ever_is_moved_on(lab: Lab) -> None:
    before_s = lab.clock.now
    assert lab.run(["python3", "-c", SPINS]).returncode == 7
    assert 1.5 <= lab.clock.now - before_s < 4


def test_a_wait_ends_at_its_moment(lab: Lab) -> None:
    with lab.hold("icmp_rcv") as held:
        before_s = lab.clock.now
        with pytest.raises(Timeout, match="0 of 1 packets"):
            held.take(timeout_s=5)
        assert lab.clock.now == pytest.approx(before_s + 5, abs=1e-3)
    with pytest.raises(subprocess.TimeoutExpired):
        lab.run(["sleep", "100"], timeout_s=7)


def test_time_that_runs_away(image: Image) -> None:
    with LabSpec(image=image, time="virtual", most_s=30).start() as lab:
        with pytest.raises(Timeout, match="30 s have passed in the guest") as caught:
            lab.run(["sleep", "1000"])
        assert re.match(r"sleep \(pid \d+\) waits in clock_nanosleep\(2\)", caught.value.found)
        assert lab.clock.now == pytest.approx(31, abs=0.1)
        lab.clock.advance(970)
        assert "sleep" not in lab.guest.run(["ps", "-e"]).stdout


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("while True: pass", r"python3 \(pid \d+\) computes"),
        ("import time\nwhile True: time.sleep(0.001)", r"python3 \(pid \d+\) "),
    ],
)
def test_a_guest_that_takes_too_long_here(every_image: Image, program: str, says: str) -> None:
    with LabSpec(image=every_image, time="virtual", most_s=1e6, timeout_s=1.5).start() as lab:
        too_late = pytest.raises(Timeout, match=r"has run for 1\.5 s of this machine's time")
        with too_late as caught, lab.rule("icmp_rcv = drop"):  # which ends, too
            lab.run(["python3", "-c", program])
        assert re.match(says, caught.value.found)
        with pytest.raises(Timeout, match=r"has run for 1\.5 s"):  # altogether
            lab.clock.advance(1)


def test_the_limits_are_for_virtual_time() -> None:
    for option in ("--timeout", "--most"):
        done = skblab("run", option, "1m", "--", "true")
        assert done.returncode == 2
        assert "is for virtual time\n  hint: " in done.stderr
    assert "not a time: '1x'" in skblab("run", "--timeout", "1x", "--", "true").stderr


def test_a_callback_cannot_wait(lab: Lab) -> None:
    refused: list[UsageError] = []

    def report(_: Hit) -> None:
        with pytest.raises(UsageError, match="a callback cannot wait") as caught:
            lab.clock.advance(1)
        refused.append(caught.value)

    with lab.rule("icmp_rcv = trace", report):
        lab.run(["ping", "-c1", "guest"])
    assert len(refused) == 2  # the request, and the reply


def test_steps(lab: Lab) -> None:
    sleeper = lab.popen(["sleep", "2.5"])
    begin_s = lab.clock.now
    while sleeper.poll() is None:
        lab.clock.step()
    assert lab.clock.now - begin_s == pytest.approx(2.5, abs=0.02)
    assert lab.clock.run_until(lab.clock.now + 1)
    assert lab.clock.now - begin_s == pytest.approx(3.5, abs=0.02)


def test_much_output_is_all_there(lab: Lab) -> None:
    """A pipe has room for 64 KiB: its writer waits in the guest until the reader has made room, and no time passes."""
    before_s = lab.clock.now
    said = lab.guest.run(["head", "-c", "1000000", "/dev/zero"], text=False).stdout
    assert len(said) == 1_000_000
    assert lab.clock.now - before_s < 0.1


def test_both_names_resolve_on_both_sides(lab: Lab) -> None:
    assert "1 received" in lab.run(["ping", "-c1", "guest"]).stdout
    assert "1 received" in lab.guest.run(["ping", "-c1", "host"]).stdout
    assert "1 received" in lab.run(["ping", "-6", "-c1", "guest"]).stdout
