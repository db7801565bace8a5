"""A developer's own driver and protocol: every verdict works there, and they are called as the stack would call them.

The driver complains where it is not, and a complaint fails the test that caused it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import UnsupportedVerdict
from skblab.image.members import members_of_module
from skblab.image.module import build_own
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.spec import LabSpec

OWN = Path(__file__).with_name("driver.c")
ADDRESS = "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 && ip addr add 10.8.0.1/24 dev eth0"
RECEIVER = """
#include <linux/module.h>
#include <linux/netdevice.h>
static int receive(struct sk_buff *skb, struct net_device *dev, struct packet_type *type, struct net_device *orig)
{ consume_skb(skb); return 0; }
struct packet_type only = { .func = receive };
static struct packet_type shared __used = { .func = receive };
MODULE_LICENSE("GPL");
"""
LOOKER = """
#include <linux/netdevice.h>
static int look(struct sk_buff *skb) { return skb->len; }
static struct { char before[offsetof(struct packet_type, func)]; int (*look)(struct sk_buff *skb);
	char behind[sizeof(struct packet_type) - offsetofend(struct packet_type, func)]; } shared __used = { .look = look };
"""
UP = "ip link set eth0 up && ip neigh replace 10.8.0.2 lladdr 02:00:00:00:00:09 dev eth0"
SEND = "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('skb0', 0)); s.send(bytes.fromhex("
FRAME = f"'ffffffffffff02000000000788b5{bytes(100).hex()}'))"


@pytest.fixture(scope="module", params=[("6.12", "default"), ("7.3", "default"), ("6.12", "kasan")], ids="-".join)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    series, variant = request.param
    image = find_image(series, variant)
    directory = tmp_path_factory.mktemp(f"own-{series}-{variant}")
    shutil.copy(OWN, directory)
    (directory / "Kbuild").write_text("obj-m := driver.o\n")
    (file,) = build_own(image.path, directory)
    with LabSpec(image=image, time="virtual", modules=[str(file)], memory_mib=384).start() as lab:
        assert lab.guest.run(["sh", "-c", f"{ADDRESS} && {UP}"]).returncode == 0
        yield lab


def parameter(lab: Lab, name: str, value: str = "") -> int:
    where = f"/sys/module/driver/parameters/{name}"
    return int(lab.guest.run(["sh", "-c", f"echo {value} >{where}; cat {where}" if value else f"cat {where}"]).stdout)


def send(lab: Lab, count: int) -> None:
    lab.guest.run(["ping", "-q", "-c", str(count), "-i", "0.1", "-W", "0.1", "10.8.0.2"])


@pytest.mark.parametrize(
    ("verdict", "sent"),
    [
        ("accept", 3), ("trace", 3), ("drop @2", 2), ("drop @2 if icmp", 2), ("delay 2s", 3), ("duplicate 2", 9),
        ("edit ip.ttl=3", 3), ("corrupt", 3), ("rate 1kbit", 3), ("hold 3 release reverse", 3), ("return 0 @1-2", 1),
        ("return -ENOBUFS", 0),
    ],
)  # fmt: skip
def test_every_verdict_at_a_drivers_own_function(lab: Lab, verdict: str, sent: int) -> None:
    before = parameter(lab, "sent")
    with lab.rule(f"own_xmit = {verdict}") as rule:
        send(lab, 3)
        lab.guest.run(["sleep", "3"])
        assert (rule.fired, rule.counts.arrived, rule.counts.handed_back) == (True, 3, 0)
    assert parameter(lab, "sent") - before == sent


@pytest.mark.parametrize(("verdict", "received"), [("trace", 1), ("drop", 0), ("delay 1s", 1), ("duplicate 3", 4)])
def test_a_protocols_own_function(lab: Lab, verdict: str, received: int) -> None:
    before = parameter(lab, "received")
    with lab.rule(f"own_rcv = {verdict}") as rule:
        assert lab.run(["python3", "-c", SEND + FRAME]).returncode == 0
        lab.guest.run(["sleep", "2"])
        assert rule.fired
    assert parameter(lab, "received") - before == received * 100


def test_a_driver_whose_device_is_down_is_not_called(lab: Lab) -> None:
    before = parameter(lab, "sent")
    with lab.hold("own_xmit", "icmp") as held:
        send(lab, 3)
        packets = held.take(3)
        lab.guest.run(["ip", "link", "set", "eth0", "down"])
        for packet in packets:
            packet.release()
        lab.guest.run(["sleep", "1"])
        assert (held.counts.released, held.counts.handed_back) == (3, 3)
        assert "3 freed: the function did not take them when they went on" in held.counts.caveats
    assert lab.guest.run(["sh", "-c", UP]).returncode == 0
    assert parameter(lab, "sent") == before


def test_a_driver_whose_queue_is_full_is_not_called(lab: Lab) -> None:
    before = parameter(lab, "sent")
    with lab.hold("own_xmit", "icmp") as held:
        send(lab, 3)
        packets = held.take(3)
        parameter(lab, "places", "2")
        for packet in packets:
            packet.release()
        lab.guest.run(["sleep", "1"])
        assert (held.counts.released, held.counts.handed_back) == (3, 1)
    assert parameter(lab, "sent") - before == 2
    parameter(lab, "places", "1000")


def test_where_copies_fill_a_drivers_queue_the_packet_waits_for_room(lab: Lab) -> None:
    before = parameter(lab, "sent")
    parameter(lab, "places", "3")
    with lab.rule("own_xmit = duplicate 5 @1 if icmp") as rule:
        send(lab, 1)
        assert (rule.counts.arrived, rule.counts.duplicated, rule.counts.handed_back) == (1, 5, 2)
        assert parameter(lab, "sent") - before == 3
        parameter(lab, "places", "1000")
        assert (rule.counts.arrived, rule.counts.passed) == (2, 1)
    assert parameter(lab, "sent") - before == 4


def test_variables_of_one_name_and_size_but_of_two_structures(tmp_path: Path) -> None:
    (tmp_path / "receiver.c").write_text(RECEIVER)
    (tmp_path / "looker.c").write_text(LOOKER)
    (tmp_path / "Kbuild").write_text("obj-m := two.o\ntwo-y := receiver.o looker.o\n")
    (file,) = build_own(find_image("6.12").path, tmp_path)
    assert list(members_of_module(file, {".text": 0x1000}).values()) == [("packet_type.func",)]


def test_a_function_that_no_member_points_to_has_no_contract(lab: Lab) -> None:
    with pytest.raises(UnsupportedVerdict, match="drop is not sound at __kfree_skb"):
        lab.rule("__kfree_skb = drop")
    with pytest.raises(UnsupportedVerdict, match="hands its packet back to its caller by returning 16"):
        lab.rule("own_xmit = return 16")
