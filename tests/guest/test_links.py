"""Several links, several guests on one switch, a guest as a router, with the kernel's and the tools' features."""

import json
import os
from collections.abc import Iterator

import pytest

from skblab.errors import NoSuchLab, UsageError
from skblab.image.image import Image
from skblab.image.recipe import SERIES
from skblab.lab import Lab
from support import SKBLAB, eventually_nothing, remains, skblab

SECOND_NET = ("guest=192.168.20.1/24", "host=192.168.20.254/24", "guest=fd00:20::1/64", "host=fd00:20::254/64")


def ping(lab: Lab, *words: str) -> tuple[int, float]:
    """Return how many answers came to one ping, and after how many ms the last one did."""
    said = lab.run(["ping", "-n", "-W", "3", "-c", "1", *words]).stdout
    return said.count("bytes from"), float(said.rpartition("time=")[2].split()[0]) if "time=" in said else 0.0


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    before = remains()
    yield
    assert eventually_nothing(before) == []


@pytest.mark.parametrize("kinds", [("tap", "veth"), ("veth", "tap")])
def test_two_links(every_image: Image, kinds: tuple[str, str]) -> None:
    with Lab(image=every_image, link=[kinds[0], f"wan,{kinds[1]}"], root="host") as lab:
        devices = json.loads(lab.run(["ip", "-j", "address"]).stdout)
        assert {"skb0", "wan"} <= {one["ifname"] for one in devices}
        for address in ("guest", "192.168.11.1", "fd00:11::1"):
            assert ping(lab, address)[0] == 1
        with lab.probe("icmp_rcv") as probe:
            ping(lab, "192.168.11.1")
            (hit,) = probe.take(1)
            assert hit.packet.source == "192.168.11.254"
        shown = json.loads(lab.guest.run(["ip", "-j", "-4", "address", "show", "vec1"], check=True).stdout)
        assert shown[0]["addr_info"][0]["local"] == "192.168.11.1"


def test_addresses_of_ones_own(image: Image) -> None:
    name = f"addressed-{os.getpid()}"
    with Lab(name, image=image, link=",".join(SECOND_NET)) as lab:
        assert lab.run(["getent", "ahostsv4", "guest"]).stdout.startswith("192.168.20.1 ")
        assert ping(lab, "guest")[0] == ping(lab, "fd00:20::1")[0] == 1
        lab.keep()
    done = skblab("ping", "--lab", name, "--holds", "0.1", "--json")
    assert json.loads(done.stdout)["stops"][0]["packet"]["source"] == "192.168.20.254"
    assert skblab("down", name).returncode == 0


@pytest.fixture
def names(every_image: Image) -> Iterator[tuple[str, str]]:
    """Two labs that are up, each with a net of its own."""
    first, second = (f"{name}-{os.getpid()}" for name in ("lan", "wan"))
    with Lab(first, image=every_image, root="host") as lab:
        lab.keep()
    with Lab(second, image=every_image, link=",".join(SECOND_NET), root="host") as lab:
        lab.keep()
    yield first, second
    for name in (first, second):
        skblab("down", name)  # one of them may be down: what stays is looked for behind all


def test_several_guests_on_one_switch(names: tuple[str, str], every_image: Image) -> None:
    lan, _ = names
    with Lab.join(lan) as switch, Lab("other", image=every_image, link=f"on={lan}", root="host") as other:
        assert ping(switch, "guest")[0] == ping(switch, "other")[0] == ping(switch, "fd00:10::2")[0] == 1
        assert ping(switch, "host")[0] == 1
        between = ["ping", "-n", "-c", "1", "-W", "3", "192.168.10.2"]
        with other.probe("icmp_rcv") as probe:
            assert switch.guest.run(between).returncode == 0
            (hit,) = probe.take(1)
            assert hit.packet.source == "192.168.10.1"
        with Lab("third", image=every_image, link=f"on={lan},veth,guest=192.168.10.77/24"):
            assert ping(switch, "third")[0] == ping(switch, "192.168.10.77")[0] == 1
        assert ping(switch, "other")[0] == 1
    with Lab.join(lan) as switch:
        assert ping(switch, "guest")[0] == 1


