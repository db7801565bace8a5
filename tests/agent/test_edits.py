"""What an edit leaves behind: nothing that was noted down of the packet as it was, or it is refused with the reason."""

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import HBHOptUnknown, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from skblab.agent.functions import NO_PACKETS
from skblab.agent.packets import HeldPacket
from skblab.errors import PacketError, UnsupportedVerdict
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from support import counters, skblab

GUEST4, HOST4, GUEST6, HOST6 = "192.168.10.1", "192.168.10.254", "fd00:10::1", "fd00:10::254"
ECHO, REPLY = "icmp[icmptype] == icmp-echo", "icmp[icmptype] == icmp-echoreply"
SOURCE_PORT = 0x0F00  # read as an extension header it is one of 8 bytes
RECORD_ROUTE = b"\x01" * 8 + b"\x07\x1f\x04" + bytes(29)
# Answers a datagram with how long it is, and with all the extension headers that it came with.
SERVER6 = """
import socket
one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for option in (53, 56, 58): one.setsockopt(41, option, 1)
one.bind(("::", 90))
print("ready", flush=True)
while True:
    data, told, _, sender = one.recvmsg(65536, 65536)
    kinds = sorted(kind for _, kind, _ in told if kind != 50)
    one.sendto(f"{len(data)} {kinds}".encode(), sender)
"""


@pytest.fixture(scope="module")
def kasan() -> Iterator[Lab]:
    """A guest that notices when it reads or writes where it should not."""
    with Lab(image=find_image(variant="kasan"), root="host", memory_mib=384, boot_timeout_s=60) as lab:
        yield lab


def ping(lab: Lab) -> bool:
    return lab.run(["ping", "-n", "-c", "1", "-W", "5", GUEST4], timeout_s=20).returncode == 0


def with_options() -> bytes:
    return bytes(IP(src=HOST4, dst=GUEST4, options=[IPOption(RECORD_ROUTE)]) / ICMP(id=5, seq=1) / Raw(b"\xff" * 200))


def without_options(layers: IP) -> IP:
    return IP(src=layers.src, dst=layers.dst) / layers[ICMP]


@contextlib.contextmanager
def held_with_options(lab: Lab, function: str, wanted: str) -> Iterator[HeldPacket]:
    """Yield an echo, or its answer, that has come to a function with options in its header."""
    with lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as client, lab.hold(function, wanted) as held:
        client.sendto(with_options(), (GUEST4, 0))
        (packet,) = held.take(1)
        yield packet


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("ip_rcv", ECHO),
        ("ip_local_deliver", ECHO),
        ("icmp_rcv", ECHO),
        ("ip_output", REPLY),
        ("__dev_queue_xmit", REPLY),
    ],
)
def test_options_that_are_taken_away_are_forgotten(kasan: Lab, function: str, wanted: str) -> None:
    """What was noted of them said where to write in a header that is 40 bytes shorter (net/ipv4/ip_options.c)."""
    with kasan.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as answers:
        answers.settimeout(5)
        with held_with_options(kasan, function, wanted) as packet:
            assert "ip.ihl" in packet.edit(without_options)
            packet.release()
            answer = IP(answers.recv(2000))
    assert (answer.ihl, answer[ICMP].type, bytes(answer[Raw])) == (5, 0, b"\xff" * 200)


@pytest.mark.parametrize("function", ["ip_local_deliver", "icmp_rcv"])
def test_options_that_were_parsed_do_not_change(kasan: Lab, function: str) -> None:
    with held_with_options(kasan, function, ECHO) as packet:
        with pytest.raises(PacketError, match="IP options were parsed before") as caught:
            packet.edit(lambda layers: layers.setfieldval("options", [IPOption(b"\x44\x0c\x05\x00" + bytes(8))]))
        assert "ip_rcv" in caught.value.hint
        assert packet.packet.data == packet.original.data
        packet.edit(without_options)
        with pytest.raises(PacketError, match="IP options were parsed before"):
            packet.revert()


def test_options_change_where_nobody_has_parsed_them(kasan: Lab) -> None:
    with held_with_options(kasan, "ip_rcv", ECHO) as packet:
        assert packet.edit(lambda layers: layers.setfieldval("options", [IPOption(b"\x44\x0c\x05\x00" + bytes(8))]))


