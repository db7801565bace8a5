"""Rules come and go under load, packets are held, dropped, copied, edited at random: and every packet is accounted for.

On a kernel that looks for its own mistakes (KASAN, lockdep, list debugging), over both families, at every function of
the table, with sockets that own packets, and with sockets, routes, devices and namespaces that go while packets of
theirs are held. ``make torture`` runs it long.
"""

import errno
import itertools
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.agent.abi import Counts
from skblab.agent.contracts import CONTRACTS
from skblab.agent.packets import WRITE_REFUSALS, HeldPacket, State
from skblab.agent.running import Running
from skblab.agent.streams import Hold
from skblab.errors import GuestLost, PacketGone, SkblabError
from skblab.host import process
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.rule import Rule

# Those of the table that this traffic reaches, and a driver, whose devices come and go.
ELSEWHERE = {
    "vxlan_rcv", "ip_forward", "ip6_forward", "br_handle_frame_finish", "br_forward_finish", "br_dev_queue_push_xmit",
    "ip_mc_output",
}  # fmt: skip
FUNCTIONS = sorted({*CONTRACTS, "veth_xmit"} - ELSEWHERE)
PACKETS = int(os.environ.get("SKBLAB_TORTURE_PACKETS", "10000"))
VERDICTS = (
    "accept", "trace", "stop", "hold", "hold 3 release reverse", "hold 4 release random", "delay 1ms",
    "delay 500us +-500us", "delay 200ms", "drop", "drop NO_SOCKET", "duplicate", "duplicate 2", "EDIT", "return 0",
)  # fmt: skip
OCCURRENCES = ("", "", "@1", "@2-5", "@3-", "@every 3", "@random 30%")
FILTERS4 = ("", "", "icmp", "udp", "tcp", "icmp[icmptype] == icmp-echo", "ip[2:2] > 300")
FILTERS6 = ("", "", "icmp6", "ip6 proto 17", "ip6 proto 6", "ip6[4:2] > 300")
# What is held past the end of the socket that owns it, or that it is for.
SYN_ACKS = {
    "ip_output": "tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)",
    "ip_finish_output2": "tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)",
    "ip6_output": "ip6[6] == 6 and ip6[53] & 0x12 == 0x12",
    "ip6_finish_output2": "ip6[6] == 6 and ip6[53] & 0x12 == 0x12",
}
FOR_CONNECTED = {
    "ip_local_deliver": "udp dst portrange 7000-7007",
    "ip_local_deliver_finish": "udp dst portrange 7000-7007",
    "udp_rcv": "udp dst portrange 7000-7007",
    "ip6_input": "udp dst portrange 7000-7007",
    "udpv6_rcv": "udp dst portrange 7000-7007",
}
OF_A_NAMESPACE = {"ip_output": "src net 10.9.0.0/24", "ip6_output": "src net fd99::/64"}
LIVES_S = (0.0, 0.05, 0.1, 0.2)
LONG_S = 1.6  # a SYN-ACK is sent again after 1 s
UNWRITABLE = {what for what, _ in WRITE_REFUSALS.values()}
REFUSALS = tuple(os.strerror(number) for number in (errno.ENOENT, errno.EINVAL, errno.ENOMEM))
LOOK_S = 2.0  # between two looks at what the kernel complains of
GONE = {State.RELEASED, State.DROPPED}
RULES_AT_ONCE = 8
DECIDED_AT_ONCE = 100
DONE_IN_THE_GUEST = (
    "accepted", "reset", "closed", "connected", "UDP closed", "closed with a datagram queued", "ICMP SOCK_DGRAM",
    "ICMP SOCK_RAW", "to a namespace", "namespaces deleted", "devices deleted", "by a device that comes and goes",
    "routes changed",
)  # fmt: skip


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(
        image=find_image(variant=os.environ.get("SKBLAB_TORTURE_VARIANT", "kasan")),
        memory_mib=512,
        boot_timeout_s=60,
        root="host",
        kernel_arguments=[
            "kmemleak=off"
        ],  # it would scan all memory a minute after the boot, and nothing else would run
        link="veth",  # its far end says how much waits for the guest
    ) as lab:
        yield lab


