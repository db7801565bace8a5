"""An edit changes the named fields' bytes, lengths and checksums that were right, and nothing else."""

import contextlib
import random
import struct
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPerror, IPOption
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6EchoRequest,
    ICMPv6ND_RA,
    ICMPv6NDOptRouteInfo,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layers
from scapy.packet import Padding, Raw

from agent.malformed import Frames
from skblab.checksum import add, ones_sum
from skblab.edit import WHOLE, Checksum, changing, corrupting, difference, edited, fault
from skblab.edit.layers import KINDS, Covered, chain, is_padding, parts_of
from skblab.edit.named import from_escapes, named_layers, to_escapes
from skblab.errors import PacketError, RuleError
from skblab.host import process
from skblab.packet import Packet
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6
from skblab.tui.layout import layout

A4, B4, C4, D4 = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
MAC = "02:00:00:00:00:01"
A6, B6, C6 = "fd00::1", "fd00::2", "fd00::3"
LENGTHS_AND_SUMS = {"len", "plen", "ihl", "dataofs", "chksum", "cksum"}


def of(layers: Layers) -> Packet:
    data = bytes(layers)
    return Packet(data, {4: ETH_P_IP, 6: ETH_P_IPV6}[data[0] >> 4])


def after(packet: Packet, *changes: tuple[str, str], fix: bool = True) -> Packet:
    return edited(packet, changing(changes), fix=fix).packet


def made_anew(data: bytes, protocol: int = ETH_P_IP) -> bytes:
    """Return a packet with every length and checksum computed by scapy."""
    layers = Packet(data, protocol).dissected()
    for layer in chain(layers):
        for name in LENGTHS_AND_SUMS & layer.fields.keys():
            layer.delfieldval(name)
    return bytes(layers)


WHOLE_PACKETS = {
    "udp": IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / b"hello",
    "tcp with options": IP(src=A4, dst=B4)
    / TCP(sport=1, dport=2, options=[("MSS", 1460), ("NOP", None), ("Timestamp", (1, 2))])
    / b"odd",
    "ip options": IP(src=A4, dst=B4, options=[IPOption(b"\x07\x07\x04" + bytes(4))]) / ICMP(id=5, seq=1) / b"data",
    "ipip": IP(src=A4, dst=B4, ttl=64) / IP(src=C4, dst=D4, ttl=50) / UDP(sport=1, dport=2) / b"hello",
    "gre": IP(src=A4, dst=B4) / GRE() / IP(src=C4, dst=D4) / TCP(sport=1, dport=2) / b"x",
    "vxlan": IP(src=A4, dst=B4) / UDP(dport=4789) / VXLAN(vni=7) / Ether(src=MAC, dst=MAC)
    / IP(src=C4, dst=D4) / ICMP() / b"in a frame",
    "icmp error": IP(src=A4, dst=B4) / ICMP(type=3, code=3) / IP(src=B4, dst=A4) / UDP(sport=9, dport=8) / b"quoted!!",
    "udp6": IPv6(src=A6, dst=B6) / UDP(sport=1, dport=2) / b"hello",
    "extension headers": IPv6(src=A6, dst=B6) / IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x1E, optdata=b"12")])
    / IPv6ExtHdrDestOpt() / TCP(sport=1, dport=2) / b"hello",
    "ping6": IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=7, seq=3, data=b"data"),
    "6in4": IP(src=A4, dst=B4) / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=7, seq=3, data=b"data"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE_PACKETS)
def test_what_was_right_stays_right_whatever_is_edited(name: str) -> None:
    """Each field of each layer, and payloads of other lengths: scapy would compute the same lengths and checksums."""
    packet = of(WHOLE_PACKETS[name])
    assert made_anew(packet.data, packet.protocol) == packet.data
    tried = 0
    for field, was in integers(packet):
        if field.partition(".")[2] in {*LENGTHS_AND_SUMS, "version", "proto", "nh", "type", "code", "frag", "flags"}:
            continue
        if field.endswith((".NextProtocol", "_present")):
            continue
        with contextlib.suppress(RuleError):
            changed = after(packet, (field, str(was ^ 1)))
            assert changed.data != packet.data
            assert made_anew(changed.data, packet.protocol) == changed.data, field
            tried += 1
    for payload in (b"", b"x", b"longer than it was before, and odd"):
        changed = with_payload(packet, payload)
        assert made_anew(changed.data, packet.protocol) == changed.data, payload
        tried += 1
    assert tried > 5


