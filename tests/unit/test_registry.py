"""One lab per name."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from skblab.errors import LabNameTaken, MissingPrerequisite, UsageError
from skblab.host import process, registry


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "skblab"


def write(descriptor: int, told: dict[str, object]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(told).encode(), 0)


def test_a_name_is_one_labs_at_a_time(runtime_dir: Path) -> None:
    held = registry.claim("blue")
    with pytest.raises(LabNameTaken) as caught:
        registry.claim("blue")
    assert f"pid {os.getpid()}: " in caught.value.found
    assert f"kill {os.getpid()}" in caught.value.hint
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


@pytest.mark.wall_clock
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


def test_many_take_and_give_back_one_name_and_each_has_it_alone() -> None:
    """Reading the names at the same time disturbs nothing."""
    holders: list[int] = []
    most = 0

    def take_and_give_back() -> None:
        nonlocal most
        for _ in range(100):
            try:
                held = registry.claim("blue")
            except LabNameTaken as error:
                assert "does not say" not in error.found  # noqa: PT017 - the sentence is the point
                continue
            holders.append(held)
            most = max(most, len(holders))
            registry.running()
            holders.remove(held)
            registry.forget("blue", held)

    threads = [threading.Thread(target=take_and_give_back) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert registry.running() == []


def test_what_a_killed_lab_left_is_swept(runtime_dir: Path) -> None:
    os.close(registry.claim("blue"))
    for kind in ("socket", "cpio"):
        (runtime_dir / f"blue.{kind}").touch()
    held = registry.claim("red")
    assert [owner.name for owner in registry.running()] == ["red"]
    assert [path.name for path in runtime_dir.iterdir()] == ["red.lab"]
    registry.forget("red", held)


def test_a_socket_in_a_directory_with_a_long_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("long" * 50)
    directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    held = registry.claim("b" * 63)
    with registry.listen("b" * 63, held) as listener, registry.connect("b" * 63) as control:
        control.send(b"x")
        with listener.accept()[0] as accepted:
            assert accepted.recv(1) == b"x"
    registry.forget("b" * 63, held)


def test_what_another_version_has_written_is_read_as_far_as_it_is_known() -> None:
    held = registry.claim("blue")
    told = json.loads(os.pread(held, 65536, 0))
    write(held, told | {"colour": "blue"})
    (owner,) = registry.running()
    assert owner.pid == os.getpid()
    write(held, {"name": "blue"})
    assert registry.running() == []
    with pytest.raises(LabNameTaken):
        registry.claim("blue")
    registry.forget("blue", held)


def test_a_long_command_line_is_shortened() -> None:
    argv = [sys.executable, "-c", "from skblab.host import registry; print(len(registry.command_line()))"]
    said = process.run([*argv, *map(str, range(15000))]).stdout
    assert int(said) == registry.LONGEST_COMMAND
