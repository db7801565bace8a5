"""Malformed packets meet every verdict at every function of the table, on a kernel that looks for its own mistakes.

The guest lives on, complains of nothing, and every packet is accounted for. SKBLAB_MALFORMED_PACKETS says how many.
"""

import contextlib
import os
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.malformed import Frames
from skblab.agent.abi import Counts
from skblab.agent.contracts import CONTRACTS
from skblab.agent.packets import HeldPacket
from skblab.errors import PacketError, PacketGone, Timeout
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.rule import Occurrence

FRAMES = int(os.environ.get("SKBLAB_MALFORMED_PACKETS", "3000"))
VERDICTS = ("trace", "hold", "delay 1ms +-1ms", "drop", "duplicate 2", "edit ip.ttl=9", "edit ipv6.hlim=9", "follow")
AHEAD = 16
LOOK_AFTER, LEAST_MIB = 12, 320  # cells; of 400 MiB that a guest of 512 has at first
HOST4, GUEST4 = socket.inet_aton("192.168.10.254"), socket.inet_aton("192.168.10.1")
HOST6, GUEST6 = (socket.inet_pton(socket.AF_INET6, f"fd00:10::{end}") for end in ("254", "1"))
# Sockets that read what comes with all that can be asked about it; and no frame can move the host's MAC address.
SERVER = """
import socket, threading
def read(one):
    while True:
        try: one.recvmsg(65536, 65536)
        except OSError: pass
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 90))
for option in (49, 51, 53, 56, 58, 60, 66): udp.setsockopt(41, option, 1)
for option in (2, 6, 7, 8, 12, 13): udp.setsockopt(0, option, 1)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
every = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
tcp.bind(("::", 80)); tcp.listen()
for one in (udp, raw, raw6, every): threading.Thread(target=read, args=(one,)).start()
print("ready", flush=True)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(image=find_image(variant="kasan"), root="host", memory_mib=512, boot_timeout_s=60) as lab:
        yield lab


class Wire:
    """Sends frames to the guest, no faster than it takes them from the link."""

    def __init__(self, lab: Lab, seed: int) -> None:
        device = lab.namespaces.device
        self._socket = lab.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((device, 0))
        mine, theirs = (
            re.findall(r"link/ether (\S+)", run(["ip", "link", "show", name]).stdout)[0]
            for run, name in ((lab.run, device), (lab.guest.run, "vec0"))
        )
        lab.guest.run(["ip", "neigh", "replace", "192.168.10.254", "lladdr", mine, "dev", "vec0", "nud", "permanent"])
        guest, host = (bytes.fromhex(address.replace(":", "")) for address in (theirs, mine))
        self._frames = Frames(seed, guest, host, (HOST4, GUEST4), (HOST6, GUEST6))
        self._taken = lab.probe("eth_type_trans", occurrence=Occurrence(every=AHEAD))
        self.sent = 0

    def send(self, count: int) -> None:
        """Send so many, and wait until the guest has taken them from the link."""
        for _ in range(count):
            self._socket.send(self._frames.next())
            self.sent += 1
            if self.sent % AHEAD == 0:
                with contextlib.suppress(Timeout):  # what the guest itself receives besides is counted too
                    self._taken.take(1, timeout_s=0.5)
        self._taken.take_all()

    def close(self) -> None:
        self._taken.close()
        self._socket.close()


def available_mib(lab: Lab) -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", lab.guest.run(["cat", "/proc/meminfo"]).stdout, re.MULTILINE)
    assert found
    return int(found[1]) >> 10


def decide(held: HeldPacket, chance: random.Random) -> None:
    """Change a packet to something else, or not, and let it go or not."""
    try:
        for _ in range(chance.randrange(3)):
            with contextlib.suppress(PacketError):  # it is no packet then, or not one that may be here
                chance.choice((
                    lambda: held.edit(lambda _: chance.randbytes(chance.randrange(1200))),
                    lambda: held.edit(lambda layers: _damage(layers, chance), fix=False),
                    held.revert,
                ))()  # fmt: skip
        chance.choice((held.release, held.release, held.drop, held.duplicate))()
    except PacketGone:
        pass


def _damage(layers: object, chance: random.Random) -> object:
    """Return other bytes, as long as before, fewer, or more."""
    from scapy.packet import Raw  # noqa: PLC0415

    data = bytearray(bytes(layers))  # type: ignore[call-overload]
    for _ in range(chance.randrange(4) if data else 0):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return Raw(
        bytes(data[: chance.choice((len(data), chance.randrange(len(data) + 1)))])
        + chance.randbytes(chance.randrange(3))
    )


def accounted_for(verdict: str, counts: Counts) -> bool:
    """Whether each packet that came has met with something, and what was held has gone."""
    wanted = counts.arrived - counts.passed
    match verdict.split(maxsplit=1)[0]:
        case "trace" | "follow":
            return wanted == counts.traced
        case "drop":
            return wanted == counts.dropped
        case "duplicate":
            return counts.duplicated <= 2 * wanted
    return wanted == counts.held and counts.held + counts.duplicated == counts.released + counts.dropped


def through(
    lab: Lab, wire: Wire, count: int, function: str, verdict: str, chance: random.Random, scratch: Path
) -> Counts:
    """Send frames with a verdict in force, and return what became of the packets."""
    if verdict == "hold":
        with lab.hold(function) as held:
            for _ in range(0, count, AHEAD):
                wire.send(AHEAD)
                for packet in held.take_all():
                    decide(packet, chance)
        return held.counts
    follows = verdict == "follow"
    tracing = lab.trace(to=scratch / "trace") if follows else contextlib.nullcontext()
    with tracing, contextlib.closing(lab.rule(f"{function} = {'trace' if follows else verdict}")) as running:
        wire.send(count)
    scratch.joinpath("trace").unlink(missing_ok=True)
    return running.armed.counts


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_malformed_packets(lab: Lab, tmp_path: Path) -> None:
    seed = int(os.environ.get("SKBLAB_MALFORMED_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    with lab.guest.popen(["python3", "-c", SERVER], stdout=-1) as server:
        assert server.stdout
        assert server.stdout.readline()
        wire = Wire(lab, seed)
        known = [name for name in CONTRACTS if lab.image.functions.lookup(name)]
        cells = [(name, verdict) for name in known for verdict in VERDICTS]
        chance.shuffle(cells)
        for number, (function, verdict) in enumerate(cells):
            wire_to = FRAMES * (number + 1) // len(cells)
            counts = through(lab, wire, wire_to - wire.sent, function, verdict, chance, tmp_path)
            assert accounted_for(verdict, counts), (seed, function, verdict, counts)
            if number % LOOK_AFTER == 0:  # what a cell has used it has given back
                assert available_mib(lab) > LEAST_MIB, (seed, function, verdict, counts)
        wire.close()
        server.kill()
    assert lab.agent.channel.held == lab.agent.channel.probes == 0, seed
    assert lab.run(["ping", "-c", "3", "-i", "0.01", "-W", "5", "guest"], timeout_s=20).returncode == 0, seed