def with_payload(packet: Packet, payload: bytes) -> Packet:
    return edited(packet, lambda _: payload).packet


def integers(packet: Packet) -> Iterator[tuple[str, int]]:
    """Yield the fields that are numbers."""
    for name, layer in named_layers(packet.dissected()):
        for field, value in layer.fields.items():
            if isinstance(value, int):
                yield f"{name}.{field}", value


def frames(seed: int, count: int) -> Iterator[Packet]:
    """Yield packets that no honest sender sends."""
    source = Frames(seed, bytes(6), bytes(6), (bytes(4), bytes(4)), (bytes(16), bytes(16)))
    for _ in range(count):
        frame = source.next()
        yield Packet(frame[14:], int.from_bytes(frame[12:14]))


def test_no_other_byte_changes() -> None:
    """Of malformed packets too: without the fixes, only the field's own bytes; with them, lengths and checksums too."""
    chance = random.Random(1)
    tried = 0
    for packet in (*frames(2, 600), *(of(one) for one in WHOLE_PACKETS.values())):
        places = {field.name: range(field.first, field.end) for layer in layout(packet) for field in layer.fields}
        sums = {at for name, place in places.items() if name.partition(".")[2] in LENGTHS_AND_SUMS for at in place}
        fields = [(name, value) for name, value in integers(packet) if places.get(name)]
        for name, value in chance.sample(fields, min(6, len(fields))):
            try:
                changed = after(packet, (name, str(value ^ 1)), fix=False)
                followed = after(packet, (name, str(value ^ 1)))
            except (RuleError, PacketError):
                continue
            assert different(packet, changed) <= {*places[name]}, (name, packet.data.hex())
            assert different(packet, followed) <= {*places[name]} | sums, (name, packet.data.hex())
            tried += 1
    assert tried > 1500


def different(one: Packet, other: Packet) -> set[int]:
    """Return at which places bytes differ."""
    assert len(one.data) == len(other.data)
    return {at for at, (old, new) in enumerate(zip(one.data, other.data, strict=True)) if old != new}


def test_checksums_that_were_wrong_stay_as_they_were() -> None:
    packet = IP(src=A4, dst=B4, chksum=0x1111) / UDP(sport=1, dport=2, chksum=0x2222) / b"hello"
    changed = after(of(packet), ("ip.ttl", "9"), ("udp.sport", "77")).layers
    assert (changed.chksum, changed[UDP].chksum) == (0x1111, 0x2222)
    assert (changed.ttl, changed[UDP].sport) == (9, 77)


def test_lengths_that_were_wrong_stay_as_they_were() -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2, len=99) / b"hello")
    changed = edited(packet, lambda _: b"hello, longer").packet.layers
    assert (changed.len, changed[UDP].len) == (20 + 8 + 13, 99)


def test_no_checksum_of_udp_stays_none() -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2, chksum=0) / b"hello")
    assert after(packet, ("udp.sport", "77")).layers[UDP].chksum == 0
    assert edited(packet, lambda _: b"other").packet.layers[UDP].chksum == 0


@given(load=st.binary(min_size=2, max_size=60), port=st.integers(0, 0xFFFF))
def test_a_checksum_of_udp_never_becomes_none(load: bytes, port: int) -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / load)
    for name, value in (("udp.sport", port), ("ip.src", f"10.0.{port >> 8}.{port & 255}")):
        changed = after(packet, (name, str(value)))
        assert made_anew(changed.data) == changed.data


