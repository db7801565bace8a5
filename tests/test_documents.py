"""Every block of README, tutorial, how-tos and Python reference runs, each page in order, in a directory of its own.

===========  =============================================================================================
``sh``       its commands end with 0
``python``   it ends with 0, and prints something; pytest runs it if it has tests
``console``  runs what follows ``$ ``, and compares the output with the lines below: numbers may differ, words
                          not; ``...`` is any lines. Blocks of a ``(gdb)`` session are one session, whose lines are
                          found in order
===========  =============================================================================================

The line before a block that is not run says why: ``<!-- not run: WHY -->``. There is no other kind.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from skblab.host import process, registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "docs/reference/python.md",
    *sorted(ROOT.glob("docs/tutorial/*.md")), *sorted(ROOT.glob("docs/how-to/*.md")),
]  # fmt: skip
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b|[0-9][0-9.,:/]*")
PROGRAM = re.compile(r"\S+/python[0-9.]* \S+/skblab")
DUMP = re.compile(r"0x[0-9a-f]{4}:  .*")
ANY_LINES = re.compile(r"\s*\.\.\.( \d+ more.*)?")
NOT_RUN = 29
TIMEOUT_S = 90
PACKET = re.compile(r"# \w+ # ")  # of a rule, as loose() leaves it: when, at which function, the how-manieth
PROMPT, GDB = "(gdb) ", "$ skblab gdb"
DONE = "--done-- "


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int
    why: str = ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found["kind"], found["text"], text.count("\n", 0, found.start("text")), found["why"] or "")
        for found in BLOCK.finditer(text)
    ]


def loose(text: str) -> str:
    """Return text without what differs each time: numbers, paths of programs, numbers of blanks."""
    text = DUMP.sub("dump", PROGRAM.sub("skblab", text))
    lines = (re.sub(r"#( #)+", "#", " ".join(NUMBER.sub("#", line).split())) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def looks_like(shown: str, printed: str, command: str) -> bool:
    """Whether a transcript matches the output.

    In real time a client's lines come before or after those of packets at the same moment, because two programs write
    them; each program's own lines keep their order.
    """
    lines = [line for line in shown.splitlines() if line.strip()]
    wanted = "".join(r"(?:.*\n)*?" if ANY_LINES.fullmatch(line) else re.escape(loose(line)) for line in lines)
    if re.fullmatch(wanted, loose(printed)):
        return True
    writes_beside = " -- " in command and "--time virtual" not in command
    return writes_beside and packets_apart(shown) == packets_apart(printed)


def packets_apart(text: str) -> list[str]:
    """Return a transcript's lines, those of packets behind all others."""
    return sorted(loose(text).splitlines(), key=lambda line: bool(PACKET.match(line)))


def transcript(text: str) -> list[tuple[str, str]]:
    """Return the commands of a transcript, each with the lines below it."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    if parts[0].strip():
        raise AssertionError(f"it begins without a command: {parts[0]}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


class Shell:
    """Runs commands in a page's directory; labs that it leaves up are of this page alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "here"
        (directory / "run").mkdir(mode=0o700)
        self.directory.mkdir()
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "REPOSITORY": str(ROOT),
        }

    def run(self, script: str, *, stdin: str = "") -> tuple[int, str]:
        """Run a script of bash; return its status and its output on both streams."""
        argv = ["bash", "-c", f"exec 2>&1 <<'END_OF_INPUT'\n{stdin}END_OF_INPUT\n{script}"]
        done = process.finish(
            process.start(argv, cwd=self.directory, env=self.environment, stdout=-1, stderr=-1), timeout_s=TIMEOUT_S
        )
        return done.returncode, done.stdout

    def end(self) -> None:
        self.run("skblab down --all")


def check_transcript(shell: Shell, text: str) -> None:
    """Run a transcript's commands in one shell, so that ``$?`` is the last one's, and compare."""
    parts = transcript(text)
    status = "__status=$?"
    script = "\n".join(f"(exit ${{__status:-0}})\n{command}\n{status}; echo; echo '{DONE}'" for command, _ in parts)
    _, printed = shell.run(script)
    outputs = printed.split(f"{DONE}\n")
    for (command, shown), output in zip(parts, outputs, strict=False):
        if not looks_like(shown, output, command):
            raise AssertionError(f"$ {command}\n--- shown\n{shown}\n--- printed\n{output}")


def check_gdb(shell: Shell, session: Sequence[Block]) -> None:
    """Run a session's commands as one script, and find its lines, in order, in gdb's output."""
    lines = [line for block in session for line in block.text.splitlines()]
    command = lines.pop(0).removeprefix("$ ")
    typed = [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
    _, printed = shell.run(command, stdin="".join(f"{one}\n" for one in (*typed, "quit")))
    said = loose(re.sub(r"^(\(gdb\) ?)+", "", printed, flags=re.MULTILINE)).splitlines()
    place = 0
    for line in lines:
        if line.startswith(PROMPT) or not line.strip() or ANY_LINES.fullmatch(line) or " bytes from " in line:
            continue
        wanted = loose(line).strip()
        if wanted not in said[place:]:
            raise AssertionError(f"{line}\n--- not in what is left of\n{printed}")
        place = said.index(wanted, place) + 1


def sessions(found: Sequence[Block]) -> Iterator[list[Block]]:
    """Yield blocks one by one; those of a gdb session together, with any text between them."""
    session: list[Block] = []
    for block in found:
        if block.kind == "console" and block.text.startswith(PROMPT):
            session.append(block)
        elif block.kind == "console" and block.text.startswith(GDB):
            yield from [session] if session else []
            session = [block]
        else:
            yield [block]
    yield from [session] if session else []


def check_script(shell: Shell, text: str) -> None:
    status, printed = shell.run(f"set -euo pipefail\n{text}")
    if status:
        raise AssertionError(f"{text}\n--- status {status}\n{printed}")


def check_program(shell: Shell, text: str) -> None:
    shell.directory.joinpath("block.py").write_text(text)
    has_tests = "def test_" in text
    status, printed = shell.run("pytest -q -p no:cacheprovider block.py" if has_tests else "python -W error block.py")
    if status or not printed:
        raise AssertionError(printed or "it prints nothing")


CHECKS = {"sh": check_script, "python": check_program, "console": check_transcript}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.complains("warning", "refcount", "panic")  # the pages show complaints
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    try:
        for session in sessions([block for block in blocks(page) if not block.why]):
            block = session[0]
            try:
                if block.text.startswith(GDB):
                    check_gdb(shell, session)
                else:
                    CHECKS[block.kind](shell, block.text)
            except AssertionError as error:
                error.add_note(f"{page.relative_to(ROOT)}:{block.line}")
                raise
    finally:
        shell.end()
    assert not list((tmp_path / "run" / registry.registry_dir().name).glob("*.lab"))


def test_every_block_is_run_or_says_why_not() -> None:
    found = [(page.name, block) for page in PAGES for block in blocks(page)]
    assert [(name, block.line) for name, block in found if block.kind not in CHECKS] == []
    assert sum(page.read_text().count("\n```") for page in PAGES) == 2 * len(found), "a block within a list?"
    assert len([block for _, block in found if block.why]) == NOT_RUN
