"""The experiment without a person: the client measures the time for which the kernel was stopped."""

import itertools
import json
import re
import signal
import statistics
from typing import Any

import pytest

from skblab.host import process
from skblab.image.recipe import SERIES
from support import eventually_nothing, read_until, remains, skblab, start_skblab

NEAR_MS = 20.0  # of 2 s: a busy host takes 7 to stop and to go on


def result(*words: str) -> dict[str, Any]:
    done = skblab("ping", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


@pytest.mark.wall_clock
def test_the_client_measures_what_the_kernel_was_held() -> None:
    fields = result("--holds", "0.5,1,2")
    assert fields["kernel"].startswith("6.12.")
    assert fields["function"] == "icmp_rcv"
    assert len(fields["baseline_ms"]) == 3
    assert all(0 < rtt < 100 for rtt in fields["baseline_ms"])
    assert fields["staircase"] is None
    assert fields["lost"] == 0
    assert len(fields["stops"]) == 3
    for stop, asked_s in zip(fields["stops"], (0.5, 1, 2), strict=True):
        assert stop["icmp_seq"] == 1
        assert asked_s <= stop["held_s"] < asked_s + 0.1
        assert stop["rtt_ms"] == pytest.approx(stop["held_s"] * 1e3, abs=NEAR_MS)
        assert stop["packet"]["source"] == "192.168.10.254"
        assert stop["packet"]["type"] == "echo request"
        assert 0 < stop["packet"]["age_ms"] < 100
        assert stop["backtrace"][0]["function"] == "icmp_rcv"
        assert stop["backtrace"][0]["file"] == "net/ipv4/icmp.c"
        assert stop["backtrace"][0].keys() == {"function", "file", "line"}


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("function", ["ip_rcv", "icmp_echo"])
@pytest.mark.wall_clock
def test_at_other_functions_and_on_every_series(series: str, function: str) -> None:
    fields = result("--at", function, "--holds", "1", "--series", series)
    (stop,) = fields["stops"]
    assert fields["kernel"].startswith(f"{series}.")
    assert stop["backtrace"][0]["function"] == function
    assert stop["rtt_ms"] == pytest.approx(stop["held_s"] * 1e3, abs=NEAR_MS)
    assert fields["lost"] == 0


def test_pings_pile_up_behind_a_held_one_like_a_staircase() -> None:
    fields = result("--holds", "0.1", "--staircase")
    staircase = fields["staircase"]
    stairs = staircase["rtts_ms"]
    steps = [higher - lower for higher, lower in itertools.pairwise(stairs)]
    assert len(stairs) >= 8
    assert stairs[0] == pytest.approx(staircase["held_s"] * 1e3, abs=NEAR_MS)
    assert statistics.median(steps) == pytest.approx(staircase["interval_s"] * 1e3, abs=NEAR_MS)
    assert all(abs(step - staircase["interval_s"] * 1e3) < 4 * NEAR_MS for step in steps), steps
    assert staircase["enobufs"] > 0
    assert fields["lost"] == 0


@pytest.mark.wall_clock
def test_a_veth_pair_holds_as_well() -> None:
    fields = result("--holds", "0.3", "--link", "veth")
    assert fields["stops"][0]["rtt_ms"] == pytest.approx(300, abs=30)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.wall_clock
def test_the_systems_own_gdb_does_as_well(series: str) -> None:
    done = skblab("ping", "--holds", "0.5", "--json", "--series", series, SKBLAB_GDB="/usr/bin/gdb")
    assert done.returncode == 0, done.stderr
    (stop,) = json.loads(done.stdout)["stops"]
    assert stop["rtt_ms"] == pytest.approx(stop["held_s"] * 1e3, abs=50)  # an older gdb is slower to let go
    names = [frame["function"] for frame in stop["backtrace"]]
    assert names[0] == "icmp_rcv"
    assert names[-1] == "new_thread_handler"


def test_a_gdb_that_is_not_there() -> None:
    done = skblab("ping", "--holds", "0.5", SKBLAB_GDB="/none")
    assert done.returncode == 3
    assert "SKBLAB_GDB=/none: no such program" in done.stderr


@pytest.mark.wall_clock(alone=True)
def test_off_a_terminal_it_prints_a_table() -> None:
    done = skblab("ping", "--holds", "0.2")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "plain pings: " in done.stdout
    assert "192.168.10.254 > 192.168.10.1: ICMP echo request" in done.stdout
    assert "#0  icmp_rcv()  net/ipv4/icmp.c:" in done.stdout
    [(held, rtt)] = re.findall(r"^(\d+) ms +time=(\d+) ms ", done.stdout, re.MULTILINE)
    assert 200 <= int(held) <= int(rtt) <= int(held) + 10 < 300  # gdb reads the first packet's source lines meanwhile
    assert "lost: 0" in done.stdout


def test_plain_pings_need_no_gdb() -> None:
    fields = result("-c", "2")
    assert len(fields["baseline_ms"]) == 2
    assert fields["stops"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--holds", "x"], "'x' is not a list of seconds like 0.5,1,2"),
        (["--holds", ""], "is not a list of seconds"),
        (["--holds", "-1"], "not a time between"),
        (["--count", "0"], "not a number of pings"),
        (["--interval", "0"], "not a time between"),
        (["--series", "5.4"], "skblab image build --series 5.4"),
        (["--variant", "none"], "invalid choice"),
        (["--link", "lan,bridge"], "no such kind of link: 'lan,bridge'"),
        (["--image", "/none"], "no image at /none"),
        (["--name", "../x"], "not a name for a lab"),
        (["--at", ""], "no function"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_error(words: list[str], said: str) -> None:
    done = skblab("ping", *words)
    assert done.returncode in {2, 3}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", ["$ ", "vmlinux", "server.main", " -c 1 "])
def test_ctrl_c_at_any_moment_leaves_nothing(number: signal.Signals, after: str) -> None:
    before = remains()
    running = start_skblab("-v", "ping", "--holds", "60", "--json")
    assert running.stdout is not None
    read_until(running.stdout.fileno(), lambda said: after in said)
    running.send_signal(number)
    done = process.finish(running, timeout_s=20)
    assert done.returncode in {128 + number, -number}, done.stdout
    assert "Traceback" not in done.stdout
    assert eventually_nothing(before) == []


def test_help_shows_examples() -> None:
    for words in ([], ["ping"], ["image"], ["image", "build"], ["doctor"]):
        done = skblab(*words, "--help")
        assert done.returncode == 0
        assert "skblab" in done.stdout
    assert "examples:" in skblab("--help").stdout
