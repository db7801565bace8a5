"""The page of a trace, in a real browser: what it shows, by keys alone, in the dark, and how soon.

With SKBLAB_PICTURES=1 its picture is taken again.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from skblab.errors import CannotWrite
from skblab.lab import Lab
from skblab.trace.journey import journeys
from skblab.trace.reader import load
from skblab.view.page import write_page

GUEST = "192.168.10.1"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
MANY_STEPS = 100_000
READY = "document.documentElement.dataset.ready === '1'"
OPEN_S = 2.0
PICTURE = Path(__file__).parents[2] / "docs/pictures/page.png"
SIZE = (1280, 860)


@pytest.fixture(scope="module")
def lab(shared_lab: Lab) -> Lab:
    shared_lab.run(["ping", "-n", "-c", "1", GUEST])
    return shared_lab


@pytest.fixture(scope="module")
def file(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pings, one of them held, with something hostile in them; and a connection that is refused."""
    path = tmp_path_factory.mktemp("page") / "run"
    with lab.trace(to=path, about={"command": ["ping", HOSTILE]}) as tracer:
        lab.run(["ping", "-n", "-c", "1", "-s", "100", "-p", HOSTILE.encode().hex()[:32], GUEST])
        with lab.rule("icmp_rcv = delay 50ms"):
            lab.run(["ping", "-n", "-c", "1", GUEST])
        with lab.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((GUEST, 9))
        tracer.end(status=0)
    return path


@pytest.fixture
def html(file: Path, tmp_path: Path) -> Path:
    write_page(load(file), tmp_path / "page.html")
    return tmp_path / "page.html"