@pytest.mark.parametrize(
    ("change", "layer"), [(("ip.tos", "4"), IP), (("udp.dport", "99"), UDP), (("ip.src", C4), UDP)], ids=str
)
def test_a_first_fragment_keeps_what_belongs_to_the_whole(change: tuple[str, str], layer: type[Layers]) -> None:
    """The reassembled datagram is right, though no fragment alone shows that."""
    whole = bytes(IP(src=A4, dst=B4, id=7) / UDP(sport=1, dport=2) / (bytes(range(250)) * 12))[20:]
    head = {"src": A4, "dst": B4, "id": 7, "proto": 17}
    parts = [of(IP(**head, flags="MF") / Raw(whole[:1480])), of(IP(**head, frag=185) / Raw(whole[1480:]))]
    changed = after(parts[0], change)
    assert len(changed.data) == len(parts[0].data)
    rest = after(parts[1], change) if layer is not UDP or change[0] == "ip.src" else parts[1]
    together = IP(changed.data)
    together = IP(src=together.src, dst=together.dst, id=7, proto=17, tos=together.tos) / Raw(
        changed.data[20:] + rest.data[20:]
    )
    assert made_anew(bytes(together)) == bytes(together)


def test_fragments_of_ipv6_keep_what_belongs_to_the_whole() -> None:
    whole = bytes(IPv6(src=A6, dst=B6) / UDP(sport=1, dport=2) / bytes(2000))[40:]
    first = of(IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(nh=17, m=1, id=5) / Raw(whole[:1440]))
    changed = after(first, ("udp.dport", "99"))
    together = bytes(IPv6(src=A6, dst=B6, nh=17) / Raw(changed.data[48:] + whole[1440:]))
    assert UDP(changed.data[48:]).dport == 99
    assert made_anew(together, ETH_P_IPV6) == together
    assert after(first, ("ipv6.tc", "8")).data[48:] == first.data[48:]


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrFragment(nh=17, offset=181, m=1, id=5), IPv6ExtHdrFragment(nh=0, offset=181, id=5),
        IPv6ExtHdrDestOpt(nh=253), IPv6ExtHdrRouting(addresses=[C6], segleft=0, nh=253),
    ],
    ids=["fragment", "fragment of a chain", "options", "routing"],
)  # fmt: skip
@pytest.mark.parametrize("payload", [bytes(100), b"", b"shorter"], ids=["longer", "none", "shorter"])
def test_another_payload_leaves_the_extension_headers(headers: Layers, payload: bytes) -> None:
    packet = of(IPv6(src=A6, dst=B6) / headers / Raw(bytes(range(1, 60))))
    changed = edited(packet, lambda _: payload).packet
    end = 40 + len(bytes(headers))
    assert changed.data[end:] == payload
    assert changed.data[40:end] == packet.data[40:end]
    assert changed.data[4:6] == (len(changed.data) - 40).to_bytes(2)


def test_a_later_fragment_is_no_header() -> None:
    packet = of(IP(src=A4, dst=B4, frag=100, proto=17) / Raw(bytes(UDP(sport=1, dport=2) / b"data")))
    with pytest.raises(RuleError, match=r"no field udp\.dport in this packet"):
        after(packet, ("udp.dport", "99"))
    assert after(packet, ("ip.tos", "4")).data[20:] == packet.data[20:]


def test_inner_headers_have_names() -> None:
    packet = of(WHOLE_PACKETS["ipip"])
    assert difference(packet, after(packet, ("ip.ttl", "9"))) == "ip.ttl: 64 -> 9\nip.chksum: 26306 -> 40386"
    inner = difference(packet, after(packet, ("ip:2.ttl", "9"))).splitlines()
    assert [line.partition(":  ")[0].split(": ")[0] for line in inner] == ["ip:2.ttl", "ip:2.chksum"]
    assert after(packet, ("ip:1.ttl", "9")) == after(packet, ("IP.ttl", "9"))
    with pytest.raises(RuleError, match=r"no field ip:3\.ttl in this packet"):
        after(packet, ("ip:3.ttl", "9"))
    by_hand = edited(packet, lambda layers: layers[IP:2].setfieldval("ttl", 9)).packet
    assert by_hand == after(packet, ("ip:2.ttl", "9"))


def test_a_quoted_packet_has_names_too_and_its_checksum_follows() -> None:
    packet = of(WHOLE_PACKETS["icmp error"])
    changed = after(packet, ("iperror.ttl", "9"))
    assert made_anew(changed.data) == changed.data
    assert changed.layers[IPerror].ttl == 9


