"""CONTRIBUTING.md: its files exist, and the verdict that it adds for example works, in a copy of the repository."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.image import MANIFEST, Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
LINK = re.compile(r"`((?:src|kernel|docs|tests|tools)/[\w./]+|Makefile|pyproject\.toml)`")
DIFF = re.compile(r"^```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TARGET = re.compile(r"^\+\+\+ b/(\S+)$", re.MULTILINE)
NOT_COPIED = (".*", "__pycache__")


def test_every_file_that_the_page_names_is_there() -> None:
    named = LINK.findall(PAGE.read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


@dataclass(frozen=True)
class Repository:
    """A copy of the repository with the page's edits, and a cache of its own, where its agent is built."""

    path: Path
    cache: Path

    def run(self, *argv: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.path / "src"), "SKBLAB_CACHE": str(self.cache)}
        done = process.run([sys.executable, *argv], env=environment, timeout_s=110)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def skblab(self, *words: str) -> str:
        return self.run("-m", "skblab", *words)


@pytest.fixture(scope="module")
def edited(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("newcomer")
    path = shutil.copytree(ROOT, root / "skblab", ignore=shutil.ignore_patterns(*NOT_COPIED))
    for number, diff in enumerate(DIFF.findall(PAGE.read_text())):
        patch = root / f"{number}.diff"
        patch.write_text(diff)
        done = process.run(["git", "-C", path, "apply", "--verbose", patch], timeout_s=10)
        assert done.returncode == 0, done.stderr
    copy = root / "cache/images" / image.name
    copy.mkdir(parents=True)
    for file in image.path.iterdir():
        if file.name != MANIFEST and not file.match("agent-*"):
            (copy / file.name).symlink_to(file)
    shutil.copyfile(image.path / MANIFEST, copy / MANIFEST)
    return Repository(path, root / "cache")


def test_a_verdict_touches_three_files_and_one_of_them_is_c() -> None:
    files = [name for diff in DIFF.findall(PAGE.read_text()) for name in TARGET.findall(diff)]
    assert len(files) == 3
    assert [name for name in files if name.endswith((".c", ".h"))] == ["kernel/agent/verdict.c"]


def test_the_new_verdict_is_in_help_docs_and_contract(edited: Repository) -> None:
    tests = [str(edited.path / "tests/unit" / name) for name in ("test_verdict.py", "test_compile.py", "test_abi.py")]
    edited.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(edited.path), *tests)
    assert "\n  mark N  " in edited.skblab("run", "--help")
    sound = edited.skblab("probes", "icmp_rcv", "icmp_echo").splitlines()
    said = [line.split("  ")[-1].partition(":")[0] for line in sound[1::2]]
    assert said == ["accept, trace, return, stop", "every verdict"]


@pytest.mark.slow  # it builds the agent
def test_the_new_verdict_works(edited: Repository) -> None:
    words = ["-r", "ip_rcv = mark 7 @2 if icmp", "-p", "ip_rcv", "-p", "icmp_rcv", "-q", "--json", "-", "icmp"]
    printed = edited.skblab("trace", *words, "--", "ping", "-n", "-q", "-c3", "-i0.1", "192.168.10.1")
    said = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    marks = [one["mark"] for one in said if one["type"] == "step" and one["function"] == "icmp_rcv"]
    assert marks == [0, 7, 0]
    assert [one["verdict"] for one in said if one["type"] == "verdict"] == ["mark 7"]
    assert "3 received" in printed