@pytest.fixture
def page(browser: Browser, html: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(html.as_uri())
    page.wait_for_function(READY)
    yield page
    assert problems == []
    assert asked == [html.as_uri()]
    context.close()


def test_it_shows_the_journeys(page: Page, file: Path) -> None:
    found = [one for one in journeys(load(file)) if one.is_of_network]
    assert page.locator("#count").inner_text() == str(len(found))
    assert "lost: 0" in page.locator("#about").inner_text()
    page.fill("#search", "echo request")
    assert page.locator("#count").inner_text().startswith("2 of ")
    assert "echo request" in page.locator("#packet").inner_text()
    assert "echo reply" in page.locator("#family").inner_text()
    assert "icmp_rcv()" in page.evaluate("document.body.textContent")
    assert page.locator("#calls .row").count() > 10


def test_what_was_dropped_says_why_and_where(page: Page) -> None:
    page.check("#dropped")
    assert "NO_SOCKET" in page.locator("#journeys").inner_text()
    page.focus("#calls")
    for _ in range(100):
        if page.locator("#stack-title").is_visible():
            break
        page.keyboard.press("ArrowDown")
    assert "tcp_v4_rcv()" in page.locator("#stack").inner_text()
    assert "NO_SOCKET" in page.locator("#facts").inner_text()


@pytest.mark.wall_clock(alone=True)
def test_a_held_packet_is_told(page: Page) -> None:
    page.fill("#search", "released")
    assert page.locator("#count").inner_text().startswith("1 of ")
    assert "held 5" in page.locator("#journeys").inner_text()


def test_by_keys_alone(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("echo request")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "calls"
    rows = page.locator("#calls .row").count()
    for _ in range(60):
        page.keyboard.press("ArrowDown")
        if page.locator("#function").inner_text() == "icmp_rcv()":
            break
    assert page.locator("#function").inner_text() == "icmp_rcv()"
    assert page.locator("#line").inner_text().startswith("192.168.10.254 > 192.168.10.1: ICMP echo request, id ")
    assert "ttl" in page.locator("#layers").inner_text()
    assert page.locator("#bytes").inner_text().startswith("0000  4500")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#calls .row.chosen").get_attribute("aria-expanded") == "false"
    page.keyboard.press("ArrowRight")
    assert page.locator("#calls .row.chosen").get_attribute("aria-expanded") == "true"
    for key in "++-.,0":
        page.keyboard.press(key)
    assert page.locator("#calls .row").count() == rows
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "journeys"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()


def test_nothing_is_cut_off_and_everything_is_named(page: Page) -> None:
    """At 1280 pixels: TCP's flags in the list, the hex dump, the columns of the calls, the colours of the timeline."""
    page.fill("#search", "Flags [S]")
    row = page.locator("#journeys .row").first
    assert row.locator("b").inner_text().startswith("Flags [S], seq ")
    assert row.locator(".ends").inner_text().endswith(f" > {GUEST}.9")
    assert "dropped: NO_SOCKET" in row.inner_text()
    page.focus("#calls")
    while not page.locator("#bytes").inner_text():
        page.keyboard.press("ArrowDown")
    for name in ("bytes", "search"):
        assert page.locator(f"#{name}").evaluate("(one) => one.scrollWidth <= one.clientWidth"), name
    assert page.locator(".heads").inner_text().endswith("return value")
    assert page.locator("#calls .note.value").first.inner_text().startswith("= ")
    assert "net/ipv4/ip_input.c" in page.locator("#files").inner_text()
    colours = page.evaluate("[...document.querySelectorAll('#files li')].map((one) => one.style.cssText)")
    assert len({*colours}) > 3


def test_dark_and_light(page: Page, browser: Browser, html: Path) -> None:
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    with browser.new_context(color_scheme="dark") as context:
        other = context.new_page()
        other.goto(html.as_uri())
        other.wait_for_function(READY)
        assert other.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_what_a_packet_says_is_text(page: Page) -> None:
    assert page.title().startswith("ping <script>")
    assert page.locator("#command").inner_text() == f"ping {HOSTILE}"
    assert page.locator("img").count() == 0
    page.fill("#search", "echo request")
    page.focus("#calls")
    page.keyboard.press("End")
    assert "ipt>document<sc" in page.locator("#bytes").inner_text()


def test_a_phone(browser: Browser, html: Path) -> None:
    with browser.new_context(viewport={"width": 390, "height": 800}) as context:
        page = context.new_page()
        page.goto(html.as_uri())
        page.wait_for_function(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.wall_clock(alone=True)  # a browser has a process for each of its parts
def test_a_hundred_thousand_steps(lab: Lab, browser: Browser, tmp_path: Path) -> None:
    path, html = tmp_path / "many", tmp_path / "many.html"
    with lab.trace(filter="icmp", to=path):
        lab.run(["ping", "-n", "-q", "-f", "-c", "2500", GUEST], timeout_s=60)
    trace = load(path)
    assert len(trace.steps) > MANY_STEPS
    write_page(trace, html)
    took_s = []
    for _ in range(3):
        with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
            page = context.new_page()
            begun_s = time.perf_counter()
            page.goto(html.as_uri())
            page.wait_for_function(READY)
            took_s.append(time.perf_counter() - begun_s)
            page.fill("#search", "icmp_reply")
            assert page.locator("#count").inner_text().startswith("2500")
    assert min(took_s) < OPEN_S, took_s


def test_what_exists_is_not_overwritten(file: Path, html: Path) -> None:
    with pytest.raises(CannotWrite, match="cannot write"):
        write_page(load(file), html)


@pytest.mark.wall_clock(alone=True)
def test_the_picture_shows_the_real_page(browser: Browser, tmp_path: Path) -> None:
    """Four pings: the second one is held, the third one dropped, and the fourth one stands in icmp_rcv()."""
    with Lab() as lab:
        lab.run(["ping", "-n", "-c", "1", GUEST])
        about: dict[str, Any] = {"command": ["ping", "-c4", "-i0.2", "guest"]}
        with lab.trace(filter="icmp", to=tmp_path / "run", about=about) as tracer:
            with lab.rule("icmp_rcv = delay 20ms @2"), lab.rule("icmp_rcv = drop @2"):
                lab.run(["ping", "-n", "-c", "4", "-i", "0.2", "-W", "1", GUEST])
            tracer.end(status=0)
    write_page(load(tmp_path / "run"), tmp_path / "page.html")
    with browser.new_context(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light") as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function(READY)
        told = page.locator("#journeys").inner_text()
        assert "held 20." in told
        assert "dropped: by a rule" in told
        for _ in range(3):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        while page.locator("#function").inner_text() != "icmp_rcv()":
            page.keyboard.press("ArrowDown")
        assert "seq 4" in page.locator("#packet").inner_text()
        picture = page.screenshot()
    if os.environ.get("SKBLAB_PICTURES"):
        PICTURE.write_bytes(picture)
    assert [struct.unpack(">II", one[16:24]) for one in (picture, PICTURE.read_bytes())] == [SIZE, SIZE]
