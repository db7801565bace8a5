"""Verdicts as ping feels them, and held packets as Python holds them."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from skblab.agent.packets import HeldPacket, State
from skblab.errors import GuestLost, PacketError, PacketGone, RuleError, Timeout, UnknownFunction
from skblab.host import process
from skblab.host.clients import PingReply, parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule

ECHO = "icmp[icmptype] == icmp-echo"


def ping(lab: Lab, count: int, *options: str, interval_s: float = 0.05) -> process.Client:
    argv = ["ping", "-n", "-c", str(count), "-i", f"{interval_s:g}", "-W", "1", *options, "192.168.10.1"]
    return lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def said(client: process.Client) -> str:
    return process.finish(client, timeout_s=30).stdout


def replies(client: process.Client) -> list[PingReply]:
    return parse_ping(said(client))


def under(lab: Lab, rule: str, count: int, *options: str, interval_s: float = 0.05) -> list[PingReply]:
    with contextlib.closing(lab.rule(rule)):
        return replies(ping(lab, count, *options, interval_s=interval_s))


def seqs(answers: list[PingReply]) -> list[int]:
    return [reply.icmp_seq for reply in answers]


@pytest.mark.wall_clock
def test_a_delay_is_felt_to_the_millisecond(shared_lab: Lab) -> None:
    answers = under(shared_lab, "icmp_rcv = delay 200ms @2", 3, interval_s=0.3)
    assert seqs(answers) == [1, 2, 3]
    for reply in answers:
        assert reply.rtt_ms == pytest.approx(200, abs=3) if reply.icmp_seq == 2 else reply.rtt_ms < 5


@pytest.mark.wall_clock
def test_a_jitter_spreads_a_delay(shared_lab: Lab) -> None:
    rtts = [reply.rtt_ms for reply in under(shared_lab, "icmp_rcv = delay 50ms +-30ms", 20)]
    assert len(rtts) == 20
    assert min(rtts) >= 20
    assert max(rtts) < 90
    assert max(rtts) - min(rtts) > 10


@pytest.mark.wall_clock
def test_a_seed_makes_a_jitter_repeat_itself(shared_lab: Lab) -> None:
    """How long the packets are held, by the guest's clock; a busy machine ends a timer late."""

    def held_ms(seed: int) -> list[float]:
        rule = Rule.parse(f"icmp_rcv = delay 100ms +-90ms @random 100% seed {seed} if icmp[icmptype] == icmp-echo")
        packets: list[HeldPacket] = []
        with shared_lab.agent.rules.arm(rule, lambda _, held: packets.append(held) if held else None):
            shared_lab.run(["ping", "-n", "-c4", "-i0.3", "-W2", "guest"], timeout_s=20)
            assert all(one.wait(5) for one in packets)
        return [one.age_s * 1e3 for one in packets]

    first, again, other = held_ms(7), held_ms(7), held_ms(8)
    assert len(first) == 4
    assert first == pytest.approx(again, abs=15)
    assert first != pytest.approx(other, abs=15)


@pytest.mark.parametrize(
    ("occurrence", "missing"),
    [("@3", [3]), ("@2-3", [2, 3]), ("@4-", [4, 5, 6]), ("@every 2", [2, 4, 6]), ("", [1, 2, 3, 4, 5, 6])],
)
def test_occurrences_count_what_the_filter_takes(shared_lab: Lab, occurrence: str, missing: list[int]) -> None:
    answers = under(shared_lab, f"ip_rcv = drop {occurrence} if {ECHO}", 6)
    assert seqs(answers) == [seq for seq in range(1, 7) if seq not in missing]


def test_a_seed_makes_chance_repeat_itself(shared_lab: Lab) -> None:
    first, second = (seqs(under(shared_lab, "icmp_rcv = drop @random 50% seed 7", 30, interval_s=0.01)) for _ in "12")
    assert first == second
    assert 5 < len(first) < 25


def test_a_filter_sees_beyond_the_first_part_of_a_packet(shared_lab: Lab) -> None:
    with contextlib.closing(shared_lab.rule("icmp_rcv = drop if icmp[4000] == 0xa5")) as running:
        assert replies(ping(shared_lab, 2, "-s", "8000", "-p", "5a"))
        assert not replies(ping(shared_lab, 2, "-s", "8000", "-p", "a5"))
    assert running.armed.counts.dropped == 2


def test_the_first_rule_that_matches_wins(shared_lab: Lab) -> None:
    accept, drop = (shared_lab.rule(f"icmp_rcv = {rule}") for rule in (f"accept @1 if {ECHO}", "drop"))
    with contextlib.closing(accept), contextlib.closing(drop):
        assert seqs(replies(ping(shared_lab, 3))) == [1]
    assert seqs(replies(ping(shared_lab, 3))) == [1, 2, 3]