def test_options_that_scapy_writes_otherwise_stay_byte_for_byte() -> None:
    """Scapy writes a Route Information option with a prefix of 8 bytes (RFC 4191 2.3) with 16."""
    option = bytes([24, 2, 48, 0]) + struct.pack("!I", 600) + bytes.fromhex("fd00000000010000")
    head = IPv6(src=A6, dst=B6) / ICMPv6ND_RA(chlim=64)
    packet = of(IPv6(bytes(head / Raw(option))))
    assert packet.layers[ICMPv6NDOptRouteInfo].plen == 48
    changed = after(packet, ("ipv6.tc", "8"))
    assert different(packet, changed) == {0, 1} & different(packet, changed)
    assert different(packet, after(packet, ("icmpv6nd_ra.chlim", "9"))) <= {44, 42, 43}
    assert different(packet, after(packet, ("icmpv6ndoptrouteinfo.rtlifetime", "9"))) <= {42, 43, *range(60, 64)}


def test_a_header_that_scapy_cannot_write_keeps_its_length() -> None:
    odd = bytes(IP(src=A4, dst=B4, options=[IPOption(b"\x07\x07\x04" + bytes(4))]) / UDP(sport=1, dport=2))
    odd = odd[:20] + b"\x07\x03\x04\x00\x00\x00\x00\x99" + odd[28:]  # bytes behind the end of the options
    packet = Packet(odd, ETH_P_IP)
    assert different(packet, after(packet, ("ip.ttl", "9"))) <= {8, 10, 11}


def test_what_stands_behind_a_quoted_packet_stays_there() -> None:
    """An ICMP error with an extension (RFC 4884), which scapy makes a field of the ICMP header."""
    quoted = bytes(IP(src=B4, dst=A4) / UDP(sport=9, dport=8) / bytes(100))
    error, extension = b"\x03\x03\0\0\0\x20\0\0", b"\x20\0\x5f\xff\0\x08\x01\x01\0\0\0\0"
    packet = Packet(bytes(IP(src=A4, dst=B4, proto=1) / Raw(error + quoted + extension)), ETH_P_IP)
    for payload in (b"", b"short", bytes(300)):
        changed = with_payload(packet, payload)
        assert changed.data[28 + 28 :] == payload + extension
        assert changed.data[20:22] + changed.data[24:28] == packet.data[20:22] + packet.data[24:28]
    assert different(packet, after(packet, ("iperror.ttl", "9"), fix=False)) == {28 + 8}


def test_padding_stays_behind_the_packet() -> None:
    packet = Packet(bytes(IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / b"hi") + b"padding", ETH_P_IP)
    changed = edited(packet, lambda _: b"longer").packet
    assert changed.data.endswith(b"longerpadding")
    assert changed.layers[UDP].len == 14
    assert changed.layers.len == 34
    assert changed.layers[Padding].load == b"padding"


def test_a_checksum_that_is_left_to_the_kernel_is_left_to_it() -> None:
    whole = of(IP(src=A4, dst=B4) / TCP(sport=1, dport=2) / b"hello")
    parts = parts_of(whole.dissected(), whole.data)
    (tcp,) = (part for part in parts if part.name == "TCP")
    pseudo = Covered(parts, tcp, whole.data).pseudo
    packet = Packet(whole.data[:36] + pseudo.to_bytes(2) + whole.data[38:], ETH_P_IP)
    pending = Checksum(20, 16)

    def finished(packet: Packet) -> bytes:
        """Do what the kernel does (net/core/dev.c skb_checksum_help())."""
        value = add(ones_sum(packet.data[20:])) ^ 0xFFFF
        return packet.data[:36] + value.to_bytes(2) + packet.data[38:]

    assert finished(packet) == whole.data
    for change in (("ip.ttl", "9"), ("ip.src", C4), ("tcp.sport", "99"), ("raw.load", "longer than it was")):
        done = edited(packet, changing([change]), pending=pending)
        assert done.pending == pending
        assert not done.distrusted
        assert made_anew(finished(done.packet)) == finished(done.packet), change
    named = edited(packet, changing([("tcp.chksum", "0x1234")]), pending=pending)
    assert (named.pending, named.distrusted, named.packet.layers[TCP].chksum) == (WHOLE, True, 0x1234)
    unfixed = edited(packet, changing([("tcp.sport", "99")]), fix=False, pending=pending)
    assert (unfixed.pending, unfixed.packet.layers[TCP].chksum) == (WHOLE, whole.layers[TCP].chksum)
    untouched = edited(packet, changing([("ip.ttl", "9")]), fix=False, pending=pending)
    assert (untouched.pending, different(packet, untouched.packet)) == (pending, {8})


