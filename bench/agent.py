"""Measure what the agent costs, beside gdb doing the same."""

import contextlib
import json
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from delay import NFQUEUE, QUEUE_RULES
from numbers_table import Number, single, summary

from skblab.agent.functions import FORBIDDEN_FILES, plain_packet
from skblab.agent.streams import Hold
from skblab.debugger.session import Debugger
from skblab.errors import UnsupportedVerdict
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import echo_request
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.agent.packets import HeldPacket

GUEST = "192.168.10.1"
FLOOD = 10_000
ROUNDS = 5
IDENTITY = 0x5B1B
HELD_AT_ONCE = 10_000
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
AVERAGE = re.compile(r"= [\d.]+/([\d.]+)/")
PING = bytes.fromhex("45000054000040004001b55ac0a80afec0a80a01") + echo_request(IDENTITY, 1, bytes(56))
CALLS = 20_000
CALL_ROUNDS = 9
CATCH_UP_S = 0.3  # for the reader, so that the ring is not full
ECHO = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
end = socket.socket(fileno=int(sys.argv[1]))
while end.recv(1):
    end.send(b"x")
"""
NEVER = "ip[8] == 255 and icmp[0:2] == 0x1234"  # a filter that reads the packet and matches none


def flood_us(lab: Lab, count: int = FLOOD) -> float:
    """Return the average RTT of a ping flood, in us."""
    done = lab.run(["ping", "-q", "-f", "-c", str(count), GUEST], timeout_s=120)
    found = AVERAGE.search(done.stdout)
    assert found, done.stdout
    return float(found.group(1)) * 1e3


def may_be_probed(lab: Lab, name: str) -> bool:
    """Whether a function takes a packet and may be probed."""
    found = lab.image.functions.lookup(name)
    return bool(found and plain_packet(found) and "." not in name and not found.file.startswith(FORBIDDEN_FILES))


def busy_ns(lab: Lab) -> int:
    """Return the processor time of the guest's kernel, in ns (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{lab.guest.pid}/schedstat").read_text().split()[0])


def flood_busy_ns(lab: Lab) -> float:
    """Return the processor time of the guest's kernel for one ping of a flood, in ns."""
    before = busy_ns(lab)
    flood_us(lab)
    return (busy_ns(lab) - before) / FLOOD


def compare(lab: Lab, rules: list[str]) -> tuple[float, float]:
    """Return the guest's processor time for a ping without and with rules, in ns."""
    without, with_rules = [], []
    for _ in range(ROUNDS):
        without.append(flood_busy_ns(lab))
        with contextlib.ExitStack() as stack:
            running = [lab.rule(rule) for rule in rules]
            for one in running:
                stack.callback(one.close)
            with_rules.append(flood_busy_ns(lab))
    return statistics.median(without), statistics.median(with_rules)


def calls_ns(lab: Lab, verdict: str = "") -> list[float]:
    """Return the times of calls in the guest outside of the network stack, with or without a rule, in ns."""
    rule = Rule.parse(f"agent_measured = {verdict}") if verdict else None
    times = []
    for _ in range(CALL_ROUNDS):
        with lab.agent.arm_measured(rule) if rule else contextlib.nullcontext():
            times.append(lab.agent.measure_ns(bytes(12) + b"\x08\0" + PING, CALLS))
        time.sleep(CATCH_UP_S)  # noqa: TID251 - the reader does not report when it has caught up
    return times


def probe_cost(lab: Lab) -> Iterator[Number]:
    """Measure what a rule adds to a call."""
    bare = statistics.median(calls_ns(lab))
    calls_ns(lab, "trace")  # touches the ring's memory for the first time
    for what, verdict, target in (
        ("a call that a rule counts (accept)", "accept", 0),
        ("a call with a filter that does not match", f"trace if {NEVER}", 150),
        ("a call with a condition that does not hold", "trace if skb->mark == 7", 0),
        (f"a traced call, {len(PING)} bytes of its packet copied", "trace", 40),
    ):
        yield summary(what, [one - bare for one in calls_ns(lab, verdict)], "ns", target)
    assert lab.agent.channel.lost == 0


def hold_cost(lab: Lab) -> Iterator[Number]:
    """Measure the guest's processor time for a hold that the agent releases at once."""
    yield single("RTT of ping -f, nothing armed", flood_us(lab), "us")
    plain, held = compare(lab, ["icmp_rcv = delay 1ns"])
    yield single("a hold, its timer, its release, and both events", (held - plain) / 1e3, "us")


def beside_gdb(lab: Lab) -> Iterator[Number]:
    """Measure a conditional breakpoint that does not match, and hold-and-release through Python."""
    plain = flood_us(lab, 300)
    with lab.debugger() as gdb:
        gdb.set_stop("icmp_rcv", condition="skb->len > 60000")
        gdb.resume()
        broken = flood_us(lab, 300)
    yield single("gdb: a conditional breakpoint that does not match", broken - plain, "us")
    with lab.hold("icmp_rcv") as held:
        yield summary("held, decided on in Python, released, answered", asked(lab, 1000, lambda: let_go(held)), "us")
    with lab.debugger() as gdb:
        gdb.set_stop("icmp_rcv")
        gdb.resume()
        yield summary("stopped under gdb, decided on, resumed, answered", asked(lab, 50, lambda: go_on(gdb)), "us")


