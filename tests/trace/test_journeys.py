"""Packets are followed through real kernels: where they go, what they become, and why they die."""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP

from skblab.agent.abi import Role
from skblab.errors import TraceError
from skblab.image.fields import Field
from skblab.image.image import Image
from skblab.image.missing import of_the_link
from skblab.lab import Lab
from skblab.trace.journey import Followed, Journey, journeys
from skblab.trace.model import Step, Trace
from skblab.trace.words import fields_of, reason_in_words, value_in_words
from skblab.view.table import header, rows
from skblab.view.tree import lines

GUEST = "192.168.10.1"
ETH_P_ALL = 3
# In this order; what receives a packet on its own or in a list differs with the device.
WAY_OF_A_PING = (
    "netif_receive_skb_list_internal", "ip_rcv", "ip_local_deliver", "icmp_rcv", "icmp_echo",
    "icmp_reply", "ip_output", "dev_hard_start_xmit",
)  # fmt: skip
SLOW_CODEL = (
    "tc qdisc add dev vec0 root handle 1: tbf rate 80kbit burst 1600 latency 9s"
    " && tc qdisc add dev vec0 parent 1: fq_codel target 1us interval 1ms noecn"
)
DROP_ECHO_REQUESTS = (
    "nft add table ip t && nft 'add chain ip t c { type filter hook input priority 0 ; }'"
    " && nft add rule ip t c icmp type echo-request drop && exec python3 -m http.server 80"
)

UNTIL_NOBODY_IS_CONNECTED = """
import time
LISTEN, TIME_WAIT = "0A", "06"
while any(line.split()[3] not in (LISTEN, TIME_WAIT) for line in open("/proc/net/tcp") if ":0050 " in line):
    time.sleep(0.01)
"""


def names(journey: Journey) -> list[str]:
    return [call.step.function.name for _, call in journey.walk()]


def in_order(wanted: tuple[str, ...], seen: list[str]) -> None:
    place = 0
    for name in wanted:
        assert name in seen[place:], f"{name} in {seen[place:]}"
        place = seen.index(name, place)


def pinged(lab: Lab, *options: str) -> str:
    return lab.run(["ping", "-n", "-c", "1", "-W", "1", *options, GUEST], timeout_s=20).stdout


def drops(trace: Trace) -> Iterator[tuple[Step, str]]:
    for step in trace.steps:
        if reason := reason_in_words(trace, step):
            yield step, reason


def complete(trace: Trace) -> Trace:
    assert trace.whole
    assert (trace.end["lost"], trace.end["forgotten"], trace.end["unhooked"]) == (0, 0, 0)
    return trace


def ours(trace: Trace, start: str) -> list[Journey]:
    return [one for one in journeys(complete(trace)) if start in one.first.summary]