def test_rules_at_several_functions_at_once(shared_lab: Lab) -> None:
    here, there = shared_lab.rule(f"ip_rcv = drop @1 if {ECHO}"), shared_lab.rule("icmp_rcv = drop @1")
    with contextlib.closing(here), contextlib.closing(there):
        assert seqs(replies(ping(shared_lab, 4))) == [3, 4]


def test_a_group_is_released_in_reverse(shared_lab: Lab) -> None:
    assert seqs(under(shared_lab, "icmp_rcv = hold 5 release reverse", 5)) == [5, 4, 3, 2, 1]


def test_an_edit_rule_changes_what_is_answered(shared_lab: Lab) -> None:
    assert seqs(under(shared_lab, "icmp_rcv = edit icmp.seq=77", 1)) == [77]


def test_duplicates_are_seen_by_ping(shared_lab: Lab) -> None:
    with contextlib.closing(shared_lab.rule(f"ip_rcv = duplicate 2 @1 if {ECHO}")) as running:
        answers = replies(ping(shared_lab, 2, interval_s=0.5))  # ping leaves with the last one's first answer
        assert [(reply.icmp_seq, reply.duplicate) for reply in answers] == [
            (1, False), (1, True), (1, True), (2, False),
        ]  # fmt: skip
        assert running.armed.counts.duplicated == 2


def test_copies_of_copies_have_a_bound(shared_lab: Lab) -> None:
    outer = shared_lab.rule("ip_output = duplicate 40 if icmp")
    inner = shared_lab.rule("ip_finish_output2 = duplicate 40 if icmp")
    with outer, inner:
        assert replies(ping(shared_lab, 1))
        assert (outer.counts.duplicated, inner.counts.duplicated) == (40, 40)
        assert (inner.counts.arrived, inner.counts.too_many) == (41, 40)


def test_packets_of_a_softirq_that_comes_while_a_copy_runs_are_no_copies(image: Image) -> None:
    with Lab(image=image, root="host") as lab, lab.rule("ip_output = duplicate 40 if icmp") as rule:
        with lab.guest.popen(["ping", "-f", "-q", "-c", "100", "-W", "0.5", "host"], stdout=subprocess.PIPE) as own:
            assert lab.run(["ping", "-f", "-q", "-c", "100", "-W", "0.5", "guest"], timeout_s=60).returncode == 0
            own.wait()
        counts = rule.counts
    assert counts.arrived > 150
    assert (counts.duplicated, counts.too_many) == (40 * counts.arrived, 0)


@pytest.mark.wall_clock
def test_packets_in_the_hand(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 3, interval_s=0.1)
        first, second, third = held.take(3, timeout_s=5)
        assert first.packet.echo is not None
        assert first.packet.echo[2] == 1
        assert 0.1 < first.age_s < 2
        assert first.summary().startswith("icmp_rcv: 192.168.10.254 > 192.168.10.1: ICMP echo request, id ")
        third.release()
        assert third.wait(2)
        first.release(after_s=0.2)
        second.release()
        assert first.wait(2)
        assert {one.state for one in (first, second, third)} == {State.RELEASED}
        assert first.ended_at_ns - third.ended_at_ns > 150_000_000
    assert seqs(replies(client)) == [3, 2, 1]


def test_a_packet_is_decided_on_once(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 1)
        (packet,) = held.take(1)
        packet.drop()
        assert packet.wait(2)
        assert packet.state is State.DROPPED
        for decide in (packet.release, packet.drop, packet.duplicate):
            with pytest.raises(PacketGone, match="it is dropped"):
                decide()
    assert replies(client) == []


def test_leaving_releases_what_is_still_held(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 5, interval_s=0.01)
        packets = held.take(5)
    assert seqs(replies(client)) == [1, 2, 3, 4, 5]
    assert all(packet.wait(2) and packet.state is State.RELEASED for packet in packets)