def beside_nfqueue(image: Image) -> Iterator[Number]:
    """Measure a policy, and NFQUEUE with a Python program in the guest, which decide at once; by turns."""
    command = f"nft '{QUEUE_RULES}' && exec {NFQUEUE} 0"
    woken, plain, ours, theirs = [], [], [], []
    held: list[HeldPacket] = []
    with Lab(image=image) as lab, Lab(image=image, root="host", commands=[command], memory_mib=256) as other:
        for _ in range(ROUNDS):
            woken += echoed(200)
            plain += asked(lab, 200, lambda: None)
            with lab.on("icmp_rcv", "icmp", held.append):
                ours += asked(lab, 200, lambda: None)
                held[-1].wait(1)
            theirs += asked(other, 200, lambda: None)
    yield summary("a byte to a process on another processor and back", woken, "us")
    yield summary("a ping, nothing armed", plain, "us")
    yield summary("a policy in Python decides, answered", ours, "us")
    waited = [(packet.ended_at_ns - packet.held_at_ns) / 1e3 for packet in held]
    yield summary("of it, the packet is held: the decision", waited, "us", 60)
    yield summary("NFQUEUE and Python in the guest decide, answered", theirs, "us")


def echoed(count: int) -> list[float]:
    """Return the times from a byte to its echo by a process on another processor, if there is one, in us."""
    times = []
    allowed = sorted(os.sched_getaffinity(0))
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-c", ECHO, str(theirs.fileno()), str(allowed[-1])]
    os.sched_setaffinity(0, allowed[:1])
    with ours, process.start(argv, pass_fds=[theirs.fileno()]) as echo:
        theirs.close()
        for _ in range(count + 1):
            started = time.perf_counter()
            ours.send(b"x")
            ours.recv(1)
            times.append((time.perf_counter() - started) * 1e6)
        ours.shutdown(socket.SHUT_RDWR)
        echo.wait()
    os.sched_setaffinity(0, allowed)
    return times[1:]  # the first waits for Python to start


def let_go(held: Hold) -> None:
    """Release the next packet."""
    held.take(1)[0].release()


def go_on(gdb: Debugger) -> None:
    """Resume from the next stop."""
    gdb.wait_stop(10)
    gdb.resume()


def asked(lab: Lab, count: int, decide: Callable[[], None]) -> list[float]:
    """Return the times from echo request to reply, each with a decision in between, in us."""
    times = []
    with lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        for sequence in range(count):
            started = time.perf_counter()
            client.sendto(echo_request(IDENTITY, sequence), (GUEST, 0))
            decide()
            client.recv(2048)
            times.append((time.perf_counter() - started) * 1e6)
    return times


def throughput(image: Image) -> Iterator[Number]:
    """Measure iperf3 with nothing armed, with one filter that does not match, a hundred, and the most possible."""
    with Lab(image=image, root="host", commands=["iperf3 -s"], memory_mib=256) as lab:
        functions = [name for name in lab.image.functions.names() if may_be_probed(lab, name)]
        functions.sort(key=lambda name: (name != "tcp_v4_rcv", "tcp" not in name))
        for count in (0, 1, 100, len(functions)):
            with contextlib.ExitStack() as stack:
                armed = 0
                for name in functions[:count]:
                    with contextlib.suppress(UnsupportedVerdict):
                        stack.callback(lab.rule(f"{name} = trace if port 9").close)
                        armed += 1
                done = lab.run(["iperf3", "-c", GUEST, "-t", "3", "-J"], timeout_s=60)
            rate = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
            yield single(f"iperf3 to the guest, {armed} filters armed", rate, "Gbit/s", 0 if count else 2.5)


def held_at_once(image: Image) -> Iterator[Number]:
    """Hold ten thousand packets at once, and release them."""
    with (
        Lab(image=image, memory_mib=256) as lab,
        lab.hold("icmp_rcv") as held,
        lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        packets = []
        for sequence in range(HELD_AT_ONCE):
            client.sendto(echo_request(IDENTITY, sequence), (GUEST, 0))
            if sequence % 100 == 99:
                packets += held.take(100)
        at_once = lab.agent.channel.held
        started = time.perf_counter()
        for packet in packets:
            packet.release()
        client.settimeout(2)
        answered = 0
        with contextlib.suppress(TimeoutError):
            while answered < HELD_AT_ONCE:
                client.recv(2048)
                answered += 1
        took_ms = (time.perf_counter() - started) * 1e3
    yield Number("held at once, and then answered", at_once, answered, "packets", HELD_AT_ONCE)
    yield single("to release them all", took_ms, "ms")
    yield from rule_taken_away(image)


def rule_taken_away(image: Image) -> Iterator[Number]:
    """Measure removing a rule that holds many packets."""
    with (
        Lab(image=image, memory_mib=512) as lab,
        lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        for count in (1_000, HELD_AT_ONCE, 3 * HELD_AT_ONCE):
            held = lab.hold("icmp_rcv")
            for sequence in range(count):
                client.sendto(echo_request(IDENTITY, sequence & 0xFFFF), (GUEST, 0))
                if sequence % 100 == 99:
                    held.take(100)
            lab.agent.channel.forget_longest_off()
            started = time.perf_counter()
            held.close()
            took_ms = (time.perf_counter() - started) * 1e3
            target = (20.0, 1.0) if count == HELD_AT_ONCE else (0.0, 0.0)
            yield single(f"a rule taken away that holds {count:,}", took_ms, "ms", target[0])
            yield single("  interrupts off at most", lab.agent.channel.longest_off_ns / 1e6, "ms", target[1])


def measure(image: Image) -> Iterator[Number]:
    """Measure everything."""
    with Lab(image=image) as lab:
        lab.agent.wait_ready()
        yield from probe_cost(lab)
        yield from hold_cost(lab)
        yield from beside_gdb(lab)
    yield from beside_nfqueue(image)
    yield from throughput(image)
    yield from held_at_once(image)
