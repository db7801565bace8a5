"""One lab a name."""

import os
import time
from pathlib import Path

import pytest

from skblab.errors import LabNameTaken, MissingPrerequisite, UsageError
from skblab.host import registry


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "skblab"


def test_a_name_is_one_labs_at_a_time(runtime_dir: Path) -> None:
    held = registry.claim("blue")
    with pytest.raises(LabNameTaken) as caught:
        registry.claim("blue")
    assert f"pid {os.getpid()}: " in caught.value.found
    assert f"kill {os.getpid()}" in caught.value.mend
    registry.forget("blue", held)
    assert list(runtime_dir.iterdir()) == []
    registry.forget("blue", registry.claim("blue"))


def test_a_file_that_nobody_holds_is_no_lab(runtime_dir: Path) -> None:
    os.close(registry.claim("blue"))
    assert (runtime_dir / "blue.lab").exists()
    registry.forget("blue", registry.claim("blue"))


def test_a_name_whose_owner_has_written_nothing_yet_is_taken() -> None:
    held = registry.claim("blue")
    os.ftruncate(held, 0)
    with pytest.raises(LabNameTaken, match="blue"):
        registry.claim("blue")
    registry.forget("blue", held)


def test_a_running_labs_name_is_not_waited_for() -> None:
    held = registry.claim("blue")
    registry.record_init(held, os.getpid())
    started = time.monotonic()
    with pytest.raises(LabNameTaken):
        registry.claim("blue", patience_s=30)
    assert time.monotonic() - started < 5
    registry.forget("blue", held)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-x", "x" * 64, "a b", "\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a name for a lab"):
        registry.claim(name)


def test_the_directory_is_its_owners_alone(runtime_dir: Path) -> None:
    assert registry.registry_dir().stat().st_mode & 0o777 == 0o700
    runtime_dir.chmod(0o755)
    with pytest.raises(MissingPrerequisite, match="not a directory of yours alone"):
        registry.claim("blue")


def test_a_link_in_its_place_is_not_followed(runtime_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    runtime_dir.symlink_to(elsewhere)
    with pytest.raises(MissingPrerequisite, match="not a directory of yours alone"):
        registry.claim("blue")
