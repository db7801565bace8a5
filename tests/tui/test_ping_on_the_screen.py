"""``skblab ping`` in tmux, as a person sees it: held, released, edited, dropped, and ping's output."""

from collections.abc import Iterator

import pytest

from support import SKBLAB, eventually_nothing, remains
from tui.tmux import Tmux


@pytest.fixture(params=[(80, 24), (160, 50)], ids=["80x24", "160x50"])
def screen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tmux]:
    before = remains()
    tmux = Tmux(str(tmp_path_factory.mktemp("tmux")), *request.param, *SKBLAB, "ping", "-i", "0.7")
    yield tmux
    tmux.close()
    assert eventually_nothing(before) == []


@pytest.mark.wall_clock
def test_a_ping_is_held_released_edited_and_dropped(screen: Tmux) -> None:
    first = float(screen.shows(r"1 +(\d+\.\d) s +icmp_rcv +ICMP echo request, id \d+, seq 1 ")[1])
    screen.shows(rf"1 +(?!{first} )\d+\.\d s +icmp_rcv")  # its age ticks
    screen.types("r")
    held_ms = int(screen.shows(r"-- #1 released by icmp_rcv\(\) after (\d+) ms")[1])
    rtt_ms = float(screen.shows(r"icmp_seq=1 ttl=64 time=([\d.]+) ms")[1])
    assert abs(rtt_ms - held_ms) < 5
    screen.shows(r"2 +\d+\.\d s +icmp_rcv")
    screen.types("e")
    screen.shows("edit #2 in icmp_rcv")
    # The form begins at the first field; the payload is the last.
    screen.types("BTab")
    screen.shows(r"raw.load = \S.*01234567")
    screen.types("C-e")
    screen.types("BSpace")
    screen.shows(r"raw.load = \S.*0123456 ")
    screen.types("Z")
    screen.shows(r"raw.load = \S.*0123456Z ")
    screen.types("Enter")
    screen.shows("-- #2 raw.load")
    screen.types("r")
    screen.shows(r"wrong data byte #55 should be 0x37 but was 0x5a")
    screen.shows(r"3 +\d+\.\d s +icmp_rcv")
    screen.shows(r"held +in +packet[^\n]*\n +3 ")  # the oldest is the chosen one
    screen.types("x")
    screen.shows(r"-- #3 dropped by icmp_rcv\(\)")
    screen.types("q")
    said = screen.shows(r"(\d+) packets transmitted, (\d+) received.*lost: 0\s+status 0")
    assert int(said[1]) - int(said[2]) >= 1


def test_the_stack_is_shown_with_its_source(screen: Tmux) -> None:
    screen.shows(r"icmp_rcv +ICMP echo request")
    if "called by" not in screen.shows(".*")[0]:
        screen.types("t")
    screen.shows(r"called by: \d+ frames.*icmp_rcv\(\)  icmp.c:\d+.*int icmp_rcv\(")
    screen.types("q")
    screen.shows("status 0")
