"""Rules come and go under load, packets are held, dropped, copied, edited at random: and every packet is accounted for.

On a kernel that looks for its own mistakes (KASAN, lockdep, list debugging). ``make torture`` runs it long.
"""

import contextlib
import errno
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from skblab.agent.abi import Counts
from skblab.agent.held import HeldPacket, State
from skblab.agent.holds import Hold, Running
from skblab.errors import GuestLost, PacketGone, SkblabError, Timeout
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.packet import ETH_P_IP, Packet, echo_request
from skblab.rule import Rule
from support import NO_FAULT

PACKETS = int(os.environ.get("SKBLAB_TORTURE_PACKETS", "20000"))
FUNCTIONS = (
    "ip_rcv", "ip_local_deliver", "icmp_rcv", "udp_rcv", "ip_output", "ip_finish_output2", "__dev_queue_xmit",
)  # fmt: skip
VERDICTS = (
    "accept", "trace", "hold", "hold 3 release reverse", "hold 4 release random", "delay 1ms", "delay 500us +-500us",
    "drop", "duplicate", "duplicate 2", "edit ip.ttl=9",
)  # fmt: skip
OCCURRENCES = ("", "@1", "@2-5", "@3-", "@every 3", "@random 30%")
FILTERS = ("", " if icmp", " if udp", " if icmp[icmptype] == icmp-echo", " if ip[2:2] > 300")
REFUSALS = tuple(os.strerror(number) for number in (errno.ENOENT, errno.EINVAL, errno.ENOMEM))
VERDICTS_GIVEN = 40  # at least, however fast the packets go
RULES_AT_ONCE = 8
AHEAD = 32


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(
        image=find_image(variant=os.environ.get("SKBLAB_TORTURE_VARIANT", "kasan")), memory_mib=512, boot_timeout_s=60
    ) as lab:
        yield lab


class Flood:
    """Sends echo requests and datagrams to a closed port, of all sizes, as fast as the guest answers."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self._icmp = lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._udp = lab.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._chance = chance
        self.sent = 0
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._icmp.settimeout(0.02)
        began_s = time.monotonic()
        while not self.done.is_set():
            size = self._chance.choice((0, 8, 56, 500, 1400, 3000))
            if self._chance.random() < 0.8:
                self._icmp.sendto(echo_request(7, self.sent, bytes(size)), ("192.168.10.1", 0))
            else:
                self._udp.sendto(bytes(size), ("192.168.10.1", 9))
            self.sent += 1
            if self.sent % AHEAD == 0:
                self._wait_for_the_last()
                self.done.wait(time.monotonic() - began_s)
                began_s = time.monotonic()

    def _wait_for_the_last(self) -> None:
        """Wait for the answer to one of the last requests, or for silence: what has not come was held or dropped.

        Then as long again: the guest has one processor, and while it receives, no rule comes or goes.
        """
        with contextlib.suppress(TimeoutError):
            while not self._is_of_the_last(reply_sequence(self._icmp.recv(65536))):
                pass

    def _is_of_the_last(self, sequence: int | None) -> bool:
        return sequence is not None and (self.sent - sequence) % 65536 <= AHEAD // 2

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self.done.set()
        self._thread.join()
        self._icmp.close()
        self._udp.close()


def reply_sequence(data: bytes) -> int | None:
    """Return the sequence number of an echo reply of ours, with its IP header in front."""
    echo = Packet(data, ETH_P_IP).echo
    return echo[2] if echo and echo[0] == "echo reply" else None


def accounted_for(rule: Rule, counts: Counts) -> bool:
    """Whether a rule that is gone knows what became of each packet that its filter took."""
    wanted = counts.arrived - counts.accepted
    match rule.verdict:
        case "accept":
            return wanted == 0
        case "trace":
            return wanted == counts.traced
        case "drop":
            return wanted == counts.dropped
        case "duplicate":
            return counts.duplicated <= wanted * rule.copies
    return wanted == counts.held and counts.held + counts.duplicated == counts.released + counts.dropped


def decide(held: HeldPacket, chance: random.Random) -> None:
    """Do something with a packet; it may have gone meanwhile."""
    try:
        for _ in range(chance.randrange(3)):
            chance.choice((held.duplicate, lambda: held.edit(lambda _: bytes(chance.randrange(600)))))()
        chance.choice((held.release, held.drop, lambda: held.release(after_s=0.001)))()
    except PacketGone:
        pass
    except GuestLost:
        raise
    except SkblabError as error:
        # It has gone meanwhile; it is no packet to be written to; there is no memory for a copy at once (GFP_ATOMIC).
        assert error.found in REFUSALS, error  # noqa: PT017


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_every_packet_is_accounted_for(lab: Lab) -> None:
    seed = int(os.environ.get("SKBLAB_TORTURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    flood = Flood(lab, random.Random(seed + 1))
    active: list[Running | Hold] = []
    packets: list[HeldPacket] = []
    verdicts = 0
    try:
        while not (enough := flood.sent >= PACKETS and verdicts >= VERDICTS_GIVEN) or active:
            assert flood.runs, seed
            if active and (enough or len(active) >= RULES_AT_ONCE or chance.random() < 0.3):
                one = active.pop(chance.randrange(len(active)))
                one.close()
                assert accounted_for(one.armed.rule, one.armed.counts), (seed, str(one.armed.rule), one.armed.counts)
            elif chance.random() < 0.3:
                active.append(lab.hold(chance.choice(FUNCTIONS), chance.choice(FILTERS).removeprefix(" if ")))
            else:
                # Copies of copies of copies would be all that the guest still does.
                copying = any(one.armed.rule.verdict == "duplicate" for one in active)
                verdict = chance.choice([one for one in VERDICTS if not (copying and one.startswith("duplicate"))])
                line = f"{chance.choice(FUNCTIONS)} = {verdict} {chance.choice(OCCURRENCES)}"
                active.append(lab.rule(line + chance.choice(FILTERS)))
            verdicts += 1
            for one in active:
                if isinstance(one, Hold):
                    try:
                        held = one.take(chance.randrange(1, 8), timeout_s=0.002)
                    except Timeout:
                        continue
                    packets += held[:100]
                    for packet in held:
                        decide(packet, chance)
    finally:
        flood.close()
    channel = lab.agent.channel
    assert (channel.held, channel.probes) == (0, 0), seed
    deadline = time.monotonic() + 5
    for packet in packets:
        assert packet.wait(max(deadline - time.monotonic(), 0)), (seed, packet)
        assert packet.state in {State.RELEASED, State.DROPPED}, (seed, packet)
    assert not [str(one) for one in lab.complaints if not one.title.startswith(NO_FAULT)], seed
    assert lab.run(["ping", "-c", "3", "-i", "0.01", "-W", "5", "guest"], timeout_s=20).returncode == 0
