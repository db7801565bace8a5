"""Every example runs as it is, and the documents' links lead somewhere."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.host import process

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
SERVERS = sorted(ROOT.glob("examples/servers/test_*.py"))
LEAST_CONVERSATIONS, MOST_LINES = 20, 20
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path) -> None:
    done = process.run([sys.executable, "-W", "error", example], timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


def conversations(example: Path) -> list[ast.FunctionDef]:
    """Return the tests of a file."""
    found = ast.parse(example.read_text()).body
    return [one for one in found if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]


def table() -> Iterator[str]:
    """Yield what docs/how-to/real-servers.md has to say of each conversation, line by line."""
    for example in SERVERS:
        server = example.stem.removeprefix("test_")
        yield from (f"### [{server}](../../{example.relative_to(ROOT)})", "")
        yield from ("| what is wrong | what the client sees | what the kernels count |", "|---|---|---|")
        for one in conversations(example):
            said = (ast.get_docstring(one) or "").partition("\n")[0].split(" | ")
            assert len(said) == 3, one.name
            yield f"| {' | '.join(said)} |"
        yield ""


def test_the_page_has_every_conversation() -> None:
    lines = (ROOT / "docs/how-to/real-servers.md").read_text().splitlines()
    wanted = [*table()][:-1]
    assert lines[-len(wanted) :] == wanted


def test_a_conversation_is_short() -> None:
    lengths = {one.name: one.end_lineno - one.lineno + 1 for example in SERVERS for one in conversations(example)}  # type: ignore[operator]
    assert len(lengths) >= LEAST_CONVERSATIONS
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_conversation_with_a_server() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures"]
    done = process.run([*argv, ROOT / "examples/servers"], cwd=ROOT, timeout_s=360)
    count = sum(len(conversations(example)) for example in SERVERS)
    assert re.search(rf"^{count} passed in ", done.stdout, re.MULTILINE), done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_pages_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