def test_waiting_for_what_does_not_come(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held, pytest.raises(Timeout, match=r"0 of 1 packets at icmp_rcv\(\)"):
        held.take(1, timeout_s=0.1)


@pytest.mark.parametrize("size", [0, 10, 56, 57, 300, 1400])
def test_an_edit_shrinks_and_grows_a_packet(shared_lab: Lab, size: int) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held, shared_lab.probe("ip_output", "icmp") as sent:
        client = ping(shared_lab, 1)
        (packet,) = held.take(1)
        difference = packet.edit(lambda _: b"x" * size)
        packet.release()
        (hit,) = sent.take(1)
        assert hit.length_bytes == 20 + 8 + size
        assert f"{min(size, 164) + 8} bytes from 192.168.10.1" in said(client)  # ping's buffer has no more room
    assert "raw.load: " in difference
    assert "icmp.chksum: " in difference


def test_an_edit_in_place_and_a_packet_in_its_place(shared_lab: Lab) -> None:
    def lower(layers: IP) -> None:
        layers[IP].ttl = 7

    with shared_lab.hold("ip_output", "icmp[icmptype] == icmp-echoreply") as held:
        client = ping(shared_lab, 2, interval_s=0.01)
        first, second = held.take(2)
        assert re.match(r"ip.ttl: 64 -> 7\nip.chksum: \d+ -> \d+", first.edit(lower))
        first.release()
        second.edit(lambda layers: IP(src=layers.src, dst=layers.dst, ttl=9) / layers[ICMP])
        second.release()
        answer = said(client)
    assert "icmp_seq=1 ttl=7 " in answer
    assert "icmp_seq=2 ttl=9 " in answer


def test_an_edit_is_taken_back(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 1)
        (packet,) = held.take(1)
        before = packet.packet
        assert packet.revert() == ""
        packet.edit(lambda _: b"x" * 1000)
        packet.edit(lambda layers: layers[ICMP].setfieldval("seq", 9))
        assert "icmp.seq: 9 -> 1" in packet.revert()
        assert packet.packet == before
        packet.release()
        with pytest.raises(PacketGone, match="cannot revert"):
            packet.revert()
    assert seqs(replies(client)) == [1]


def test_what_there_is_is_taken_without_waiting(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        assert held.take_all() == []
        client = ping(shared_lab, 2, interval_s=0.01)
        first, second = held.take(2)
        assert held.take_all() == []
        second.release()
        first.release()
    assert seqs(replies(client)) == [2, 1]


def test_a_checksum_may_be_wrong_on_purpose(shared_lab: Lab) -> None:
    def spoil(layers: IP) -> None:
        layers[Raw].load = b"y" * len(layers[Raw].load)

    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 1)
        (packet,) = held.take(1)
        packet.edit(spoil, fix=False)
        packet.release()
    assert replies(client) == []


def test_what_is_no_packet_is_refused_and_the_packet_released_as_it_was(shared_lab: Lab) -> None:
    with shared_lab.hold("icmp_rcv", ECHO) as held:
        client = ping(shared_lab, 1)
        (packet,) = held.take(1)
        with pytest.raises(PacketError, match="not int"):
            packet.edit(lambda _: 3)
        with pytest.raises(PacketError, match=r"cannot be written|bytes"):
            packet.edit(lambda layers: layers[IP].setfieldval("ttl", "many"))
        with pytest.raises(PacketError, match=r"cannot be written|bytes"):
            packet.edit(lambda _: b"x" * 70_000)
        packet.release()
    assert seqs(replies(client)) == [1]


def test_what_is_asked_wrongly(shared_lab: Lab) -> None:
    with pytest.raises(UnknownFunction):
        shared_lab.hold("icmp_rvc")
    with pytest.raises(RuleError, match="libpcap"):
        shared_lab.hold("icmp_rcv", "icmp 3")
    with pytest.raises(RuleError, match="no drop reason NO_SUCH"):
        shared_lab.rule("icmp_rcv = drop NO_SUCH")
    assert shared_lab.agent.channel.probes == 0


@pytest.mark.wall_clock
def test_times_are_the_hosts_and_only_grow(shared_lab: Lab) -> None:
    with shared_lab.probe("icmp_rcv") as probe:
        began_ns = time.monotonic_ns()
        shared_lab.run(["ping", "-q", "-f", "-c", "5000", "192.168.10.1"], timeout_s=30)
        shared_lab.run(["ping", "-q", "-c", "5", "-i", "0.1", "192.168.10.1"], timeout_s=30)
        ended_ns = time.monotonic_ns()
        times = [hit.at_ns for hit in probe.take(5005)]
    assert times == sorted(times)
    assert began_ns < times[0] < times[-1] < ended_ns
    assert [later - earlier for earlier, later in zip(times[-5:], times[-4:], strict=False)] == pytest.approx(
        [0.1e9] * 4,
        rel=0.3,  # ping itself is late at times
    )


@pytest.mark.wall_clock
def test_hanging_up_lets_everything_go(lab: Lab) -> None:
    held = lab.hold("icmp_rcv", ECHO)
    client = ping(lab, 5, interval_s=0.01)
    packets = held.take(5)
    hung_up_s = time.monotonic()
    lab.agent.channel.hang_up()
    assert seqs(replies(client)) == [1, 2, 3, 4, 5]
    assert time.monotonic() - hung_up_s < 1
    assert all(packet.wait(2) for packet in packets)
    assert seqs(replies(ping(lab, 3))) == [1, 2, 3]
    assert "the host is gone; everything is released" in lab.console.text()


def test_a_guest_that_dies_loses_its_packets(lab: Lab) -> None:
    with lab.hold("icmp_rcv", ECHO) as held:
        client = ping(lab, 1)
        (packet,) = held.take(1)
        process.end(client)
        os.kill(lab.guest.pid, signal.SIGKILL)
        assert packet.wait(5)
        assert packet.state is State.LOST
        with pytest.raises(GuestLost, match="signal SIGKILL"):
            next(iter(held))
        with pytest.raises(GuestLost):
            held.take(1)
