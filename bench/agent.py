"""What the agent costs, beside gdb and netem doing the same."""

import contextlib
import json
import re
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from numbers_table import Number, single, summary

from skblab.agent.soundness import FORBIDDEN_FILES
from skblab.errors import UnsupportedVerdict
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import echo_request

GUEST = "192.168.10.1"
FLOOD = 10_000
ROUNDS = 5
IDENTITY = 0x5B1B
HELD_AT_ONCE = 10_000
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
AVERAGE = re.compile(r"= [\d.]+/([\d.]+)/")
NEVER = "ip[8] == 255 and icmp[0:2] == 0x1234"  # a filter that has to look, and takes nothing


def flood_us(lab: Lab, count: int = FLOOD) -> float:
    """Return the average RTT of a ping flood, in us."""
    done = lab.run(["ping", "-q", "-f", "-c", str(count), GUEST], timeout_s=120)
    found = AVERAGE.search(done.stdout)
    assert found, done.stdout
    return float(found.group(1)) * 1e3


def may_be_met(lab: Lab, name: str) -> bool:
    """Whether a function could be on a packet's way, and may be probed."""
    found = lab.image.functions.lookup(name)
    if found is None or found.skb_parameter is None or "." in name or found.file.startswith(FORBIDDEN_FILES):
        return False
    return found.file.startswith(("net/core/", "net/ipv4/", "net/sched/"))


def on_the_way(lab: Lab) -> list[str]:
    """Return functions that a ping comes by: they take a packet, and were seen to be called for one."""
    names = [name for name in lab.image.functions.names() if may_be_met(lab, name)]
    seen: list[str] = []
    for start in range(0, len(names), 200):
        with contextlib.ExitStack() as stack:
            running = []
            for name in names[start : start + 200]:
                with contextlib.suppress(UnsupportedVerdict):
                    running.append(lab.rule(f"{name} = trace @1"))
                    stack.callback(running[-1].close)
            lab.run(["ping", "-q", "-c", "2", "-i", "0.01", GUEST], timeout_s=20)
            seen += [one.armed.rule.function for one in running if one.armed.counts.arrived]
    return seen


def busy_ns(lab: Lab) -> int:
    """Return the processor time that the guest kernel has had, in ns (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{lab.guest.pid}/schedstat").read_text().split()[0])


def flood_busy_ns(lab: Lab) -> float:
    """Return the guest kernel's processor time for one ping of a flood, in ns."""
    before = busy_ns(lab)
    flood_us(lab)
    return (busy_ns(lab) - before) / FLOOD


def compare(lab: Lab, rules: list[str]) -> tuple[float, float]:
    """Return the guest's time for a ping without and with rules, in ns."""
    without, with_rules = [], []
    for _ in range(ROUNDS):
        without.append(flood_busy_ns(lab))
        with contextlib.ExitStack() as stack:
            running = [lab.rule(rule) for rule in rules]
            for one in running:
                stack.callback(one.close)
            with_rules.append(flood_busy_ns(lab))
    return statistics.median(without), statistics.median(with_rules)


def per_call(lab: Lab) -> Iterator[Number]:
    """Measure a filter that does not match, by the processor time that it adds to a ping's way."""
    functions = on_the_way(lab)
    yield single(f"RTT of ping -f, nothing armed ({len(functions)} functions on its way)", flood_us(lab), "us")
    plain, filtered = compare(lab, [f"{name} = trace if {NEVER}" for name in functions])
    yield single("an armed filter that does not match", (filtered - plain) / len(functions), "ns", 150)


def beside_gdb(lab: Lab) -> Iterator[Number]:
    """Measure a conditional breakpoint that does not match, and hold-and-release through Python."""
    plain = flood_us(lab, 300)
    with lab.debugger() as gdb:
        gdb.set_stop("icmp_rcv", condition="skb->len > 60000")
        gdb.resume()
        broken = flood_us(lab, 300)
    yield single("gdb: a conditional breakpoint that does not match", (broken - plain) * 1e3, "ns")
    with lab.hold("icmp_rcv") as held, lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        times = []
        for sequence in range(1000):
            started = time.perf_counter()
            client.sendto(echo_request(IDENTITY, sequence), (GUEST, 0))
            held.take(1)[0].release()
            client.recv(2048)
            times.append((time.perf_counter() - started) * 1e6)
    yield summary("held, decided on in Python, released, answered", times, "us")


def delays(image: Image) -> Iterator[Number]:
    """Measure how much later than asked a delayed packet comes, beside netem doing the same."""
    wanted_ms = 20

    def late_us(lab: Lab) -> list[float]:
        done = lab.run(["ping", "-n", "-c", "100", "-i", "0.03", GUEST], timeout_s=60)
        return [(reply.rtt_ms - wanted_ms) * 1e3 for reply in parse_ping(done.stdout)]

    with Lab(image=image) as lab:
        plain = statistics.median(reply.rtt_ms for reply in parse_ping(
            lab.run(["ping", "-n", "-c", "50", "-i", "0.03", GUEST], timeout_s=60).stdout)) * 1e3  # fmt: skip
        with contextlib.closing(lab.rule(f"icmp_rcv = delay {wanted_ms}ms")):
            ours = [value - plain for value in late_us(lab)]
    yield Number("delay 20ms: RTT less what was asked less a plain RTT", round(statistics.median(ours), 1),
                 round(sorted(ours)[98], 1), "us", 50)  # fmt: skip
    command = f"tc qdisc add dev vec0 root netem delay {wanted_ms}ms && exec iperf3 -s"
    with Lab(image=image, root="host", commands=[command]) as lab:
        theirs = [value - plain for value in late_us(lab)]
    yield Number(
        "the same by netem in the guest", round(statistics.median(theirs), 1), round(sorted(theirs)[98], 1), "us"
    )


def throughput(image: Image) -> Iterator[Number]:
    """Measure iperf3 with nothing armed, one filter that does not match, and up to a hundred."""
    with Lab(image=image, root="host", commands=["iperf3 -s"], memory_mib=256) as lab:
        functions = [name for name in lab.image.functions.names("*tcp*") if may_be_met(lab, name)]
        functions.insert(0, functions.pop(functions.index("tcp_v4_rcv")))
        for count in (0, 1, 100):
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


def measure(image: Image) -> Iterator[Number]:
    """Measure everything."""
    with Lab(image=image) as lab:
        yield from per_call(lab)
        yield from beside_gdb(lab)
    yield from delays(image)
    yield from throughput(image)
    yield from held_at_once(image)
