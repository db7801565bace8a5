"""docs/explanation/a-pings-way.md shows what the program prints; with SKBLAB_PICTURES=1 it is written again."""

import os
import re
import shlex
from pathlib import Path

from support import skblab

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/a-pings-way.md"
BLOCK = re.compile(r"<!-- (trace .*?) -->\n```text\n(.*?)```", re.DOTALL)
DIFFERENT_EVERY_TIME = re.compile(
    r"0x[0-9a-f]+|= \d{4,}|(id|seq|ack|val|ecr) \d+|[.:]\d{4,5}\b|^ *\d+\.\d+( +\d+\.\d+)?", re.MULTILINE
)


def tree(command: str) -> str:
    done = skblab(*shlex.split(command))
    assert done.stderr.endswith("events lost: 0\n"), done.stderr
    lines = done.stdout.splitlines()
    return "\n".join(lines[next(n for n, line in enumerate(lines) if line.startswith("packet")) :]) + "\n"


def test_the_page_shows_what_the_program_prints() -> None:
    page = PAGE.read_text()
    blocks = BLOCK.findall(page)
    assert len(blocks) == 2
    for command, shown in blocks:
        printed = tree(command)
        if os.environ.get("SKBLAB_PICTURES"):
            page = page.replace(
                f"<!-- {command} -->\n```text\n{shown}```", f"<!-- {command} -->\n```text\n{printed}```"
            )
            PAGE.write_text(page)
        else:
            assert DIFFERENT_EVERY_TIME.sub("", printed) == DIFFERENT_EVERY_TIME.sub("", shown)