def test_a_checksum_around_one_that_is_left_to_the_kernel_stays_right() -> None:
    """Documentation/networking/checksum-offloads.rst, LCO: a tunnel's checksum over a segment without one yet."""
    inner = IP(src=C4, dst=D4) / TCP(sport=1, dport=2) / b"hello"
    whole = of(IP(src=A4, dst=B4) / UDP(dport=4789) / VXLAN(vni=7) / Ether(src="02:00:00:00:00:01") / inner)
    parts = parts_of(whole.dissected(), whole.data)
    tcp = next(part for part in parts if part.name == "TCP")
    start = tcp.start
    field = slice(start + 16, start + 18)
    pending = Checksum(start, 16)
    packet = Packet(whole.data[: field.start] + Covered(parts, tcp, whole.data).pseudo.to_bytes(2)
                    + whole.data[field.stop :], ETH_P_IP)  # fmt: skip
    for change in (("ip:2.src", "10.9.9.9"), ("tcp.sport", "99"), ("ip.src", C4)):
        done = edited(packet, changing([change]), pending=pending).packet.data
        value = ones_sum(done[start:]) ^ 0xFFFF
        finished = done[: field.start] + value.to_bytes(2) + done[field.stop :]
        assert made_anew(finished) == finished, change


@pytest.mark.parametrize(("fix", "right"), [(True, True), (False, False)])
def test_without_the_fixes_nothing_follows(*, fix: bool, right: bool) -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / b"hello")
    changed = after(packet, ("raw.load", "longer"), fix=fix)
    assert (made_anew(changed.data) == changed.data) is right
    assert len(changed.data) == len(packet.data) + 1


def test_what_was_set_stays_as_it_was_set() -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / b"hello")
    changed = after(packet, ("ip.len", "21"), ("udp.chksum", "0x1234"), ("udp.sport", "9"))
    assert (changed.layers.len, changed.data[26:28]) == (21, b"\x12\x34")
    same = after(packet, ("udp.chksum", str(packet.layers[UDP].chksum)), ("udp.sport", "9"))
    assert same.layers[UDP].chksum == packet.layers[UDP].chksum
    anew = edited(
        Packet(packet.data[:26] + b"\x11\x11" + packet.data[28:], ETH_P_IP), lambda one: one[UDP].delfieldval("chksum")
    )
    assert anew.packet == packet


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.copy().setfieldval("ttl", 9) or with_ttl(layers.copy()),
        lambda layers: with_ttl(IP(bytes(layers))),
        lambda layers: IP(src=layers.src, dst=layers.dst, ttl=9, id=layers.id) / layers.payload,
    ],
    ids=["a copy", "read again", "another header"],
)
def test_a_packet_in_its_place_is_followed_too(change: Callable[[Layers], Layers]) -> None:
    packet = of(IP(src=A4, dst=B4, ttl=64) / UDP(sport=1, dport=2) / b"hello")
    assert edited(packet, change).packet == after(packet, ("ip.ttl", "9"))


def with_ttl(layers: Layers) -> Layers:
    layers.ttl = 9
    return layers


def test_a_tunnel_is_taken_away_and_put_on() -> None:
    packet = of(WHOLE_PACKETS["ipip"])
    inside = edited(packet, lambda layers: layers.payload)
    assert inside.packet.data == packet.data[20:]
    again = edited(inside.packet, lambda layers: IP(src=A4, dst=B4, ttl=64) / layers)
    assert again.packet.data == packet.data


@pytest.mark.parametrize(
    ("packet", "payload", "remark"),
    [
        (WHOLE_PACKETS["tcp with options"], b"longer", "tcp: 3 bytes more than were sent"),
        (WHOLE_PACKETS["udp"], b"longer", ""),
        (IP(src=A4, dst=B4, frag=2, proto=17) / Raw(bytes(16)), b"", "ip: 16 bytes fewer in a fragment"),
    ],
    ids=["tcp", "udp", "fragment"],
)
def test_what_another_length_does_is_remarked(packet: Layers, payload: bytes, remark: str) -> None:
    remarks = edited(of(packet), lambda _: payload).remarks
    assert len(remarks) == bool(remark)
    assert "".join(remarks).startswith(remark)


