"""Each key, against a real kernel: what becomes of the packet, and ping's output."""

import asyncio
import re
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import rdpcap

from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.lab import Lab
from tui.screen import Person, ping, screen

HELD_AT_LEAST_S = 1.0


def shown(lab: Lab, command: list[str], test: Callable[[Person], Awaitable[None]], *rules: str) -> None:
    async def run() -> None:
        async with screen(lab, command, *rules) as person:
            await test(person)

    asyncio.run(run())


@pytest.mark.wall_clock
def test_a_packet_ages_and_is_released_and_ping_says_how_old_it_was(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        row = person.table.chosen
        assert row is not None
        ages = set[str]()

        def seen() -> bool:
            ages.add(person.cell(0, 1))
            return row.held.age_s > HELD_AT_LEAST_S

        await person.until(seen, "an age")
        assert len(ages) >= 4
        assert all(re.fullmatch(r"\d+\.\d s", age) for age in ages)
        assert person.cell(0, 2) == "icmp_rcv"
        assert person.cell(0, 3).startswith("ICMP echo request, id ")
        await person.presses("r")
        await person.reads("-- #1 released by icmp_rcv() after ")
        await person.reads("1 packets transmitted, 1 received")
        (reply,) = parse_ping(person.said())
        assert reply.rtt_ms == pytest.approx(row.held.age_s * 1e3, abs=10)
        assert list(person.app.client.rtts_ms) == [reply.rtt_ms]
        await person.until(lambda: person.app.client.status == 0, "ping's end")
        await person.holds(0)

    shown(shared_lab, ping(1), test)


@pytest.mark.wall_clock
def test_a_dropped_packet_is_one_that_ping_misses(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(3)
        await person.presses("down", "x", "R")
        await person.reads("-- #2 dropped by icmp_rcv() after ")
        await person.reads("3 packets transmitted, 2 received")
        assert [reply.icmp_seq for reply in parse_ping(person.said())] == [1, 3]

    shown(shared_lab, ping(3, "-W", "1"), test)


def test_all_are_released_in_reverse(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(4)
        await person.presses("v")
        await person.reads("4 packets transmitted, 4 received")
        assert [reply.icmp_seq for reply in parse_ping(person.said())] == [4, 3, 2, 1]

    shown(shared_lab, ping(4), test)


def test_an_edited_payload_is_what_ping_finds_wrong_and_reverted_right(shared_lab: Lab) -> None:
    async def edit(person: Person, field: str, value: str) -> None:
        await person.presses("e")
        await person.types(value, f"#f-{field}")

    async def test(person: Person) -> None:
        await person.holds(2)
        for _ in range(2):
            await edit(person, "raw-load-28", "z" * 56)
            await person.until(lambda: person.cell(person.table.cursor_row, 3).startswith("edited "), "it was edited")
            await person.presses("down")
        await person.reads("-- #1 raw.load")
        await person.until(lambda: "z" * 56 in person.fields["raw.load"], "the new payload")
        await person.presses("u")
        await person.until(lambda: person.cell(1, 3).startswith("ICMP echo"), "it was reverted")
        await person.presses("R")
        await person.reads("2 packets transmitted, 2 received")
        assert person.said().count("wrong data byte #16 should be 0x10 but was 0x7a") == 1

    shown(shared_lab, ping(2), test)


def test_a_value_that_no_field_takes_is_a_notification(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        await person.presses("e")
        await person.types("many", "#f-ip-ttl-8")
        await person.is_told("no value for ip.ttl: many")
        await person.presses("e", "escape", "R")
        await person.reads("1 packets transmitted, 1 received")

    shown(shared_lab, ping(1), test)


def test_an_inner_header_is_edited(shared_lab: Lab) -> None:
    inner = IP(src="10.9.9.9", dst="10.8.8.8", ttl=50) / UDP(sport=1, dport=2) / b"inside"

    async def test(person: Person) -> None:
        with shared_lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as wire:
            wire.sendto(bytes(IP(src="192.168.10.254", dst="192.168.10.1") / inner), ("192.168.10.1", 0))
        await person.holds(1)
        await person.presses("e")
        await person.types("9", "#f-ip-2-ttl-28")
        await person.reads("ip:2.ttl: 50 -> 9")
        await person.presses("R")

    shown(shared_lab, ["sleep", "60"], test, "ip_rcv = hold if ip proto 4")


@pytest.mark.wall_clock
def test_a_packet_is_duplicated_and_two_are_marked_and_saved(
    shared_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def test(person: Person) -> None:
        await person.holds(3)
        await person.presses("m", "m")
        assert [person.cell(row, 0) for row in range(3)] == ["*1", "*2", " 3"]
        await person.presses("s", "enter")
        await person.is_told("2 saved to held-1.pcap")
        await person.presses("s")
        await person.types("held-1.pcap")
        trouble = person.app.screen.query_one(".trouble")
        await person.until(lambda: "cannot write held-1.pcap" in str(trouble.render()), "the error in the dialog")
        await person.presses("escape", "d")
        await person.reads("-- #2 a copy goes on from icmp_rcv()")
        await person.presses("R")
        await person.reads("received, +2 duplicates")

    shown(shared_lab, ping(3), test)
    first, second = rdpcap(str(tmp_path / "held-1.pcap"))
    assert [first.seq, second.seq] == [1, 2]
    assert second.time - first.time == pytest.approx(0.1, abs=0.05)


@pytest.mark.wall_clock
def test_a_packet_is_released_after_a_time(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        await person.presses("a")
        await person.types("soon")
        trouble = person.app.screen.query_one(".trouble")
        await person.until(lambda: "not a number of seconds" in str(trouble.render()), "the error in the dialog")
        await person.types("0.6")
        await person.until(lambda: person.cell(0, 1).startswith("in 0."), "how long it has still to go")
        await person.presses("x")
        await person.is_told("cannot drop this packet: it is leaving")
        await person.reads("1 packets transmitted, 1 received")
        assert parse_ping(person.said())[0].rtt_ms > 600

    shown(shared_lab, ping(1), test)


def test_another_filter(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        await person.presses("f")
        await person.types("icmp 3")
        trouble = person.app.screen.query_one(".trouble")
        await person.until(lambda: "libpcap does not understand" in str(trouble.render()), "the error in the dialog")
        await person.types("icmp[6:2] >= 8")
        await person.until(lambda: "icmp_rcv = hold if icmp[6:2] >= 8" in person.title, "the new rule")
        late = shared_lab.popen(ping(9, interval_s=0.01), stdout=subprocess.PIPE)
        await person.holds(3)
        assert [person.cell(row, 3).partition("seq ")[2].split()[0] for row in range(3)] == ["1", "8", "9"]
        await person.presses("R")
        await person.reads("1 packets transmitted, 1 received")
        assert person.app.held.running[0].armed.counts.released == 3
        process.finish(late, timeout_s=20)  # it does not wait for the last two: -W is for a ping without any answer

    shown(shared_lab, ping(1), test)


def test_several_functions_at_once(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        assert person.cell(0, 2) == "icmp_rcv"
        await person.presses("r")
        await person.until(lambda: person.table.row_count == 1 and person.cell(0, 2) == "ip_output", "the reply")
        assert person.cell(0, 3).startswith("ICMP echo reply")
        await person.presses("r")
        await person.reads("1 packets transmitted, 1 received")

    shown(shared_lab, ping(1), test, "icmp_rcv", "ip_output if icmp[icmptype] == icmp-echoreply")


def test_what_is_chosen_is_shown_in_full(shared_lab: Lab) -> None:
    async def test(person: Person) -> None:
        await person.holds(1)
        await person.until(lambda: "icmp.seq" in person.fields, "the fields")
        layers, bytes_shown = person.app.query_one("#layers"), person.app.query_one("#hex")
        assert re.search(r"#1 icmp_rcv\(\) net/ipv4/icmp.c:\d+", str(layers.border_title))
        assert person.fields["ip.src"].endswith("192.168.10.254")
        assert person.fields["icmp.type"].endswith("echo-request (8)")
        await person.presses("tab", "down", "down")
        await person.until(lambda: "ip.version: 1 from 0" in str(bytes_shown.border_title), "what is lit")
        await person.presses("shift+tab", "R")
        await person.reads("1 packets transmitted, 1 received")

    shown(shared_lab, ping(1), test)
