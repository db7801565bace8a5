"""The messages of ``make setup`` without apt, and without a Python that is new enough."""

import shutil
import sys
from pathlib import Path

import pytest

from skblab.host import process

CHECKOUT = Path(__file__).resolve().parents[1]
SETUP = CHECKOUT / "tools" / "setup"
PROGRAMS = ("sh", "dirname", "id", "gcc", "ld", "make", "objcopy", "bison", "bc", "xz", "setpriv", "ping")


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a distribution without apt, and without flex."""
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, name
        (tmp_path / name).symlink_to(found)
    (tmp_path / "python3").symlink_to(sys.executable)
    return {"PATH": str(tmp_path), "HOME": str(tmp_path)}


def test_without_apt_it_names_the_packages_and_stops(elsewhere: dict[str, str]) -> None:
    done = process.run(["sh", SETUP], env=elsewhere, timeout_s=30)
    assert done.returncode == 1
    assert "there is no apt-get here, and these programs are missing: flex" in done.stderr
    assert "install the packages that contain them" in done.stderr


def test_an_old_python_is_refused(elsewhere: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = process.run(["sh", SETUP], env=elsewhere | {"PYTHON": str(old)}, timeout_s=30)
    assert done.returncode == 1
    assert "is not Python 3.11 or newer" in done.stderr
    assert "make setup PYTHON=" in done.stderr


def test_what_only_developers_need_comes_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".uv").symlink_to(CHECKOUT / ".uv")
    for name in ("tools", "src", "kernel"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        shutil.copyfile(CHECKOUT / name, tmp_path / name)
    tools = [tmp_path / ".venv/bin" / name for name in ("skblab", "pytest")]
    for words, made, there in (
        (["--no-dev"], "setup: making .venv\n", [True, False]),
        (["--no-dev"], "", [True, False]),
        ([], "setup: making .venv\n", [True, True]),
        (["--no-dev"], "", [True, True]),
    ):
        done = process.run(["sh", tmp_path / "tools/setup", *words], timeout_s=100)
        assert (done.returncode, done.stdout) == (0, made), done.stderr
        assert [tool.exists() for tool in tools] == there