@pytest.mark.parametrize(
    ("field", "value"), [("ihl", 15), ("ihl", 4), ("version", 6), ("len", 1400), ("len", 19)], ids=str
)
@pytest.mark.parametrize("function", ["ip_local_deliver", "ip_local_deliver_finish", "icmp_rcv", "ip_output"])
def test_a_header_stays_one_that_has_been_checked(kasan: Lab, function: str, field: str, value: int) -> None:
    with kasan.hold(function, "icmp") as held:
        client = kasan.popen(["ping", "-n", "-c", "1", "-W", "5", GUEST4], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        with pytest.raises(PacketError, match=r"relies here on what it has checked|IP options were parsed before"):
            packet.edit(lambda layers: layers.setfieldval(field, value))
        assert packet.packet.data == packet.original.data
    assert client.wait(10) == 0


def test_nothing_has_been_checked_yet_at_the_first_function(kasan: Lab) -> None:
    with kasan.hold("ip_rcv", "icmp") as held:
        client = kasan.popen(["ping", "-n", "-c", "1", "-W", "0.3", GUEST4], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        packet.edit(lambda layers: layers.setfieldval("ihl", 15))
        packet.release()
        assert client.wait(10) == 1
    assert ping(kasan)


def test_extension_headers_that_are_taken_away_are_forgotten(kasan: Lab) -> None:
    """A socket that asks for them was given whatever lay where they had been (net/ipv6/datagram.c)."""
    sent = (
        IPv6(src=HOST6, dst=GUEST6)
        / IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x1E, optdata=bytes(200))])
        / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=bytes(60))])
        / UDP(sport=SOURCE_PORT, dport=90)
        / Raw(bytes(30))
    )
    kasan.run(["ping", "-6", "-n", "-c", "1", "-W", "5", GUEST6], timeout_s=20)
    mac = re.findall(r"lladdr (\S+)", kasan.run(["ip", "neigh", "show", GUEST6]).stdout)[0]
    to = (kasan.namespaces.device, 0x86DD, 0, 0, bytes.fromhex(mac.replace(":", "")))
    with (
        kasan.guest.popen(["python3", "-c", SERVER6], stdout=subprocess.PIPE) as server,
        kasan.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as wire,
        kasan.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        assert server.stdout
        server.stdout.readline()
        client.bind((HOST6, SOURCE_PORT))
        client.settimeout(5)
        wire.sendto(bytes(sent), to)
        assert client.recv(100) == b"30 [54, 59]"
        with kasan.hold("udpv6_rcv") as held:
            wire.sendto(bytes(sent), to)
            (packet,) = held.take(1)
            with pytest.raises(PacketError, match="extension headers were parsed before"):
                packet.edit(lambda layers: layers[IPv6ExtHdrDestOpt].setfieldval("options", []))
            packet.edit(
                lambda layers: IPv6(src=layers.src, dst=layers.dst) / UDP(sport=SOURCE_PORT, dport=90) / Raw(bytes(400))
            )
            packet.release()
            assert client.recv(100) == b"400 []"
        server.kill()


@pytest.mark.parametrize("function", ["ip_finish_output2", "__dev_queue_xmit"])
@pytest.mark.parametrize("link", ["tap", "veth"])
def test_an_edit_fits_the_device(every_image: Image, link: str, function: str) -> None:
    with Lab(image=every_image, link=link) as lab:
        check_an_edit_fits_the_device(lab, function)


def test_an_edit_fits_the_device_under_kasan(kasan: Lab) -> None:
    check_an_edit_fits_the_device(kasan, "ip_finish_output2")


def check_an_edit_fits_the_device(lab: Lab, function: str) -> None:
    with lab.hold(function, REPLY) as held:
        client = lab.popen(["ping", "-n", "-c", "1", "-W", "5", "-s", "1000", GUEST4], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        assert packet.edit(lambda _: bytes(1472))
        with pytest.raises(PacketError, match="longer than its device takes") as caught:
            packet.edit(lambda _: bytes(1473))
        assert caught.value.found == "1501 bytes; the MTU of vec0 is 1500"
        packet.revert()
        packet.release()
        assert client.wait(10) == 0
    with lab.hold("ip_output", REPLY) as held:  # here it is fragmented afterwards
        client = lab.popen(["ping", "-n", "-c", "1", "-W", "5", GUEST4], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        packet.edit(lambda _: bytes(4000))
        packet.release()
        assert client.wait(10) == 0
    assert ping(lab)


@pytest.fixture(scope="module")
def serving(image: Image) -> Iterator[Lab]:
    with Lab(
        image=image, root="host", memory_mib=128, commands=["python3 -m http.server 80 --directory /usr/bin"]
    ) as lab:
        yield lab


def test_what_a_gso_packet_says_is_edited(serving: Lab, tmp_path: Path) -> None:
    """Its segments all say so: the client's kernel counts them by their type of service, and the file is whole."""
    curl = ["curl", "-s", "-o", str(tmp_path / "got"), "-m", "20", f"http://{GUEST4}/find"]
    serving.run(["nft", "add table ip tos; add chain ip tos in { type filter hook input priority 0; }"])
    for tos in ("1", "0"):
        serving.run(["nft", f"add rule ip tos in tcp sport 80 ip dscp {tos} counter"])
    said: list[str] = []
    with serving.rule("ip_output = edit ip.tos=4 if tcp src port 80", lambda hit: said.append(hit.verdict)) as running:
        assert serving.run(curl, timeout_s=30).returncode == 0
        # Before the rule goes, for the connection's last packets may come after it.
        ruleset = serving.run(["nft", "list ruleset"]).stdout
    counted = [int(one) for one in re.findall(r"packets (\d+)", ruleset)]
    serving.run(["nft", "delete table ip tos"])
    assert (tmp_path / "got").read_bytes() == Path("/usr/bin/find").read_bytes()
    assert running.unedited == 0
    assert counted[0] > running.armed.counts.held  # of packets that the guest sent, some came as several
    assert counted[1] == 0
    assert all(re.fullmatch(r"edit ip\.tos: 0 -> 4, ip\.chksum: \d+ -> \d+", one) for one in said)


def test_the_bytes_of_a_gso_packet_are_edited(serving: Lab, tmp_path: Path) -> None:
    curl = ["curl", "-s", "-o", str(tmp_path / "got"), "-m", "20", f"http://{GUEST4}/find"]
    with serving.hold("ip_output", "tcp src port 80 and ip[2:2] > 3000") as held:
        client = serving.popen(curl)
        (packet,) = held.take(1)
        whole = packet.packet.data
        assert packet.edit(lambda layers: layers[Raw].load[:-4] + b"END!").startswith("raw.load[")
        packet.release()
        held.close()
        assert client.wait(30) == 0
    got = (tmp_path / "got").read_bytes()
    at = Path("/usr/bin/find").read_bytes().index(whole[-400:-4]) + 396
    assert got[at : at + 4] == b"END!"
    assert got[:at] + whole[-4:] + got[at + 4 :] == Path("/usr/bin/find").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: bytes(layers[Raw].load) + b"more",
        lambda layers: layers[TCP].setfieldval("options", []),
        lambda layers: layers[TCP].setfieldval("dataofs", 5),
        lambda layers: layers.setfieldval("proto", 17),
        lambda layers: layers.setfieldval("flags", "MF"),
        lambda layers: layers[TCP].setfieldval("chksum", 1),
    ],
    ids=["longer", "no options", "another header", "another protocol", "a fragment", "a checksum of its own"],
)
def test_a_gso_packet_says_that_it_is_one_and_what_to_do(serving: Lab, change: Callable[[IP], object]) -> None:
    with serving.hold("ip_output", "tcp src port 80 and ip[2:2] > 3000") as held:
        client = serving.popen(["curl", "-s", "-o", "/dev/null", "-m", "20", f"http://{GUEST4}/find"])
        (packet,) = held.take(1)
        with pytest.raises(PacketError, match="this edit of a GSO packet is not sound") as caught:
            packet.edit(change)
        assert re.search(r"\d+ bytes, to be sent in segments of 14\d\d", caught.value.found)
        assert "gso_max_segs 1" in caught.value.hint
        assert packet.packet.data == packet.original.data
        held.close()
        assert client.wait(30) == 0


def test_without_gso_any_edit_is_sound(serving: Lab) -> None:
    assert serving.guest.run(["ip", "link", "set", "vec0", "gso_max_segs", "1"]).returncode == 0
    with serving.rule("ip_output = edit tcp.chksum=1 @1-5 if tcp and ip[2:2] > 200") as running:
        curl = ["curl", "-s", "-o", "/dev/null", "-m", "20", f"http://{GUEST4}/find"]
        assert serving.run(curl, timeout_s=30).returncode == 0
    assert serving.guest.run(["ip", "link", "set", "vec0", "gso_max_segs", "65535"]).returncode == 0
    assert running.unedited == 0
    assert running.armed.counts.held == 5


def test_a_first_fragment_is_edited_and_the_datagram_arrives_whole(serving: Lab) -> None:
    server = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("0.0.0.0", 2001))
