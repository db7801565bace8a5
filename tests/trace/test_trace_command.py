"""``skblab trace``, ``show`` and ``probes``, as a person types them."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.cli.show import SHOWN
from skblab.host import process
from support import Person, read_until, skblab, start_skblab

PING = ("--", "ping", "-n", "-c", "1", "guest")


def test_the_tree(tmp_path: Path) -> None:
    done = skblab("trace", "-o", str(tmp_path / "run.skblab"), "icmp", *PING)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    request = next(line for line in lines if line.startswith("packet") and "echo request" in line)
    assert any("echo reply" in line and f"from packet {request.split()[1]}" in line for line in lines)
    depth = {line.split("()")[0].split()[-1]: line.index(line.split("()")[0].split()[-1])
             for line in lines if "()" in line}  # fmt: skip
    assert depth["ip_rcv"] < depth["icmp_rcv"] < depth["icmp_reply"] < depth["ip_output"] < depth["dev_hard_start_xmit"]
    assert done.stderr.splitlines()[-1] == "events lost: 0"
    shown = skblab("show", str(tmp_path / "run.skblab"))
    assert shown.stdout in done.stdout


@pytest.mark.wall_clock
def test_a_long_trace_says_how_far_it_is(tmp_path: Path) -> None:
    """On a terminal; of a trace that is read at once, nothing is said."""
    short, long = tmp_path / "short.skblab", tmp_path / "long.skblab"
    assert skblab("trace", "-q", "-o", str(short), "icmp", *PING).returncode == 0
    flood = ("--", "ping", "-q", "-f", "-c", "2000", "guest")
    assert skblab("trace", "-q", "-o", str(long), *flood).returncode == 0
    person = Person("show", str(long))
    said = person.reads("events lost: 0")
    assert re.search(r"  \d+ s  \d+%  reading /", said)
    assert person.program.wait(10) == 0
    person = Person("diff", str(short), str(short))
    assert "reading" not in person.reads("the journeys are the same")
    assert person.program.wait(10) == 0


def test_a_packet_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "run.skblab")
    done = skblab("trace", "-o", path, "--packet", "9999", "icmp", *PING)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-2:] == ["there is no packet 9999", "events lost: 0"]
    for how in ("--tree", "--table"):
        done = skblab("show", how, "--packet", "1", "--packet", "9999", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"there is no packet 9999 in {path}" in done.stderr


def test_the_exit_status_is_the_commands() -> None:
    assert skblab("trace", "-q", "icmp", "--", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("how", ["--tree", "--table"])
def test_a_journey_is_shown_when_it_is_over_and_not_later(how: str) -> None:
    running = start_skblab("trace", how, "icmp", "--", "ping", "-n", "-i0.3", "guest")
    assert running.stdout
    read = read_until(running.stdout.fileno(), lambda said: said.count("skb_release_data") >= 6)
    assert "ping statistics" not in read
    running.send_signal(signal.SIGINT)
    done = process.finish(running, timeout_s=20)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "events lost: 0"
    said = read + done.stdout
    sent = int(said.split(" packets transmitted")[0].rpartition("\n")[2])
    assert said.count(" icmp_rcv") == sent
    assert said.count("function\n") == (how == "--table")


@pytest.fixture
def lab_that_is_up() -> Iterator[str]:
    done = skblab("up", "traced")
    assert done.returncode == 0, done.stderr
    yield "traced"
    assert skblab("down", "traced").returncode == 0


def test_what_goes_through_a_lab_is_followed_until_ctrl_c(lab_that_is_up: str) -> None:
    running = start_skblab("trace", "--lab", lab_that_is_up, "-p", "icmp_*", "-r", "icmp_rcv = delay 20ms", "icmp")
    assert running.stdout
    read_until(running.stdout.fileno(), lambda said: "Ctrl-C ends the trace" in said)
    assert skblab("exec", lab_that_is_up, "--", "ping", "-n", "-c1", "guest").returncode == 0
    read = read_until(running.stdout.fileno(), lambda said: "icmp_reply()" in said)
    assert "icmp_rcv()  delay 20ms: released after 2" in read
    running.send_signal(signal.SIGINT)
    done = process.finish(running, timeout_s=20)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "events lost: 0"
    assert "icmp_rcv" not in done.stdout


def test_a_flood_is_shown_as_far_as_wanted() -> None:
    done = skblab("trace", "-p", "icmp_*", "icmp", "--", "ping", "-n", "-q", "-f", "-c2000", "guest", timeout_s=60)
    assert "2000 received" in done.stdout
    assert done.stdout.count(" icmp_rcv()") == SHOWN
    assert done.stderr.splitlines()[-2:] == [
        f"{2000 - SHOWN} more journeys: --all shows them, --packet N the one of a packet",
        "events lost: 0",
    ]


def test_json_lines_of_one_packet(tmp_path: Path) -> None:
    path = str(tmp_path / "run.skblab")
    assert skblab("trace", "-q", "-o", path, "icmp", "--", "ping", "-n", "-c3", "-i0.1", "guest").returncode == 0
    said = [json.loads(line) for line in skblab("show", "--json", path).stdout.splitlines()]
    packet = said[-2]["packet"]
    ours = [json.loads(line) for line in skblab("show", "--json", "--packet", str(packet), path).stdout.splitlines()]
    packets = {one["packet"] for one in ours if one["type"] == "step"}
    assert packet in packets
    assert [ours[0], ours[-1]] == [said[0], said[-1]]
    assert ours[1:-1] == [one for one in said[1:-1] if one["packet"] in packets]
    assert len(ours) < len(said) / 2


@pytest.mark.wall_clock
def test_what_rules_do_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "run.skblab")
    rules = ("-r", "icmp_rcv = delay 60ms @2", "-r", "ip_rcv = drop @3 if icmp", "-o", path)
    done = skblab("trace", *rules, "icmp", "--", "ping", "-n", "-c3", "-i0.2", "-W1", "guest")
    assert "2 received" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "delay 60ms" in line or "drop: " in line or ")  drop" in line]
    assert "icmp_rcv()  delay 60ms: released after 60." in lines[0]
    assert "ip_rcv()  drop" in lines[1]
    said = [json.loads(line) for line in skblab("show", "--json", path).stdout.splitlines()]
    verdicts = [(one["function"], one["verdict"]) for one in said if one["type"] == "verdict"]
    assert verdicts == [("icmp_rcv", "delay 60ms"), ("icmp_rcv", "released"), ("ip_rcv", "drop")]
    assert next(one["held_ns"] for one in said if "held_ns" in one) / 1e6 == pytest.approx(60, abs=1)
    (late,) = [one for one in said if one["type"] == "step" and one.get("verdict", "").startswith("delay")]
    assert late["function"] == "icmp_rcv"


def test_arp_and_ethernet() -> None:
    """A filter that speaks of the link takes packets at functions that have not read their headers yet."""
    done = skblab("trace", "arp or icmp", *PING)
    assert "ARP, Request who-has 192.168.10.1 tell 192.168.10.254, length 28" in done.stdout
    assert " arp_process()" in done.stdout
    assert " icmp_rcv()" in done.stdout
    done = skblab("run", "-r", "arp_rcv = trace if arp host 192.168.10.1", "-r", "icmp_rcv = trace if arp", *PING)
    assert "arp_rcv = trace if arp host 192.168.10.1: arrived 1" in done.stderr
    assert "icmp_rcv = trace if arp: arrived 0" in done.stderr
    said = skblab("run", "-r", "ip_rcv = trace if ether[6:4] == 0 and icmp", "-r", "ip_rcv = trace if ether[0] & 1 = 0",
                  *PING).stderr  # fmt: skip
    assert "icmp: arrived 0" in said
    assert "= 0: arrived 1" in said
    assert "vlan in a filter" in skblab("run", "-r", "ip_rcv = trace if vlan and arp", *PING).stderr


def test_the_table_and_json(tmp_path: Path) -> None:
    table = skblab("trace", "--table", "-p", "icmp_*", "icmp", *PING)
    assert "icmp_rcv" in table.stdout
    assert "192.168.10.254 > 192.168.10.1" in table.stdout
    words = ("--field", "skb->dev->name", "-p", "icmp_*", "icmp")
    shouts = ("--", "sh", "-c", 'ping -n -c1 guest; echo "{"; echo "}" >&2')
    done = skblab("trace", "--json", str(tmp_path / "t.json"), *words, *shouts)
    assert " icmp_rcv()" in done.stdout
    said = [json.loads(line) for line in (tmp_path / "t.json").read_text().splitlines()]
    assert said[0]["type"] == "trace"
    assert said[0]["command"] == [*shouts[1:]]
    assert said[-1]["lost"] == 0
    steps = [one for one in said if one["type"] == "step" and one["function"] == "icmp_rcv"]
    assert [one["fields"] for one in steps] == [{"skb->dev->name": "vec0"}]
    done = skblab("trace", "--json", "-", *words, "--", "true")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["trace", "end"]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["icmp"], "no command that sends packets", "skblab trace -- ping"),
        (["-p", "icmp_rvc", *PING], 'no function "icmp_rvc"', "icmp_rcv"),
        (["-p", "nosuch_*", *PING], 'is named by "nosuch_*"', "skblab probes"),
        (["-p", "fib_table_insert", *PING], "takes a packet", "--calls"),
        (["-p", "kfree_skbmem", *PING], "has been freed already", ""),
        (["no filter", *PING], "", "no filter"),
        (["--field", "skb->nosuch", *PING], "has no member nosuch", ""),
        (["--field", "dev->name", *PING], "is no field of a packet", "skb->dev->name"),
        (["-o", "/nosuch/run.skblab", *PING], "cannot write /nosuch/run.skblab", ""),
        (["--ring", "3", *PING], "power of two", ""),
        (["--json", "icmp", *PING], "is icmp a file, or the filter?", "--json run.json icmp"),
    ],
)
def test_bad_input(words: list[str], error: str, hint: str) -> None:
    done = skblab("trace", *words)
    assert done.returncode == 2
    assert error in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_probes() -> None:
    done = skblab("probes", "icmp_rcv", "ip_route_input_noref")
    assert "int icmp_rcv(struct sk_buff *skb)" in done.stdout
    assert "every verdict: net_protocol.handler" in done.stdout
    assert "accept, trace, return, stop" in done.stdout
    refused = skblab("run", "-r", "__netif_receive_skb_core.constprop.0 = stop", "--", "true")
    assert "takes no struct sk_buff *" in refused.stderr
    assert "followed, accept, trace, return" in skblab("probes", "__netif_receive_skb_core.constprop.0").stdout
    listed = [json.loads(line) for line in skblab("probes", "--json", "net/ipv4/icmp.c").stdout.splitlines()]
    assert {one["file"] for one in listed} == {"net/ipv4/icmp.c"}
    assert "hold" in next(one for one in listed if one["name"] == "icmp_rcv")["verdicts"]
    called = skblab("probes", "--calls", "fib_table_*")
    assert "fib_table_lookup" in called.stdout