def test_a_length_that_its_field_cannot_say() -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2) / b"hello")
    with pytest.raises(PacketError, match=r"ip\.len cannot say 65556 bytes|the changed packet has"):
        edited(packet, lambda _: bytes(65528))


def test_a_segment_routed_elsewhere_has_another_address_in_its_checksum() -> None:
    packet = of(IPv6(src=A6, dst=B6) / IPv6ExtHdrRouting(addresses=[C6], segleft=1) / UDP(sport=1, dport=2) / b"hello")
    assert made_anew(packet.data, ETH_P_IPV6) == packet.data
    for change in (("ipv6.dst", "fd00::9"), ("udp.sport", "9"), ("ipv6.src", "fd00::8")):
        changed = after(packet, change)
        assert made_anew(changed.data, ETH_P_IPV6) == changed.data, change


def test_every_difference_is_told() -> None:
    chance = random.Random(3)
    for packet in (*frames(4, 300), *(of(one) for one in WHOLE_PACKETS.values())):
        data = bytearray(packet.data)
        if not data:
            continue
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        assert difference(packet, Packet(bytes(data), packet.protocol)), packet.data.hex()
        assert difference(packet, Packet(packet.data + b"\0", packet.protocol)), packet.data.hex()
        assert not difference(packet, Packet(packet.data, packet.protocol))


def test_a_payload_is_told_where_it_differs() -> None:
    packet = of(IP(src=A4, dst=B4) / UDP(sport=1, dport=2, chksum=0) / b"0123456789")
    changed = edited(packet, lambda _: b"0123xy6789").packet
    assert difference(packet, changed) == "raw.load[4:6]: 45 -> xy"


def test_arp_is_edited() -> None:
    packet = Packet(bytes(ARP(psrc=A4, pdst=B4, hwsrc="02:00:00:00:00:01")), ETH_P_ARP)
    changed = after(packet, ("arp.psrc", C4), ("arp.op", "is-at"))
    assert difference(packet, changed) == f"arp.op: 1 -> 2\narp.psrc: {A4} -> {C4}"


@given(data=st.binary(max_size=99))
def test_bytes_come_back_from_their_escapes(data: bytes) -> None:
    assert from_escapes("raw.load", to_escapes(data)) == data


@pytest.mark.parametrize(("typed", "load"), [("123", b"123"), (r"a\x00b", b"a\0b"), ("é", b"\xe9")])
def test_a_payload_is_typed_as_text(typed: str, load: bytes) -> None:
    packet = of(IP(src=A4, dst=B4) / ICMP() / b"before")
    changed = after(packet, ("raw.load", typed)).layers
    assert changed[Raw].load == load
    assert changed.len == 28 + len(load)


@pytest.mark.parametrize(
    ("name", "value", "at", "what", "hint"),
    [
        ("icmp.sequ", "3", 5, "icmp has no field sequ", "seq"),
        ("icpm.seq", "3", 0, "no such layer: icpm", "icmp"),
        ("ip:0.ttl", "3", 3, "no such layer: ip:0", "ip:2"),
        ("ip.ttl", "banana", 7, "no value for ip.ttl: banana", "0 to 255"),
        ("ip.ttl", "256", 7, "no value for ip.ttl: 256", "0 to 255"),
        ("ip.ttl", "-1", 7, "no value for ip.ttl: -1", "0 to 255"),
        ("ip.version", "16", 11, "no value for ip.version: 16", "0 to 15"),
        ("ip.src", "no.such.address.invalid", 7, "no value for ip.src", "an address"),
        ("ipv6.src", A4, 9, "no value for ipv6.src", "an address"),
        ("tcp.flags", "XY", 10, "no value for tcp.flags: XY", "letters of FSRPAUECN"),
        ("icmp.type", "echo-reqest", 10, "no value for icmp.type", "echo-request"),
        ("tcp.options", "5", 12, "no value for tcp.options", "Python can"),
        ("raw.load", "\\x0", 9, "not the bytes of raw.load", "\\x00"),
    ],
)
def test_what_cannot_be_is_said_before_a_packet_is_there(name: str, value: str, at: int, what: str, hint: str) -> None:
    found = fault(name, value)
    assert found
    assert found[0] == at
    assert what in found[1].what
    assert hint in found[1].hint
    assert "RawVal" not in str(found[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("ip.ttl", "0x10"), ("tcp.flags", "SA"), ("icmp.type", "echo-reply"), ("ip:2.dst", B4), ("ipv6.dst", A6),
     ("arp.hwsrc", "02:00:00:00:00:01"), ("ip.proto", "udp"), ("udp.dport", "80"), ("ip.flags", "DF"), ("icmp.gw", A4),
     ("raw.load", "abc"), ("icmpv6echorequest.seq", "7"), ("vxlan.vni", "9"), ("iperror.ttl", "3")],
)  # fmt: skip
def test_what_can_be(name: str, value: str) -> None:
    assert fault(name, value) is None


