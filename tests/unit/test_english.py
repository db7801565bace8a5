"""No word that a kernel developer would have to read twice: docs/reference/glossary.md has the words to use."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.host import process

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {".py", ".c", ".h", ".S", ".md", ".js", ".html", ".sh", ".config", ".toml", ""}
SKIPPED = {"tests/unit/test_english.py", "LICENSE", "uv.lock"}
# Whole words, and what to write instead.
WORDS = {
    r"told": "the thing itself: a callback, a return value, what is reported",
    r"whoever": "the caller, the reader, the process that ...",
    r"likewise": "too, or the fact again",
    r"(?:is|are|was|were) (?-i:none)": "no such ..., is not a ...",
    r"of which is to be": "two sentences",
    r"(?:is|are) to be": "will, has to, must",
    r"mends?|mended|mending": "hint, fix, repair",
    r"anew": "again",
    r"tells? of": "report, print",
    r"unasked": "unrequested",
    r"goes without saying": "nothing",
    r"words? of the stack that": "return address",
    r"the way (?:there|to here|back)": "call trace, backtrace, return address",
    r"comes? by": "pass, enter",
    r"for ever and": "for ever",
    r"somebody else's": "whose it is",
    r"true no more|no more true": "stale",
    r"where there is none": "if there is no ...",
    r"to and fro": "both ways",
    r"thereof|wherefrom|whither|hither": "of it, from where, to where, here",
    r"nobody's way": "not on the path",
}
PATTERN = re.compile("|".join(rf"(?P<w{at}>\b(?:{word})\b)" for at, word in enumerate(WORDS)), re.IGNORECASE)
ALLOWED = re.compile(r"words of the stack that may be")  # one is a return address


def tracked() -> list[str]:
    listed = process.run(["git", "-C", ROOT, "ls-files"], timeout_s=30).stdout.splitlines()
    return [name for name in listed if Path(name).suffix in TEXTS and name not in SKIPPED]


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines to read, with their numbers: of a test, only docstrings and comments."""
    if not (name.startswith("tests/") and name.endswith(".py")):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            for at, line in enumerate(docstring.splitlines()):
                yield node.body[0].lineno + at, line


def found(name: str, text: str) -> Iterator[str]:
    for number, line in prose(name, text):
        for match in PATTERN.finditer(ALLOWED.sub("", line)):
            assert match.lastgroup
            instead = list(WORDS.values())[int(match.lastgroup[1:])]
            yield f"{name}:{number}: {match[0]!r}, better: {instead}\n    {line.strip()}"


def test_every_sentence_is_read_once() -> None:
    names = tracked()
    assert len(names) > 200
    problems = [problem for name in names for problem in found(name, (ROOT / name).read_text())]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "line",
    ["the caller is told of it", "Whoever reads it", "x = likewise", "there is none.", "a drop of which is to be told",
     "to mend it: make room"],
)  # fmt: skip
def test_such_a_sentence_is_found(line: str) -> None:
    assert list(found("docs/page.md", line))
    assert list(found("tests/test_it.py", f'"""{line}"""\n'))


def test_of_a_test_only_the_prose_is_read() -> None:
    assert not list(found("tests/test_it.py", 'told = "whoever"\n'))