def test_a_router_between_two_hosts(names: tuple[str, str], every_image: Image) -> None:
    """A router with a packet filter and a slow line, and with rules."""
    lan, wan = names
    with Lab.join(lan) as near, Lab.join(wan) as far, \
         Lab(image=every_image, link=[f"on={lan}", f"on={wan}"], root="host") as router:  # fmt: skip

        def in_router(words: str) -> None:
            router.guest.run(["sh", "-ec", words], check=True)

        in_router("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        near.run(["ip", "route", "add", "192.168.20.0/24", "via", "192.168.10.2"])
        far.run(["ip", "route", "add", "192.168.10.0/24", "via", "192.168.20.2"])
        near.run(["ip", "route", "add", "fd00:20::/64", "via", "fd00:10::2"])
        far.run(["ip", "route", "add", "fd00:10::/64", "via", "fd00:20::2"])
        assert ping(near, "192.168.20.254")[0] == ping(near, "fd00:20::254")[0] == 1
        with router.rule("ip_output = delay 120ms"):
            answers, took_ms = ping(near, "192.168.20.254")
        assert answers == 1
        assert took_ms >= 240
        in_router("tc qdisc add dev vec1 root netem delay 80ms")
        assert ping(near, "192.168.20.254")[1] >= 80
        in_router("tc qdisc del dev vec1 root")
        in_router('nft add table ip t; nft add chain ip t f "{ type filter hook forward priority 0; }"; '
                  "nft add rule ip t f icmp type echo-request counter drop")  # fmt: skip
        assert ping(near, "192.168.20.254", "-W", "0.3")[0] == 0
        assert "packets 1 " in router.guest.run(["nft", "list", "ruleset"]).stdout
        in_router("nft flush ruleset")
        in_router("nft add table ip n; nft add chain ip n p '{ type nat hook postrouting priority 100; }'; "
                  "nft add rule ip n p oifname vec1 masquerade")  # fmt: skip
        with far.probe("icmp_rcv") as probe:
            assert ping(near, "192.168.20.1")[0] == 1
            (hit,) = probe.take(1)
            assert hit.packet.source == "192.168.20.2"


def test_a_switch_that_goes_away(names: tuple[str, str], image: Image) -> None:
    lan, wan = names
    with Lab(image=image, link=[f"on={lan}", f"on={wan}"], root="host") as router, Lab.join(wan) as far:
        assert skblab("down", lan).returncode == 0
        assert ping(far, "192.168.20.2")[0] == 1
        assert router.guest.alive


def test_what_cannot_be_plugged(image: Image) -> None:
    with pytest.raises(NoSuchLab, match="no lab named 'nobody'"), Lab(image=image, link="on=nobody"):
        pass
    name = f"plug-{os.getpid()}"
    with Lab(name, image=image) as lab:
        lab.keep()
    with Lab(f"plugged-{name}", image=image, link=f"on={name}") as lab:
        lab.keep()
    try:
        with pytest.raises(UsageError, match="no link of its own"), Lab(image=image, link=f"on=plugged-{name}"):
            pass
        plugged, ping = f"plugged-{name}", ("ping", "-n", "-c1", "-W2", f"plugged-{name}")
        rule = ("-r", "icmp_rcv = trace if icmp[icmptype] == icmp-echo")
        for client in (ping, (*SKBLAB, "exec", name, "--", *ping), (*SKBLAB, "exec", plugged, "--", *ping)):
            done = skblab("run", "--lab", plugged, *rule, "--", *client)
            assert "1 received" in done.stdout, done.stderr
            assert "arrived 1, traced 1" in done.stderr
        assert "1 received" in skblab("run", "--lab", name, "--", *SKBLAB, "exec", name, "--", *ping).stdout
        with Lab(image=image) as other:
            other.keep()
        done = skblab("run", "--lab", name, "--", *SKBLAB, "exec", other.name, "--", "true")
        assert skblab("down", other.name).returncode == 0
        assert "a command inside one lab cannot enter another one" in done.stderr
        assert done.returncode == 126
        done = skblab("ping", "--link", f"on={name}", "--holds", "0.1")
        assert "has no host side of its own" in done.stderr
    finally:
        assert skblab("down", f"plugged-{name}").returncode == 0
        assert skblab("down", name).returncode == 0


# What ethtool -i, -c, -g and -S ask (include/uapi/linux/ethtool.h); each has room for more than the answer.
ETHTOOL = """
import ctypes, fcntl, socket, struct
SIOCETHTOOL = 0x8946
for command in (0x03, 0x0E, 0x10, 0x1D):
    answer = ctypes.create_string_buffer(struct.pack("=II", command, 0), 4096)
    request = struct.pack("16sP16x", b"vec0", ctypes.addressof(answer))
    with socket.socket() as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)
"""


@pytest.mark.parametrize("kind", ["tap", "veth"])
def test_a_links_driver_is_asked_everything(every_image: Image, kind: str) -> None:
    with Lab(image=every_image, root="host", link=kind) as lab:
        for state in ("up", "down", "up"):
            lab.guest.run(["ip", "link", "set", "vec0", state], check=True)
            lab.guest.run(["python3", "-c", ETHTOOL], check=True)
        assert ping(lab, "guest")[0] == 1


STEPS = (
    "ip link set vec0 down; ip link set vec0 up",
    "ip link set vec0 down",  # in one command, and in two
    "ip link set vec0 up",
    "ip link set vec0 down; ip link set vec0 address 02:11:22:33:44:55; ip link set vec0 up",
    "ip link set vec0 down; ip link set vec0 name lan0; ip link set lan0 up",
    "ip netns add x; ip link set lan0 netns x; ip -n x addr add 192.168.10.1/24 dev lan0; ip -n x link set lan0 up",
    "ip -n x link set lan0 netns 1; ip addr add 192.168.10.1/24 dev lan0; ip link set lan0 up; ip netns del x",
)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("link", ["tap", "veth"])
def test_a_link_goes_down_moves_and_comes_back(series: str, link: str) -> None:
    with Lab(series=series, root="host", link=link) as lab:
        for step in STEPS:
            done = lab.guest.run(["sh", "-ec", step], timeout_s=20)
            assert done.returncode == 0, (step, done.stderr)
            assert lab.run(["ip", "neigh", "flush", "all"]).returncode == 0  # the guest's other MAC is not announced
            answered = lab.run(["ping", "-c2", "-i0.2", "-W1", "guest"], timeout_s=20).returncode == 0
            assert answered is not step.endswith("down"), step
