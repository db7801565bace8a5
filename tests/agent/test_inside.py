"""Rules inside a call of another function: exactly the calls that it causes, in its own context, to its end."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from skblab.errors import UnknownFunction, UnsupportedVerdict
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Inside
from skblab.session import Session
from skblab.spec import LabSpec

SYN = "tcp dst port 80 and tcp[tcpflags] & tcp-syn != 0"
GET = ("curl", "-4", "-s", "-o", "/dev/null", "-w", "%{time_connect}", "http://guest/etc/hostname")
RECEIVE = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7)); s.recv(9)"
UNLOAD = "import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(176, b'skblab_agent', 0o4000))"  # delete_module(2)
# SO_ATTACH_FILTER (26) wants the very length of what it gets: net/core/sock.c.
ATTACH = """
import ctypes, socket, struct
program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
socket.socket().setsockopt(socket.SOL_SOCKET, 26, struct.pack("H6xQ", 1, ctypes.addressof(program)))
"""
PING = ("ping", "-q", "-c", "1", "-W", "1", "guest")


@pytest.fixture(scope="module")
def lab(every_image: Image) -> Iterator[Lab]:
    with LabSpec(
        image=every_image, time="virtual", root="host", commands=["cd /; python3 -m http.server 80"]
    ).start() as lab:
        assert lab.run(GET).returncode == 0
        yield lab


def test_the_allocation_that_a_syn_causes_fails(lab: Lab) -> None:
    with lab.rule(f"__alloc_skb = return NULL @1 inside tcp_v4_rcv if {SYN}") as rule:
        got = lab.run(GET)
        assert (got.returncode, rule.fired, rule.counts.verdicts, rule.counts.surrounded) == (0, True, 1, 2)
    assert 1 <= float(got.stdout) < 1.2  # the SYN is sent again


def test_it_counts_what_a_trace_shows_inside_the_call(lab: Lab) -> None:
    with (
        lab.rule("__alloc_skb = trace inside tcp_v4_rcv if tcp port 80") as rule,
        lab.trace(["tcp_v4_rcv"], calls=["__alloc_skb"], filter="tcp port 80") as tracer,
    ):
        assert lab.run(GET).returncode == 0
    names = [step.function.name for step in tracer.trace().steps]
    assert rule.counts.arrived == names.count("__alloc_skb") > 0
    assert rule.counts.surrounded == names.count("tcp_v4_rcv") > 0


@pytest.mark.parametrize(
    ("rule", "is_inside"),
    [
        ("ip_output = trace inside tcp_sendmsg", True),
        ("ip_rcv = trace inside tcp_sendmsg", False),  # by a softirq, at the end of the transmission
        ("tcp_v4_rcv = trace inside ip_rcv", True),
        ("icmp_rcv = trace inside tcp_v4_rcv", False),
        ("tcp_v4_rcv = trace inside tcp_recvmsg", False),  # which sleeps meanwhile
        ("ip_output = trace if tcp inside tcp_v4_rcv", True),
    ],
)
def test_only_the_calls_own_context_is_inside(lab: Lab, rule: str, is_inside: bool) -> None:
    with lab.rule(rule) as running:
        assert lab.run(GET).returncode == 0
        assert running.counts.surrounded > 0
        assert (running.counts.arrived > 0) is is_inside


def test_an_edit_a_hold_and_a_delay_inside(lab: Lab) -> None:
    with lab.rule("ip_output = edit ip.ttl=9 inside icmp_rcv") as edit:
        assert "ttl=9 " in lab.run(["ping", "-c", "1", "guest"]).stdout
        assert edit.fired
    with lab.rule("ip_output = delay 300ms inside icmp_rcv if icmp[0] == 8"):
        assert "time=300 ms" in lab.run(["ping", "-c", "1", "guest"]).stdout
    with lab.hold("ip_output", inside=Inside("icmp_rcv", "icmp[0] == 8")) as held:
        client = lab.popen(PING, stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        assert "echo reply" in packet.summary()
        held.refilter("icmp")
        packet.release()
        assert client.wait(10) == 0
        assert held.counts.surrounded == 1


def test_what_another_rule_decides_at_the_outer_function(lab: Lab) -> None:
    with lab.rule("icmp_rcv = drop"), lab.rule("ip_output = trace inside icmp_rcv") as inside:
        assert lab.run(PING).returncode == 1
        assert (inside.counts.arrived, inside.counts.surrounded) == (0, 0)
    with lab.rule("icmp_rcv = delay 10ms"), lab.rule("ip_output = trace inside icmp_rcv") as inside:
        assert lab.run(PING).returncode == 0
        assert (inside.counts.arrived, inside.counts.surrounded) == (0, 0)  # its call came later
    with lab.rule("icmp_rcv = trace if icmp[0] == 8") as trace, lab.rule("ip_output = trace inside icmp_rcv") as inside:
        assert lab.run(PING).returncode == 0
        assert (trace.counts.traced, inside.counts.traced) == (1, 1)


def test_several_rules_inside_one_function(lab: Lab) -> None:
    rules = [lab.rule(f"ip_output = trace if ip[8] == {ttl} inside icmp_rcv if icmp[0] == 8") for ttl in range(58, 68)]
    assert lab.run(PING).returncode == 0
    counts = [rule.counts for rule in rules]
    for rule in rules:
        rule.close()
    assert sum(one.arrived for one in counts) == 1
    assert [one.not_surrounded for one in counts] == [1] * 2 + [0] * 8
    assert "1 calls not looked into" in counts[0].caveats[0]


def test_calls_that_sleep(every_image: Image) -> None:
    """While a call sleeps its rule ends, another gets its number, and the controller goes."""
    with LabSpec(image=every_image, root="host").start() as lab:
        outer = lab.rule("ip_output = trace inside udp_recvmsg")
        with lab.rule("udp_recvmsg = trace") as entered:
            receiver = lab.guest.popen(["python3", "-c", RECEIVE])
            entered.wait()
        assert outer.counts.surrounded == 1
        assert lab.run(PING).returncode == 0
        assert outer.counts.arrived == 0
        outer.close()
        with lab.rule("ip_output = trace inside icmp_rcv") as another:
            assert lab.run(PING).returncode == 0
            assert another.counts.arrived == 1
            assert lab.guest.run(["python3", "-c", UNLOAD]).returncode != 0  # the call returns to it
            assert lab.run(["bash", "-c", "echo -n x >/dev/udp/192.168.10.1/7"]).returncode == 0
            assert receiver.wait() == 0
        assert lab.run(PING).returncode == 0
        assert lab.agent.channel.probes == 0


def test_tasks_that_die_inside_a_call(lab: Lab) -> None:
    """More than may be running at once; another task gets their memory."""
    with lab.rule("ip_output = trace if icmp inside do_exit") as rule:
        assert lab.guest.run(["sh", "-c", "for i in $(seq 99); do /bin/true; done"]).returncode == 0
        for _ in range(3):
            assert lab.run(PING).returncode == 0
        assert (rule.counts.arrived, rule.counts.not_surrounded) == (0, 0)
        assert rule.counts.surrounded > 99
    with lab.rule("ip_output = trace inside icmp_rcv") as rule:
        assert lab.run(PING).returncode == 0
        assert rule.counts.arrived == 1


@pytest.mark.parametrize(
    ("function", "command"),
    [
        ("seq_printf", ("cat", "/proc/net/dev")),  # any number of arguments
        ("do_sock_setsockopt", ("python3", "-c", ATTACH)),  # six, one of which takes the place of two
        ("ip_append_data", ("bash", "-c", "exec 3>/dev/udp/127.0.0.1/9; echo x >&3; cat <&3")),  # ten
    ],
)
def test_arguments_on_the_stack(lab: Lab, every_image: Image, function: str, command: tuple[str, ...]) -> None:
    if not every_image.functions.lookup(function):
        pytest.skip(f"this series has no {function}()")
    without = lab.guest.run(command)
    with lab.rule(f"__alloc_skb = trace inside {function}") as rule:
        inside = lab.guest.run(command)
        assert rule.counts.surrounded > 0
    assert (inside.stdout, inside.stderr, inside.returncode) == (without.stdout, without.stderr, without.returncode)


def test_a_rule_inside_a_function_that_is_not_called_has_not_fired(lab: Lab) -> None:
    with Session(lab, ["ip_output = trace inside tcp_fragment"]) as session:
        outcome = session.run(PING, capture=True)
    (rule,) = outcome.rules
    assert rule.is_untested
    assert rule.lines()[-1] == "never fired: tcp_fragment() was not called"


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        ("do_idle if icmp", "do_idle() has no packet to look at"),
        ("um_timer", "nothing can be probed in um_timer()"),
        ("current_time", "a rule cannot be inside current_time()"),
    ],
)
def test_functions_that_no_rule_can_be_inside(lab: Lab, inside: str, what: str) -> None:
    with pytest.raises(UnsupportedVerdict, match=re.escape(what)):
        lab.rule(f"ip_output = trace inside {inside}")
    with pytest.raises(UnknownFunction, match='no function "no_such"'):
        lab.rule("ip_output = trace inside no_such")
    assert lab.agent.channel.probes == 0