def test_a_field_that_this_kind_of_packet_has_not() -> None:
    packet = of(IP(src=A4, dst=B4) / ICMP(type=8) / b"data")
    with pytest.raises(RuleError, match=r"no field icmp\.gw in this packet"):
        after(packet, ("icmp.gw", A4))


def test_every_layer_that_has_to_follow_has_its_fields_where_they_are_said_to_lie() -> None:
    """Against scapy's own fields."""
    for layers in (*WHOLE_PACKETS.values(), IPv6(src=A6, dst=B6) / IPv6ExtHdrRouting(addresses=[C6]) / UDP()):
        packet = of(layers)
        places = {field.name: field.first for layer in layout(packet) for field in layer.fields}
        for (name, layer), part in zip(
            ((name, one) for name, one in named_layers(packet.dissected()) if not is_padding(one)),
            parts_of(packet.dissected(), packet.data),
            strict=True,
        ):
            kind = part.kind
            for length in filter(None, (kind.own, kind.total)):
                assert places[f"{name}.{length.field}"] == part.start + length.at, name
            if kind.sum_at:
                assert places[f"{name}.{kind.sum_field}"] == part.start + kind.sum_at, layer
    assert {"IP", "TCP", "UDP", "ICMP", "_ICMPv6"} <= {*KINDS}


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=A4, dst=B4, proto=47) / Raw(bytes.fromhex("0000880b") + bytes(range(40))),
        IP(src=A4, dst=B4) / UDP(dport=4789) / VXLAN(vni=7) / Raw(bytes(range(40))),
        IP(src=A4, dst=B4) / UDP(dport=4789) / VXLAN(vni=7) / Ether() / ARP(),
    ],
    ids=lambda packet: packet.summary(),
)
def test_a_corrupted_packet_is_as_long_as_before(packet: Layers) -> None:
    """Also where headers without a checksum, which scapy knows, lie between the last checksum's and the bytes."""
    before = of(packet)
    for seed in range(20):
        data = edited(before, corrupting(2, str(seed)), fix=False).packet.data
        assert len(data) == len(before.data)
        assert 1 <= sum(a != b for a, b in zip(before.data, data, strict=True)) <= 2


def test_what_a_process_has_imported_of_scapy_does_not_change_what_is_corrupted() -> None:
    query = bytes.fromhex("000a01000001000000000000076578616d706c6503636f6d0000010001")
    packets = [bytes(IP(src=A4, dst=B4) / UDP(sport=4000, dport=port) / Raw(query)).hex() for port in (7, 53, 137, 520)]
    code = (
        "from skblab.edit import corrupting, edited; from skblab.packet import Packet\n"
        f"for packet in {packets}:\n"
        "    print(edited(Packet(bytes.fromhex(packet), 0x0800), corrupting(3, '1'), fix=False).packet.data.hex())"
    )
    alone, among_all = (
        process.run([sys.executable, "-c", f"{before}\n{code}"], timeout_s=60).stdout.split()
        for before in ("", "import scapy.all")
    )
    assert alone == among_all
    assert [len(one) for one in alone] == [len(one) for one in packets]
