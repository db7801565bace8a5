"""The guided experiment on a real terminal: its text, and its keys."""

import os
import re
import termios
import time
from collections.abc import Iterator

import pytest

from skblab.host import process
from support import Person, eventually_nothing, read_until, remains

ENTER, CTRL_C = b"\n", b"\x03"
PROMPT = "Enter sends a ping"
HELD = "Enter resumes the kernel"


@pytest.fixture
def person() -> Iterator[Person]:
    before = remains()
    person = Person("ping", "--walk")
    yield person
    process.end(person.program)
    os.close(person.terminal)
    assert eventually_nothing(before) == []


def held_for_half_a_second(said: str) -> bool:
    return any(float(held_s) >= 0.5 for held_s in re.findall(r"held +([\d.]+) s", said))


@pytest.mark.wall_clock
def test_a_person_holds_two_packets_and_climbs_the_staircase(person: Person) -> None:
    read = person.reads(PROMPT)
    assert "Three plain pings: " in read
    assert "do_idle()" in read
    person.types(ENTER)
    for _ in range(2):
        read = person.reads(HELD)
        assert "stopped in icmp_rcv()" in read
        assert "192.168.10.254 > 192.168.10.1: ICMP echo request, id " in read
        assert re.search(r"ip_rcv\(\)  net/ipv4/ip_input.c:\d+", read)
        assert "net_rx_action()" in read
        assert "int icmp_rcv(struct sk_buff *skb)" in read
        held_from = time.monotonic()
        read_until(person.terminal, held_for_half_a_second)
        person.types(ENTER)
        held_ms = (time.monotonic() - held_from) * 1e3
        read = person.reads("goes on to the staircase")
        held, said = map(float, re.findall(r"you held it (\d+) ms; ping says time=([\d.]+) ms", read)[-1])
        assert said == pytest.approx(held, abs=10)
        assert held >= held_ms - 100
        person.types(ENTER)
        person.read = ""
    person.reads(HELD)
    person.types(ENTER)
    person.reads("goes on to the staircase")
    person.types(b"s\n")
    read = person.reads("the guest is well")
    assert "No buffer space available (ENOBUFS)" in read or "has no short queue" in read
    assert person.program.wait(20) == 0


@pytest.mark.parametrize("moment", ["Attaching gdb", PROMPT, HELD])
def test_ctrl_c_ends_it_and_gives_the_terminal_back(person: Person, moment: str) -> None:
    before = termios.tcgetattr(person.terminal)
    if moment == HELD:
        person.reads(PROMPT)
        person.types(ENTER)
    person.reads(moment)
    person.types(CTRL_C)
    read = person.reads("everything it started is gone")
    assert person.program.wait(20) == 130
    assert "Traceback" not in read
    assert termios.tcgetattr(person.terminal) == before


def test_an_error_is_one_clear_sentence_on_a_terminal_too() -> None:
    person = Person("ping", "--at", "icmp_rvc")
    read = person.reads("near: icmp_rcv")
    assert 'no function "icmp_rvc" in Linux' in read
    assert person.program.wait(20) == 2
    os.close(person.terminal)
