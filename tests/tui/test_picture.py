"""The picture of the documentation, from the real program: the same run that makes it checks what is on it."""

import asyncio
import os
import re
from html import unescape
from pathlib import Path

from skblab.lab import Lab
from tui.screen import Person, ping, screen

SIZE = (120, 36)
PICTURE = Path(__file__).parents[2] / "docs/pictures/hold.svg"
REPLIES = "icmp_rcv if icmp[icmptype] == icmp-echo", "ip_output if icmp[icmptype] == icmp-echoreply"


def words(svg: str) -> str:
    """Return the text of a picture."""
    return unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))).replace("\N{NO-BREAK SPACE}", " ")


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


def test_the_picture_shows_the_real_program(lab: Lab) -> None:
    picture = asyncio.run(taken(lab))
    if os.environ.get("SKBLAB_PICTURES"):
        PICTURE.write_text(picture)
    for svg in (picture, PICTURE.read_text()):
        text = words(svg)
        for part in (
            "held inside the kernel: 3", "icmp_rcv", "ICMP echo request, id ", "edited",
            "net/ipv4/icmp.c:", "ip.ttl: 1 from 8",
            "-- #1 released by icmp_rcv() after ", "icmp_seq=1 ttl=64 time=", "RTT", "release", "reversed", "quit",
        ):  # fmt: skip
            assert part in text, f"{part} is not on the picture"