def program(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


class Traffic:
    """What runs at both ends of the link: torture_guest.py and torture_host.py."""

    def __init__(self, lab: Lab, seed: int) -> None:
        pipe = subprocess.PIPE
        self.lab = lab
        self.guests = lab.guest.popen(
            ["python3", "-u", "-c", program("torture_guest.py"), str(seed)], stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self.guests.stdout
        assert select.select([self.guests.stdout], [], [], 60)[0], lab.console.text()[-4000:]
        assert self.guests.stdout.readline() == b"ready\n", self.guests.communicate(timeout=10)
        self.hosts = lab.popen(
            ["python3", "-c", program("torture_host.py"), str(seed)], stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self.hosts.stdout
        os.set_blocking(self.hosts.stdout.fileno(), False)
        self.sent = 0
        self._rest = b""

    def check(self) -> None:
        """Read how many packets were sent; see that both programs run."""
        assert self.guests.poll() is None, self.guests.communicate(timeout=10)
        assert self.hosts.poll() is None, self.hosts.communicate()
        assert self.hosts.stdout
        *lines, self._rest = (self._rest + (self.hosts.stdout.read() or b"")).split(b"\n")
        self.sent = int(lines[-1]) if lines else self.sent

    def close(self) -> None:
        process.end(self.hosts)
        self.guests.close()

    def end_at_the_host(self) -> None:
        _, said = self.hosts.communicate(b"", timeout=60)
        assert (self.hosts.returncode, said) == (0, b"")

    def end_in_the_guest(self) -> Counter[str]:
        """Return how often what was done there."""
        said, complained = self.guests.communicate(timeout=60)
        assert (self.guests.returncode, complained) == (0, b"")
        return Counter(json.loads(said))


class Rules:
    """Rules that come, live for some time, and go; and what became of their packets."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab = lab
        self.chance = chance
        self.active: list[tuple[float, Running | Hold]] = []
        self.packets: list[HeldPacket] = []
        self.given: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()
        self.functions = itertools.cycle(chance.sample(FUNCTIONS, len(FUNCTIONS)))

    def come(self) -> None:
        """Put one more in force."""
        if self.chance.random() < 0.2:
            self.come_for_long()
            return
        function = next(self.functions)
        six = "6" in function
        filters: tuple[str, ...] = FILTERS6 if six else FILTERS4
        if function.startswith(("arp", "__dev", "veth")) or not self.arrived[function]:
            filters = ("",)
        wanted, life_s = self.chance.choice(filters), self.chance.choice(LIVES_S)
        if self.chance.random() < 0.3:
            self.add(life_s, self.lab.hold(function, wanted))
            return
        # Copies of copies of copies would be all that the guest still does.
        copying = any(one.armed.rule.verdict == "duplicate" for _, one in self.active)
        verdict = self.chance.choice([one for one in VERDICTS if not (copying and one.startswith("duplicate"))])
        edit = "arp.op=2" if "arp" in function else "ipv6.hlim=9" if six else "ip.ttl=9"
        verdict = verdict.replace("EDIT", f"edit {edit}")
        self.add(life_s, self.lab.rule(rule(function, verdict, self.chance.choice(OCCURRENCES), wanted)))

    def come_for_long(self) -> None:
        """Hold what belongs to a socket, or to a namespace, for longer than that is there."""
        function, wanted = self.chance.choice(
            [one for ours in (SYN_ACKS, FOR_CONNECTED, OF_A_NAMESPACE) for one in ours.items()]
        )
        verdict = self.chance.choice(("delay 1300ms", "delay 300ms", "hold", "duplicate 2"))
        occurrence = self.chance.choice(("@every 2", "@every 3", ""))
        if verdict == "hold":
            self.add(LONG_S, self.lab.hold(function, wanted))
        else:
            self.add(LONG_S, self.lab.rule(rule(function, verdict, occurrence, wanted)))

    def add(self, life_s: float, one: Running | Hold) -> None:
        self.active.append((time.monotonic() + life_s, one))
        self.given[one.armed.rule.verdict] += 1

    def decide(self) -> None:
        """Decide on packets that are held; others go with their rule."""
        for _, one in self.active:
            if isinstance(one, Hold):
                self.packets += (held := one.take_all()[:DECIDED_AT_ONCE])
                for packet in held:
                    if self.chance.random() < 0.7:
                        decide(packet, self.chance)

    def go(self, *, all_of_them: bool = False) -> None:
        """Take those away whose time is over."""
        now_s = time.monotonic()
        due = [one for until_s, one in self.active if all_of_them or until_s <= now_s]
        self.active = [pair for pair in self.active if pair[1] not in due]
        for one in due:
            one.close()
            counts = one.armed.counts
            assert accounted_for(one.armed.rule, counts), (str(one.armed.rule), counts)
            self.arrived[one.armed.rule.function] += counts.arrived
        self.packets = [packet for packet in self.packets if packet.state not in GONE]


def rule(function: str, verdict: str, occurrence: str, wanted: str) -> Rule:
    return Rule.parse(f"{function} = {verdict} {occurrence}" + (f" if {wanted}" if wanted else ""))


def accounted_for(rule: Rule, counts: Counts) -> bool:
    """Whether a rule that is gone knows what became of each packet that its filter took."""
    wanted = counts.arrived - counts.passed
    match rule.verdict:
        case "accept":
            return wanted == 0
        case "trace":
            return wanted == counts.traced
        case "stop":
            return wanted == counts.stopped
        case "drop" | "return":
            return wanted == counts.verdicts and counts.dropped == (wanted if rule.verdict == "drop" else 0)
        case "duplicate":
            return counts.duplicated <= wanted * rule.copies
    return wanted == counts.held and counts.held + counts.duplicated == counts.released + counts.dropped


def decide(held: HeldPacket, chance: random.Random) -> None:
    """Do something with a packet; it may have gone meanwhile."""
    try:
        if chance.random() < 0.1:
            held.edit(lambda _: bytes(chance.randrange(600)))
        if chance.random() < 0.2:
            held.duplicate()
        chance.choice((held.release, held.drop, lambda: held.release(after_s=0.001)))()
    except PacketGone:
        pass
    except GuestLost:
        raise
    except SkblabError as error:
        # It has gone meanwhile; it is no packet to be written to; there is no memory for a copy at once (GFP_ATOMIC).
        assert error.found in REFUSALS or error.what in UNWRITABLE, error  # noqa: PT017


def check_complaints(lab: Lab, seed: int) -> None:
    """Fail with the first of what the kernel has complained of."""
    if lab.complaints:
        pytest.fail(f"seed {seed}: the guest's kernel complains:\n{lab.complaints[0]}", pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_every_packet_is_accounted_for(lab: Lab) -> None:
    seed = int(os.environ.get("SKBLAB_TORTURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    began_s = looked_s = time.monotonic()
    rules = Rules(lab, chance)
    traffic = Traffic(lab, seed)
    try:
        while traffic.sent < PACKETS or min(rules.arrived[name] for name in FUNCTIONS) == 0:
            traffic.check()
            if (now_s := time.monotonic()) > looked_s + LOOK_S:
                looked_s = now_s
                check_complaints(lab, seed)
            rules.go()
            if len(rules.active) < RULES_AT_ONCE:
                rules.come()
            rules.decide()
        traffic.end_at_the_host()
        rules.go(all_of_them=True)
        done = traffic.end_in_the_guest()
    except SkblabError:
        check_complaints(lab, seed)
        raise
    finally:
        traffic.close()
    channel = lab.agent.channel
    assert (channel.held, channel.probes) == (0, 0), seed
    deadline = time.monotonic() + 5
    for packet in rules.packets:
        assert packet.wait(max(deadline - time.monotonic(), 0)), (seed, packet)
        assert packet.state in GONE, (seed, packet)
    for name in DONE_IN_THE_GUEST:
        assert done[name], (seed, name, done)
    assert done["links left"] == 0, seed
    assert lab.run(["ping", "-c", "3", "-i", "0.2", "-w", "30", "guest"], timeout_s=40).returncode == 0
    check_complaints(lab, seed)
    took_s = time.monotonic() - began_s
    sys.stdout.write(f"seed {seed}: {traffic.sent} packets in {took_s:.0f} s, {sum(rules.given.values())} rules "
          f"({dict(rules.given)}), in the guest {dict(done)}\n")  # fmt: skip
