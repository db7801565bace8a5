"""The picture of the documentation, from the real program: the same run that makes it checks what is on it."""

import asyncio
import difflib
import os
import re
from html import unescape
from pathlib import Path

import pytest

from skblab.lab import Lab
from tui.screen import Person, ping, screen

SIZE = (120, 36)
ALIKE = 0.8  # of 36 lines; those with times and bytes may have other places
PICTURE = Path(__file__).parents[2] / "docs/pictures/hold.svg"
REPLIES = "icmp_rcv if icmp[icmptype] == icmp-echo", "ip_output if icmp[icmptype] == icmp-echoreply"


def words(svg: str) -> str:
    """Return the text of a picture."""
    return unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))).replace("\N{NO-BREAK SPACE}", " ")


def looks(svg: str) -> list[str]:
    """Return a picture's lines of text without what differs each time: numbers, bytes, the plot."""
    lines: dict[str, list[str]] = {}
    for y, text in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        lines.setdefault(y, []).append(unescape(text).replace("\N{NO-BREAK SPACE}", " "))
    joined = (" ".join(texts) for texts in lines.values())
    return [" ".join(re.sub(r"\b[0-9a-f]{2,}\b|[\d.,]+|[\u2800-\u28ff]+", "#", line).split()) for line in joined]


async def taken(lab: Lab) -> str:
    """Hold some pings, release, edit and mark some, and return the picture of it."""

    async def see(person: Person) -> str:
        await person.holds(4)
        await person.presses("r")
        await person.until(lambda: "echo reply" in person.cell(3, 3), "the reply")
        await person.presses("down", "down", "down", "r", "ctrl+home")
        await person.reads("icmp_seq=1 ttl=64 time=")
        await person.presses("m", "e")
        await person.types("3", "#f-ip-ttl-8")
        await person.until(lambda: person.cell(1, 3).startswith("edited "), "the edit")
        await person.presses("tab", *["down"] * 9)
        await person.until(lambda: "ip.ttl" in str(person.app.query_one("#hex").border_title), "the field")
        picture = person.app.export_screenshot(title="skblab hold -- ping 192.168.10.1")
        await person.presses("shift+tab", "R")
        await person.holds(3)
        await person.presses("R")
        await person.reads("4 received")
        return picture

    async with screen(lab, ping(4, interval_s=0.3), *REPLIES, size=SIZE) as person:
        return await see(person)


@pytest.mark.wall_clock
def test_the_picture_shows_the_real_program(lab: Lab) -> None:
    picture = asyncio.run(taken(lab))
    if os.environ.get("SKBLAB_PICTURES"):
        PICTURE.write_text(picture)
    kept = PICTURE.read_text()
    alike = difflib.SequenceMatcher(a=looks(picture), b=looks(kept), autojunk=False).ratio()
    assert alike > ALIKE, "\n".join(difflib.unified_diff(looks(kept), looks(picture), lineterm=""))
    for svg in (picture, kept):
        text = words(svg)
        for part in (
            "held inside the kernel: 3", "icmp_rcv", "ICMP echo request, id ", "edited",
            "net/ipv4/icmp.c:", "ip.ttl: 1 from 8",
            "-- #1 released by icmp_rcv() after ", "icmp_seq=1 ttl=64 time=", "RTT", "release", "reversed", "quit",
        ):  # fmt: skip
            assert part in text, f"{part} is not on the picture"
