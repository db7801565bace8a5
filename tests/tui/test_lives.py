"""The client ends, the guest dies, packets pour in: the screen says so, and still responds to keys."""

import asyncio
import os
import signal
import sys
import time
from contextlib import closing

import pytest

from skblab.errors import GuestLost, RuleError, UsageError
from skblab.host import process
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.tui.app import MOST_ROWS
from skblab.tui.dialogs import Lost
from skblab.tui.model import HeldPackets
from tui.screen import ECHO, ping, screen

FLOOD_PACKETS = 6000
FLOOD = f"""
import socket, sys, time
from skblab.packet import echo_request
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sent = 0
while sent < {FLOOD_PACKETS}:
    try:
        raw.sendto(echo_request(7, sent, bytes(56)), ("192.168.10.1", 0))
        sent += 1
    except OSError:  # ENOBUFS: the link is full
        continue
    if sent % 50 == 0:
        time.sleep(0.005)  # ten thousand a second
print("sent", sent, flush=True)
"""


def test_packets_can_be_decided_on_when_their_client_has_ended(shared_lab: Lab) -> None:
    async def run() -> None:
        async with screen(shared_lab, ping(2, "-w", "1", interval_s=0.6)) as person:
            await person.holds(2)
            await person.until(lambda: person.app.client.status == 1, "ping's end")
            pane = person.app.query_one("#client")
            await person.until(lambda: "ended, exit status 1" in str(pane.border_title), "its exit status")
            await person.presses("r", "x")
            await person.holds(0)
            await person.reads("-- #2 dropped by icmp_rcv() after ")
            await person.presses("q")
        assert person.app.return_value == person.app.client.status == 1

    asyncio.run(run())


def test_a_guest_that_dies_is_told_of_with_its_log(lab: Lab) -> None:
    async def run() -> None:
        async with screen(lab, ping(1)) as person:
            await person.holds(1)
            os.kill(lab.guest.pid, signal.SIGKILL)
            await person.until(lambda: isinstance(person.app.screen, Lost), "the dialog")
            shown = []
            for key in ("tab", "l"):
                await person.presses(key)
                shown.append(person.app.screen.query_one("#log").display)
            assert shown == [False, True]
            await person.presses("q")
        assert person.app.return_value == GuestLost.exit_status
        assert isinstance(person.app.lost, GuestLost)
        assert "signal SIGKILL" in person.app.lost.what

    asyncio.run(run())


def test_a_client_that_is_not_there_says_so_itself(shared_lab: Lab) -> None:
    async def run() -> None:
        async with screen(shared_lab, ["no-such-program"]) as person:
            await person.until(lambda: bool(person.app.client.status), "its exit status")
            await person.reads("no-such-program")

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.wall_clock
def test_a_flood_does_not_keep_a_person_waiting(lab: Lab) -> None:
    async def run() -> None:
        async with screen(lab, [sys.executable, "-c", FLOOD], size=(120, 36)) as person:
            waits_s, before_s = [], time.monotonic()
            agent = lab.agent.channel
            while person.app.client.status is None or len(person.app.held.rows) < agent.held:
                asked_s = time.monotonic()
                await person.presses("down")
                waits_s.append(time.monotonic() - asked_s)
                assert time.monotonic() - before_s < 60, f"{len(person.app.held.rows)} held\n{person.said()}"
            assert max(waits_s) < 2, sorted(waits_s)[-9:]  # 1.2 to 1.4 on two slow cores
            count = len(person.app.held.rows)  # a link may drop what comes too fast, before the kernel has it
            assert count > FLOOD_PACKETS / 2
            await person.until(lambda: str(count)[-3:] in str(person.table.border_title), "all of them counted")
            assert person.table.row_count == MOST_ROWS
            assert str(person.table.border_subtitle) == f"and {count - MOST_ROWS:,} more"
            await person.presses("x", "R")
            await person.holds(0)
            assert person.app.held.lost == 0
            assert person.app.held.running[0].armed.counts.released == count - 1

    asyncio.run(run())


def test_a_model_has_no_screen(shared_lab: Lab) -> None:
    with closing(HeldPackets(shared_lab, [Rule.parse_hold(ECHO)])) as held:
        client = shared_lab.popen(ping(3, interval_s=0.01))
        while len(held.rows) < 3:
            held.refresh()
        first, second, third = held.in_hand()
        assert [row.number for row in (first, second, third)] == [1, 2, 3]
        second.marked = True
        assert held.marked() == [second]
        second.held.drop()
        assert held.in_hand() == [first, third]
        assert second.held.wait(5)
        assert held.refresh() == [second]
        assert held.in_hand() == [first, third]
        with pytest.raises(RuleError, match="libpcap"):
            held.refilter("icmp 3")
        assert first.held.state.value == "held"
        held.refilter("icmp[6:2] == 3")
        assert held.rules == [Rule("icmp_rcv", "hold", filter="icmp[6:2] == 3")]
        assert held.in_hand() == [first, third]
        late = shared_lab.popen(ping(3, interval_s=0.01))
        while len(held.rows) < 3:
            held.refresh()
        echo = held.in_hand()[2].held.packet.echo
        assert echo is not None
        assert echo[2] == 3
        first.held.release()
        assert first.held.wait(5)
        assert held.running[0].armed.counts.held == 4
    assert third.held.wait(5)
    process.end(client)
    process.end(late)


@pytest.mark.parametrize("rule", ["icmp_rcv = stop", "icmp_rcv = hold 8 release reverse"])
def test_a_rule_that_is_none_for_a_screen(shared_lab: Lab, rule: str) -> None:
    with pytest.raises(UsageError, match="one by one") as caught:
        HeldPackets(shared_lab, [Rule.parse(rule)])
    assert caught.value.hint == f"skblab run -r '{rule}' -- ..."
    assert shared_lab.agent.channel.probes == 0
