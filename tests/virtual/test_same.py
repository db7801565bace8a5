"""Virtual time: a seed and an image determine a run, to the byte."""

from pathlib import Path

import pytest

from skblab.image.image import Image
from skblab.spec import LabSpec
from support import skblab

SERVE = "python3 -m http.server 80"
FOUR_SYNS = "tcp_v4_rcv = drop @1-4 if tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
WHAT_DIFFERS = """
date +%s.%N; cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /proc/uptime
head -c 16 /dev/urandom | od -tx1; echo $$ $RANDOM; cat /sys/class/net/*/address; ls -U /etc | head -5
python3 -c 'import random; print(random.random(), hash("a"), id(object()))'
"""


def connects_s(image: Image, seed: int = 0) -> str:
    spec = LabSpec(image=image, time="virtual", seed=seed, commands=[SERVE])
    with spec.start() as lab, lab.rule(FOUR_SYNS) as rule:
        done = lab.run(["curl", "-s", "-o/dev/null", "-w", "%{time_connect} %{local_port}", "http://guest/"])
        assert rule.counts.dropped == 4
        return done.stdout


def test_four_syns_lost(every_image: Image) -> None:
    """6.12 sends the first SYNs a second apart (net/ipv4/tcp_timer.c tcp_syn_linear_timeouts), 6.1 doubles at once.

    A timer of 8 s ends up to 0.64 s late at 100 ticks a second (kernel/time/timer.c, the table at its top).
    """
    first = connects_s(every_image)
    doubles = every_image.name.startswith("6.1-")
    assert float(first.split()[0]) == (pytest.approx(15.45, abs=0.45) if doubles else pytest.approx(4.1, abs=0.3))
    assert connects_s(every_image) == first
    assert connects_s(every_image, seed=1) != first


def test_what_differs_between_two_runs_does_not(image: Image) -> None:
    said = []
    for seed in (7, 7, 8):
        with LabSpec(image=image, time="virtual", seed=seed).start() as lab:
            said.append(lab.run(["bash", "-c", WHAT_DIFFERS]).stdout)
    assert said[0] == said[1]
    for of_one, of_other in zip(said[0].splitlines()[1:3], said[2].splitlines()[1:3], strict=True):
        assert of_one != of_other


def trace(path: Path, *options: str) -> bytes:
    done = skblab("trace", "--time", "virtual", *options, "-o", str(path), "tcp", "--root", "host", "-g", SERVE,
                  "--", "curl", "-s", "http://guest/etc/hostname")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


def test_two_trace_files_are_equal(tmp_path: Path) -> None:
    first = trace(tmp_path / "a.skblab", "--seed", "7")
    assert trace(tmp_path / "b.skblab", "--seed", "7") == first
    assert trace(tmp_path / "c.skblab", "--seed", "8") != first


def test_a_rule_at_random_without_a_seed(image: Image) -> None:
    said = []
    for seed in (7, 7, 8):
        with LabSpec(image=image, time="virtual", seed=seed).start() as lab, lab.rule("icmp_rcv = drop @random 50%"):
            said.append(lab.run(["ping", "-c20", "-i0.1", "-W1", "guest"]).stdout)
    assert said[0] == said[1] != said[2]


def test_nobody_answers(image: Image) -> None:
    """TCP gives up after its last retransmission."""
    with LabSpec(image=image, time="virtual").start() as lab:
        before_s = lab.clock.now
        assert lab.run(["curl", "-s", "http://192.168.10.99/"]).returncode != 0
        assert lab.clock.now - before_s < 10  # no neighbour: an ICMP error comes after three ARP requests
        lab.guest.run(["ip", "neigh", "add", "192.168.10.98", "lladdr", "02:00:00:00:00:01", "dev", "vec0"], check=True)
        assert lab.guest.run(["curl", "-s", "http://192.168.10.98/"]).returncode == 28
        assert 100 < lab.clock.now - before_s < 160