print("ready", flush=True)
data, sender = one.recvfrom(65535)
one.sendto(b"%d %d" % (len(data), sum(data)), sender)
"""
    data = bytes(range(250)) * 12
    with (
        serving.guest.popen(["python3", "-c", server], stdout=subprocess.PIPE) as program,
        serving.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        serving.rule("ip_rcv = edit ip.tos=4,udp.sport=9 @1 if udp dst port 2001") as running,
    ):
        assert program.stdout
        program.stdout.readline()
        client.bind((HOST4, 9))
        client.settimeout(5)
        client.sendto(data, (GUEST4, 2001))
        assert client.recv(100) == b"%d %d" % (len(data), sum(data))
    assert (running.armed.counts.held, running.unedited) == (1, 0)


def test_a_fragmented_ping_says_the_number_it_was_given(every_image: Image) -> None:
    with Lab(image=every_image) as lab, lab.rule("ip_rcv = edit icmp.seq=77 @1 if icmp") as running:
        said = lab.run(["ping", "-n", "-c", "1", "-W", "5", "-s", "3000", GUEST4], timeout_s=20).stdout
    assert "3008 bytes from 192.168.10.1: icmp_seq=77" in said
    assert (running.armed.counts.held, running.unedited) == (1, 0)


@pytest.mark.parametrize("fix", [True, False])
def test_a_rule_without_fixes_breaks_checksums(serving: Lab, *, fix: bool) -> None:
    """Of a checksum that came whole, of one that is sent so, and of one that was left to the device."""
    word = "" if fix else " fix=False"
    with serving.rule(f"ip_rcv = edit raw.load=abcdefgh{word} @1 if {ECHO}"):
        done = serving.run(["ping", "-n", "-c", "1", "-W", "1", "-s", "8", GUEST4], timeout_s=20)
    assert done.returncode == (0 if fix else 1)
    wrong = counters(serving)["IcmpInCsumErrors"]  # of the client's kernel: ping itself looks at none
    with serving.rule(f"ip_output = edit raw.load=abcdefgh{word} @1 if {REPLY}"):
        serving.run(["ping", "-n", "-c", "1", "-W", "1", "-s", "8", GUEST4], timeout_s=20)
    assert counters(serving)["IcmpInCsumErrors"] == wrong + (not fix)
    wrong = counters(serving)["TcpInCsumErrors"]
    with serving.rule(f"__dev_queue_xmit = edit tcp.window=9999{word} @1 if tcp src port 80") as running:
        assert serving.run(["curl", "-s", "-o", "/dev/null", f"http://{GUEST4}/true"], timeout_s=20).returncode == 0
    assert running.unedited == 0
    assert counters(serving)["TcpInCsumErrors"] == wrong + (not fix)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("run",), ("edit failed, released as it was: no field icmp.gw in this packet", "released 1, unedited 1")),
        (("trace", "-q", "icmp"), ("icmp_rcv = edit icmp.gw=1.2.3.4: 1 unedited; no field icmp.gw in this packet",)),
    ],
)
def test_an_edit_that_failed_is_the_exit_status(command: tuple[str, ...], said: tuple[str, ...]) -> None:
    done = skblab(*command, "-r", "icmp_rcv = edit icmp.gw=1.2.3.4", "--", "ping", "-c1", "-W2", "guest")
    assert done.returncode == 1
    assert all(words in done.stderr for words in said), done.stderr


def test_an_edit_that_is_refused_leaves_no_thread(shared_lab: Lab) -> None:
    before = set(threading.enumerate())
    with pytest.raises(UnsupportedVerdict):
        shared_lab.rule("icmp_echo = edit ip.ttl=3")
    assert set(threading.enumerate()) - before == set()


def test_a_misspelt_field_is_said_before_anything_starts() -> None:
    done = skblab("run", "-r", "ip_rcv = edit icmp.sequ=3", "--", "true")
    assert done.returncode == 2
    assert "  ip_rcv = edit icmp.sequ=3\n                     ^\n" in done.stderr
    assert "is it seq?" in done.stderr


@pytest.mark.parametrize("function", ["kfree_skbmem", "__build_skb_around", "skb_free_head", "__copy_skb_header"])
@pytest.mark.parametrize("verdict", ["trace", "accept"])
def test_what_is_no_packet_is_not_looked_at(kasan: Lab, function: str, verdict: str) -> None:
    with pytest.raises(UnsupportedVerdict, match="has no packet to look at") as caught:
        kasan.rule(f"{function} = {verdict} if icmp")
    assert caught.value.found == NO_PACKETS[function]


def test_rules_look_at_packets_until_their_end(kasan: Lab) -> None:
    """From where it is whole to where it is freed, with a filter that reads it; KASAN would say so."""
    functions = ["skb_put", "skb_clone", "pskb_expand_head", "sock_wfree", "skb_release_head_state", "skb_release_data",
                 "consume_skb", "napi_consume_skb", "kfree_skb_list_reason", "skb_morph"]  # fmt: skip
    with contextlib.ExitStack() as stack:
        rules = [stack.enter_context(kasan.rule(f"{name} = trace if icmp")) for name in functions]
        for size in ("56", "4000"):
            assert kasan.run(["ping", "-n", "-c", "2", "-i", "0.1", "-s", size, GUEST4], timeout_s=20).returncode == 0
        met = [rule.armed.rule.function for rule in rules if rule.armed.counts.traced]
    assert {"skb_release_data", "skb_release_head_state", "consume_skb", "skb_morph"} <= {*met}
