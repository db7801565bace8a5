"""The page of a sweep, in a real browser: the heat map, and the conversation of a cell that was chosen."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from skblab.image.image import Image
from skblab.spec import LabSpec
from skblab.sweep import page as sweep_page
from skblab.sweep.cell import Scenario
from skblab.sweep.matrix import Matrix
from skblab.sweep.sweep import Sweep

HOSTILE = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def file(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ping that something hostile follows."""
    client = ("sh", "-c", f'ping -n -c1 -W1 guest && echo "{HOSTILE}"', str(os.getpid()))  # a sweep of its own
    sweep = Sweep(Scenario(spec=LabSpec(image=image, time="virtual"), client=client, judged=("status",)), ("drop",), 1)
    sweep.begin()
    assert len(list(sweep.run())) == 3
    path = tmp_path_factory.mktemp("sweep") / "sweep.html"
    sweep_page.write(sweep, path)
    return path


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    yield page
    assert not said
    context.close()


def test_the_first_bad_cell_is_shown(page: Page) -> None:
    assert page.locator("#map button").all_text_contents() == ["failed 1", "failed 1"]
    assert page.locator("button.chosen").count() == 1
    assert page.locator("#name").text_content() == "#1 drop"
    assert page.locator("#talk text.fault").first.text_content() == "\u2715"
    assert "ip_rcv = drop @1" in str(page.locator("#command").text_content())
    assert "100% packet loss" in str(page.locator("#now").text_content())
    assert HOSTILE in str(page.locator("#before").text_content())
    assert "guest Icmp InEchos" in str(page.locator("#counters").text_content())
    assert page.title() != "owned"


def test_a_cell_that_is_chosen_is_shown(page: Page) -> None:
    page.locator("#others button").click()
    assert page.locator("#name").text_content() == "#1 drop, #2 drop"
    page.locator("#map button").nth(1).click()
    assert page.locator("#talk line:not(.life)").count() == 2
    assert page.locator("#name").text_content() == "#2 drop"


def test_a_matrix_shows_its_cases(image: Image, browser: Browser, tmp_path: Path) -> None:
    hostile = ("sh", "-c", f'echo "{HOSTILE}"; test $(od -An -N1 -tu1 /dev/urandom) -lt 128')
    scenario = Scenario(name=HOSTILE, spec=LabSpec(image=image, time="virtual"), client=hostile)
    matrix = Matrix([scenario, replace(scenario, name="always", client=("true",))], seeds=range(6))
    assert len(list(matrix.run())) == 12
    sweep_page.write_matrix(matrix, tmp_path / "matrix.html")
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "matrix.html").as_uri())
    words = page.locator("#map button").all_text_contents()
    assert words == [matrix.words(case) for case in matrix.cases]
    assert words[0].startswith("flaky, ")
    assert str(page.locator("#name").text_content()).startswith(f"{HOSTILE} on 6.12, seed ")
    assert page.locator("#before").text_content() == page.locator("#now").text_content() == f"{HOSTILE}\n"
    assert page.title() == "skblab matrix"
    context.close()
    assert not said
