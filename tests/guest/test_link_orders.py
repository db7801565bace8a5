"""A link is taken down, up, renamed, moved and changed in any order that hypothesis generates, under traffic.

Configured again it answers; and the file that the driver opens again is the link, and no other.
"""

import logging
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fuzz import EXAMPLES
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import open_files

log = logging.getLogger(__name__)

KINDS = ("tap", "veth")
NAMES = st.sampled_from(["lan0", "eth0", "a-very-long-one", 'a"<é'])
MACS = st.sampled_from(["02:11:22:33:44:55", "02:00:00:00:00:01", "fe:ff:ff:ff:ff:fe"])
MTUS = st.sampled_from([1280, 1499, 1500, 1501, 4000, 9000])
QDISCS = st.sampled_from(["pfifo limit 3", "pfifo_fast", "fq_codel", "netem delay 1ms", "noqueue"])
LINKS = st.sampled_from([0, 1])


@dataclass
class Link:
    """One of the guest's links, as the commands have left it."""

    number: int
    name: str = field(init=False)
    up: bool = True
    away: bool = False

    def __post_init__(self) -> None:
        self.name = self.first_name

    @property
    def first_name(self) -> str:
        return f"vec{self.number}"

    @property
    def ip(self) -> list[str]:
        return ["ip", "-n", "x"] if self.away else ["ip"]


