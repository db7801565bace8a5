"""The table of verdicts: its rows, and what is made of them."""

import re
from pathlib import Path

import pytest

from skblab.rule import Rule
from skblab.verdict import ROWS, Verdict, table
from support import skblab

PAGE = Path(__file__).parents[2] / "docs/reference/rules.md"
PIPE = re.compile(r"(?<!\\)\|")


def test_the_page_has_the_rows() -> None:
    section = PAGE.read_text().partition("## Verdicts")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in PIPE.split(line)[1:-1]] for line in section.splitlines() if line[:3] == "| `"]
    assert [cell.replace("\\|", "|").strip("`") for cell, _ in cells] == [row.usage for row in ROWS]
    for row, (_, text) in zip(ROWS, cells, strict=True):
        assert text.startswith(row.help), f"| `{row.usage}` | {row.help} ... |"


def test_help_has_the_rows() -> None:
    assert table() in skblab("run", "--help").stdout


@pytest.mark.parametrize("row", ROWS, ids=[row.word for row in ROWS])
def test_a_rule_takes_the_example(row: Verdict) -> None:
    rule = Rule.parse(f"icmp_rcv = {row.example} @2 if icmp")
    assert (rule.verdict, rule.action) == (row.word, row.example)