def test_a_pings_way_and_its_reply(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp") as tracer:
        assert "1 received" in pinged(every_lab)
    trace = tracer.trace()
    (journey,) = ours(trace, "echo request")
    in_order((of_the_link(every_lab.image), *WAY_OF_A_PING), names(journey))
    request, reply = journey.packets.values()
    assert "echo reply" in reply.summary
    assert reply.origin
    assert (reply.origin.other, reply.origin.role) == (request.number, Role.BORN)
    assert request.freed
    assert reply.freed
    assert not list(drops(trace))
    assert all(call.step.took_ns is not None for _, call in journey.walk())


def test_calls_lie_in_one_another_in_time_too(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp") as tracer:
        pinged(every_lab)
    checked = 0
    for journey in journeys(complete(tracer.trace())):
        for _, call in journey.walk():
            for inner in call.inner:
                assert call.step.at_ns <= inner.step.at_ns <= inner.step.end_ns <= call.step.end_ns
                checked += 1
    assert checked > 20


def test_what_a_call_returned(every_lab: Lab) -> None:
    with every_lab.trace(["icmp_rcv", "ip_rcv", "icmp_reply"], filter="icmp") as tracer:
        pinged(every_lab)
    said = {step.function.name: value_in_words(step) for step in complete(tracer.trace()).steps}
    assert said["ip_rcv"] == said["icmp_rcv"] == "0"
    assert said["icmp_reply"] == ""  # void


def test_without_returns(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp", returns=False) as tracer:
        pinged(every_lab)
    trace = complete(tracer.trace())
    assert {step.took_ns for step in trace.steps} == {None}
    assert not trace.kin  # who calls whom is not known then
    in_order(WAY_OF_A_PING[:6], names(ours(trace, "echo request")[0]))


def test_a_filter_follows_through_other_headers(every_lab: Lab) -> None:
    """The filter names the address that the sender wrote; the reply's packet, in parts, is followed all the same."""
    with every_lab.trace(filter="icmp[icmptype] == icmp-echo") as tracer:
        assert "1 received" in pinged(every_lab, "-s", "4000")
    trace = complete(tracer.trace())
    copies = [kin for kin in trace.kin if kin.role is Role.COPIED]
    born = [kin for kin in trace.kin if kin.role is Role.BORN]
    assert copies or born
    assert "ip_do_fragment" in {step.function.name for step in trace.steps}
    sent = {step.packet for step in trace.steps if step.function.name == "dev_hard_start_xmit"}
    assert len(sent) >= 3


def test_only_chosen_functions(every_lab: Lab) -> None:
    with every_lab.trace(["icmp_*", "net/ipv4/ip_input.c"], filter="icmp") as tracer:
        pinged(every_lab)
    trace = complete(tracer.trace())
    files = {step.function.file for step in trace.steps if not step.has_reason and not step.freed}
    assert files <= {"net/ipv4/icmp.c", "net/ipv4/ip_input.c", "net/core/skbuff.c"}
    assert "icmp_rcv" in {step.function.name for step in trace.steps}


def test_what_is_called_without_a_packet(every_lab: Lab) -> None:
    with every_lab.trace(["icmp_rcv", "icmp_reply"], calls=["ip_route_output_*", "fib_*"], filter="icmp") as tracer:
        pinged(every_lab)
    (journey,) = ours(tracer.trace(), "echo request")
    called = [call for _, call in journey.walk() if call.step.packet == 0]
    assert called
    assert all(call.step.outer for call in called)


def test_fields(every_lab: Lab) -> None:
    with every_lab.trace(
        ["icmp_rcv"], filter="icmp", fields=["skb->dev->name", "skb->len", "skb->ip_summed", "skb->dev->mtu"]
    ) as tracer:
        pinged(every_lab)
    trace = complete(tracer.trace())
    step = next(step for step in trace.steps if step.function.name == "icmp_rcv")
    values = fields_of(trace, step)
    assert values["skb->dev->name"] == step.device == "vec0"
    assert values["skb->len"] == step.length
    assert values["skb->dev->mtu"] == 1500
    assert values["skb->ip_summed"] in {0, 1, 2, 3}


def test_fields_in_the_networks_byte_order_are_as_people_write_them(every_lab: Lab) -> None:
    sock = "skb->sk->__sk_common"
    names = ["skb->protocol", f"{sock}.skc_dport", f"{sock}.skc_daddr", f"{sock}.skc_v6_daddr", f"{sock}.skc_num"]
    with (
        every_lab.trace(["__tcp_transmit_skb", "tcp_v4_rcv"], filter="tcp", fields=names) as tracer,
        every_lab.socket() as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect((GUEST, 9))
    trace = complete(tracer.trace())
    step = next(step for step in trace.steps if step.function.name == "tcp_v4_rcv")
    assert fields_of(trace, step)["skb->protocol"] == "0x0800"
    for kind, data, said in (
        ("network", b"\x08\x06", "0x0806"),
        ("port", b"\x00\x50", 80),
        ("address", b"\x0a\0\0\1", "10.0.0.1"),
        ("address", bytes(15) + b"\1", "::1"),
    ):
        assert Field("", (), len(data), kind).value(data) == said
    kinds = {one.expression.rpartition(".")[2]: one.kind for one in tracer.fields[1:]}
    assert kinds == {"skc_dport": "port", "skc_daddr": "address", "skc_v6_daddr": "address", "skc_num": "unsigned"}


def test_a_held_packet_goes_on_in_its_journey(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp") as tracer, every_lab.hold("icmp_rcv") as held:
        client = every_lab.popen(["ping", "-n", "-c", "1", GUEST], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        packet.release()
        assert client.wait(10) == 0
    (journey,) = ours(tracer.trace(), "echo request")
    arrived, resumed = (call.step for _, call in journey.walk() if call.step.function.name == "icmp_rcv")
    assert not arrived.resumed
    assert resumed.resumed
    assert "icmp_reply" in names(journey)


def test_a_syn_to_a_closed_port(every_lab: Lab) -> None:
    with every_lab.trace(filter="tcp") as tracer, every_lab.socket() as client:
        client.settimeout(5)
        with contextlib.suppress(ConnectionRefusedError):
            client.connect((GUEST, 9))
    trace = complete(tracer.trace())
    ((step, reason),) = drops(trace)
    assert reason == "NO_SOCKET"
    frames = [frame.function for frame in trace.backtrace(step)]
    assert "tcp_v4_rcv" in frames
    assert "ip_rcv" in frames
    (journey,) = journeys(trace)
    assert [packet.origin is None for packet in journey.packets.values()] == [True, False]  # the reset is because of it


def raw(lab: Lab, packet: bytes) -> None:
    """Send an Ethernet frame as it is."""
    device = lab.namespaces.device
    with lab.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
        wire.bind((device, 0))
        wire.send(packet)


def frame(lab: Lab, *, damaged: str) -> bytes:
    from scapy.layers.inet import IP, TCP  # noqa: PLC0415
    from scapy.layers.l2 import Ether  # noqa: PLC0415

    pinged(lab)  # the guest's address is known then
    table = lab.run(["ip", "neigh", "show", GUEST]).stdout.split()
    ours_ = lab.run(["cat", f"/sys/class/net/{lab.namespaces.device}/address"]).stdout.strip()
    ip = IP(src="192.168.10.254", dst=GUEST)
    tcp = TCP(sport=1234, dport=9, flags="S")
    if damaged == "ip":
        ip.chksum = 0x1234
    else:
        tcp.chksum = 0x1234
    return bytes(Ether(dst=table[table.index("lladdr") + 1], src=ours_) / ip / tcp)


@pytest.mark.parametrize(("damaged", "wanted"), [("ip", "IP_CSUM"), ("tcp", "TCP_CSUM")])
def test_a_broken_checksum(every_lab: Lab, damaged: str, wanted: str) -> None:
    broken = frame(every_lab, damaged=damaged)
    with every_lab.trace(filter="tcp", returns=False) as tracer:
        raw(every_lab, broken)
        pinged(every_lab)  # one processor, one link: it has been through by then
    assert [reason for _, reason in drops(complete(tracer.trace()))] == [wanted]


@pytest.fixture(scope="module")
def filtering(every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image, root="host", commands=[DROP_ECHO_REQUESTS]) as lab:
        yield lab


def test_a_rule_of_nftables_drops(filtering: Lab) -> None:
    with filtering.trace(filter="icmp") as tracer:
        assert "0 received" in pinged(filtering, "-W", "0.3")
    trace = complete(tracer.trace())
    ((step, reason),) = drops(trace)
    assert reason == "NETFILTER_DROP"
    frames = [frame.function for frame in trace.backtrace(step)]
    assert "nft_do_chain" in frames or "nf_hook_slow" in frames
    assert "ip_local_deliver" in frames


def test_a_qdiscs_own_reason(every_image: Image) -> None:
    """CoDel drops what has waited; only 7.3 has reasons of qdiscs (include/net/dropreason-qdisc.h)."""
    with Lab(image=every_image, root="host", memory_mib=96) as lab:
        assert "1 received" in pinged(lab)  # the neighbour is known from here on
        assert lab.guest.run(["sh", "-c", SLOW_CODEL]).returncode == 0
        with lab.trace(filter="icmp") as tracer:
            pinged(lab, "-c", "20", "-i", "0.01", "-s", "500")
        found = {reason for _, reason in drops(complete(tracer.trace()))}
    assert found == {"QDISC_DROP_CONGESTED" if every_image.series == "7.3" else "NOT_SPECIFIED"}


def test_within_the_guest(filtering: Lab) -> None:
    """Over loopback a packet is received twice by the backlog: the request, and the reply that came of it."""
    with filtering.trace(filter="icmp and host 127.0.0.2") as tracer:
        filtering.guest.run(["ping", "-n", "-c", "1", "-W", "1", "127.0.0.2"])
    trace = complete(tracer.trace())
    seen = [step.function.name for step in trace.steps]
    in_order(("ip_output", "dev_hard_start_xmit", "__netif_rx", "__netif_receive_skb_one_core", "ip_rcv"), seen)


def test_a_connection(filtering: Lab) -> None:
    with filtering.trace(filter="tcp port 80") as tracer:
        done = filtering.run(["curl", "-sS", "--max-time", "10", f"http://{GUEST}/"])
        assert "Directory listing" in done.stdout
        filtering.guest.run(["python3", "-c", UNTIL_NOBODY_IS_CONNECTED])
    trace = complete(tracer.trace())
    for step, reason in drops(trace):  # a FIN that nobody has read when its socket goes; Linux 6.1 has no word for it
        assert reason in {"QUEUE_PURGE", "NOT_SPECIFIED"}
        assert {"__skb_queue_purge", "skb_queue_purge_reason"} & {one.function for one in trace.backtrace(step)}
    found = journeys(trace)
    syn = found[0]
    assert {"tcp_v4_rcv", "tcp_conn_request"} <= {*names(syn)}
    assert any("[S.]" in packet.summary for packet in syn.packets.values())
    followed: list[Followed] = [packet for journey in found for packet in journey.packets.values()]
    assert all(packet.freed or packet.joined for packet in followed if packet.steps)


def test_the_file_says_the_same(every_lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "run.skblab"
    with every_lab.trace(filter="icmp", to=kept) as tracer:
        pinged(every_lab)
        tracer.end(status=0)
    trace = tracer.trace()
    assert kept.exists()
    assert trace.end["status"] == 0
    assert len(trace.steps) == len(tracer.trace().steps) > 30


def test_a_trace_that_is_not_kept_leaves_no_file(
    every_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with every_lab.trace(filter="icmp") as tracer:
        pinged(every_lab)
        assert list(tmp_path.iterdir()) == []  # nor does it if it is killed now
    assert tracer.trace().steps
    with pytest.raises(TraceError, match="can be had once"):
        tracer.trace()


@pytest.mark.slow
def test_nothing_is_lost_in_a_flood(every_lab: Lab) -> None:
    """Every function that takes a packet is armed, and the guest has no time for anything but pings."""
    pings = 20000
    with every_lab.trace(["icmp_rcv", "icmp_reply"], filter="icmp[icmptype] == icmp-echo", returns=False) as few:
        every_lab.run(["ping", "-n", "-q", "-f", "-c", str(pings), GUEST], timeout_s=60)
    counted = [step.function.name for step in complete(few.trace()).steps]
    assert counted.count("icmp_rcv") == counted.count("icmp_reply") == pings
    kept = Path(os.environ.get("TMPDIR", "/tmp")) / f"skblab-flood-{os.getpid()}"
    try:
        with every_lab.trace(filter="icmp", to=kept) as every:
            done = every_lab.run(["ping", "-n", "-q", "-f", "-c", str(pings), GUEST], timeout_s=60)
            every.end()
        assert f"{pings} received" in done.stdout
        assert every.losses() == {"lost": 0, "forgotten": 0, "unhooked": 0}
    finally:
        kept.unlink(missing_ok=True)


def test_a_drop_without_a_reason_is_a_drop(every_lab: Lab) -> None:
    """A martian, from the guest's own address (net/ipv4/ip_input.c ip_rcv_finish_core()). 7.3 has a reason for it."""
    reason = "IP_LOCAL_SOURCE" if every_lab.image.series == "7.3" else "NOT_SPECIFIED"
    with every_lab.trace(filter=f"src host {GUEST}") as tracer:
        with every_lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as host:
            host.sendto(bytes(IP(src=GUEST, dst=GUEST) / ICMP(seq=7)), (GUEST, 0))
        assert "1 received" in pinged(every_lab)
    trace = tracer.trace()
    martian, *answered = ours(trace, f"{GUEST} > ")
    assert "seq 7" in martian.first.summary
    said = [line.plain for line in lines(trace, martian)]
    assert any(line.endswith(f"  drop: {reason}") for line in said), said
    assert not [line.plain for one in answered for line in lines(trace, one) if "drop: " in line.plain]


def test_columns_hold_for_any_device(every_lab: Lab) -> None:
    """IFNAMSIZ is 16: the longest name has 15 letters (include/uapi/linux/if.h)."""
    with every_lab.trace(filter="icmp") as tracer:
        assert "1 received" in pinged(every_lab)
    trace = tracer.trace()
    (journey,) = ours(trace, "echo request")
    for _, call in journey.walk():
        call.step.device = call.step.device and "a" * 15
    tree = [line.plain for line in lines(trace, journey)]
    calls = zip(journey.walk(), tree[3:], strict=True)
    assert len({line.index(f"{call.step.function.name}()") - 2 * depth for (depth, call), line in calls}) == 1
    assert any(f" {'a' * 15} " in line for line in tree)
    for row in rows(trace, [call.step for _, call in journey.walk() if call.step.device], journey.begin_ns):
        assert row[header().index("device") :].startswith(f"{'a' * 15} ")
        assert row[header().index("function") :].strip() == row.split()[-1]