class Orders(RuleBasedStateMachine):
    """Commands about the links of one lab, which all machines share."""

    lab: Lab
    first_files: dict[int, str]
    first_counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.links = [Link(number) for number in range(len(KINDS))]
        self.clients: list[process.Client] = []

    def say(self, link: Link, *words: str) -> bool:
        done = self.lab.guest.run([*link.ip, *words], timeout_s=20)
        if done.returncode:  # hypothesis repeats what failed, on links that the failure has changed
            log.warning("%s: %s: %s", link, words, done.stderr)
        return done.returncode == 0

    def set(self, number: int, *words: str) -> bool:
        link = self.links[number]
        return self.say(link, "link", "set", "dev", link.name, *words)

    @initialize()
    def traffic(self) -> None:
        """Pings run all the time, with packets of each size."""
        self.clients = [
            self.lab.popen(
                ["ping", "-q", "-n", "-i", "0.01", "-s", str(size), f"192.168.{net}.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for net, size in ((10, 56), (11, 3000))
        ]

    @rule(number=LINKS)
    def down(self, number: int) -> None:
        assert self.set(number, "down")
        self.links[number].up = False

    @rule(number=LINKS)
    def bring_up(self, number: int) -> None:
        assert self.set(number, "up")
        self.links[number].up = True

    @rule(number=LINKS, name=NAMES)
    def rename(self, number: int, name: str) -> None:
        """Before 6.2 not while it is up (net/core/dev.c dev_change_name()), and not to the other's name.

        Of another namespace neither: one of them will not come back.
        """
        link, other = self.links[number], self.links[1 - number]
        if link.away != other.away and name == other.name:
            return
        if self.set(number, "name", name):
            link.name = name
        else:
            assert link.up or name in {link.name, other.name}

    @rule(number=LINKS, mac=MACS)
    def another_mac(self, number: int, mac: str) -> None:
        """Not while it is up (net/ethernet/eth.c eth_prepare_mac_addr_change())."""
        assert self.set(number, "address", mac) or self.links[number].up

    @rule(number=LINKS, mtu=MTUS)
    def another_mtu(self, number: int, mtu: int) -> None:
        assert self.set(number, "mtu", str(mtu))

    @rule(number=LINKS)
    def move(self, number: int) -> None:
        link = self.links[number]
        assert self.set(number, "netns", "1" if link.away else "x")
        link.away, link.up = not link.away, False

    @rule(number=LINKS, discipline=QDISCS)
    def another_qdisc(self, number: int, discipline: str) -> None:
        link = self.links[number]
        words = ["tc", *link.ip[1:], "qdisc", "replace", "dev", link.name, "root", *discipline.split()]
        self.lab.guest.run(words, timeout_s=20)  # the kernel need not have it

    @rule(number=LINKS, what=st.sampled_from(["promisc", "allmulticast"]), how=st.sampled_from(["on", "off"]))
    def another_mode(self, number: int, what: str, how: str) -> None:
        assert self.set(number, what, how)

    @rule(number=LINKS, length=st.sampled_from([0, 1, 1000]))
    def another_queue_length(self, number: int, length: int) -> None:
        assert self.set(number, "txqueuelen", str(length))

    @rule(number=LINKS)
    @precondition(lambda self: all(link.up and not link.away for link in self.links))
    def down_and_up_at_once(self, number: int) -> None:
        name = self.links[number].name
        assert (
            self.lab.guest.run(["sh", "-ec", 'ip link set "$1" down; ip link set "$1" up', "-", name]).returncode == 0
        )

    @invariant()
    def each_is_at_its_own_file(self) -> None:
        """The kernel keeps every file that it had, at the same number if it was given one; of a link's file it has one
        more while the link is up.
        """
        files = open_files(self.lab.guest.pid)
        counts = Counter(files.values())
        for link, descriptor in zip(self.links, given(self.lab), strict=True):
            assert files[descriptor] == self.first_files[descriptor]
            assert counts[files[descriptor]] == 1 + link.up
        links = {files[descriptor] for descriptor in given(self.lab)}
        assert set(self.first_counts - counts) <= links

    def teardown(self) -> None:
        for client in self.clients:
            process.end(client)
        for link in self.links:
            self.configure(link)
        for net in (10, 11):
            for address in (f"192.168.{net}.1", f"fd00:{net}::1"):
                done = self.lab.run(["ping", "-n", "-c", "1", "-W", "3", "-M", "do", "-s", "1400", address])
                assert done.returncode == 0, (address, done.stdout)
        assert self.lab.guest.alive
        assert not self.lab.new_complaints

    def configure(self, link: Link) -> None:
        if link.away:
            assert self.say(link, "link", "set", "dev", link.name, "netns", "1")
            link.away = False
        net = 10 + link.number
        assert self.say(link, "link", "set", "dev", link.name, "down")
        assert self.say(link, "link", "set", "dev", link.name, "name", link.first_name)
        link.name = link.first_name
        self.lab.guest.run(["tc", "qdisc", "del", "dev", link.name, "root"])
        for words in (
            (
                "link",
                "set",
                "dev",
                link.name,
                "mtu",
                "1500",
                "txqueuelen",
                "1000",
                "promisc",
                "off",
                "allmulticast",
                "off",
            ),
            ("link", "set", "dev", link.name, "up"),
            ("addr", "replace", f"192.168.{net}.1/24", "dev", link.name),
            ("addr", "replace", f"fd00:{net}::1/64", "dev", link.name, "nodad"),
        ):
            assert self.say(link, *words), words
        link.up = True
        assert self.lab.run(["ip", "neigh", "flush", "all"]).returncode == 0  # the guest's other MAC is not announced


def given(lab: Lab) -> list[int]:
    """Return the descriptors that the kernel was given for its links, by its command line."""
    words = Path(f"/proc/{lab.guest.pid}/cmdline").read_bytes().decode().split("\0")
    return [int(word.partition("fd=")[2].split(",")[0]) for word in words if word.startswith("vec")]


def lasting_files(lab: Lab) -> dict[int, str]:
    """Return those that no command in the guest has opened for itself: its socket may outlive it by a moment."""
    files = open_files(lab.guest.pid)
    for _ in range(3):
        assert lab.guest.run(["true"]).returncode == 0
        again = open_files(lab.guest.pid)
        files = {number: file for number, file in files.items() if again.get(number) == file}
    return files


@pytest.fixture(scope="module")
def lab(every_image: Image) -> Iterator[Lab]:
    links = [KINDS[0], f"wan,{KINDS[1]}"]
    with Lab(image=every_image, link=links, root="host", memory_mib=128) as lab:
        for device in ("skb0", "wan"):
            assert lab.run(["ip", "link", "set", device, "mtu", "9000"]).returncode == 0
        assert lab.guest.run(["ip", "netns", "add", "x"]).returncode == 0
        yield lab


def test_any_order(lab: Lab) -> None:
    from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415

    Orders.lab = lab
    Orders.first_files = lasting_files(lab)
    Orders.first_counts = Counter(Orders.first_files.values())
    run_state_machine_as_test(
        Orders,
        settings=settings(
            max_examples=max(EXAMPLES // 25, 1), stateful_step_count=12, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
