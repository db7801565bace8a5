"""Everything works for an ordinary user, without root, sudo or set-up."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skblab
from skblab.errors import MissingPrerequisite
from skblab.host import process
from skblab.image.image import Image
from skblab.image.store import images_dir
from support import SKBLAB, eventually_nothing, remains

USER = 54321
OPEN_TUN = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200"
CLOSED_TUN = "mount -t tmpfs none /dev/net && mknod -m 600 /dev/net/tun c 10 200"


def passable(*needed: Path) -> Iterator[str]:
    """Return shell lines that let every user reach some paths, in a mount namespace of our own.

    A directory that is closed to others, such as root's home, is covered by an empty one with what is needed.
    """
    closed = {
        next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None): None for path in needed
    }
    for blocked in filter(None, closed):
        inside = [path for path in needed if path.is_relative_to(blocked)]
        for number, path in enumerate(inside):
            yield f"mkdir -p /run/skblab-test/{number}; mount --bind {shlex.quote(str(path))} /run/skblab-test/{number}"
        yield f"mount -t tmpfs -o mode=755 none {shlex.quote(str(blocked))}"
        for number, path in enumerate(inside):
            yield f"mkdir -p {shlex.quote(str(path))}; mount --bind /run/skblab-test/{number} {shlex.quote(str(path))}"


def as_ordinary_user(
    image: Image, tun: str, *words: str, limit: str = "", cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line as an unprivileged user; the machine is unchanged."""
    limited = ["prlimit", limit] if limit else []
    argv = [*limited, *SKBLAB, *words] if cache else [*limited, *SKBLAB, *words, "--image", str(image.path)]
    if os.geteuid():
        return process.run(argv, env=os.environ | ({"SKBLAB_CACHE": str(cache)} if cache else {}), timeout_s=90)
    package = Path(skblab.__file__).resolve().parents[2]
    lines = [
        "mount -t tmpfs none /run",
        *passable(Path(sys.prefix), Path(sys.base_prefix), package, image.path, *([cache] if cache else [])),
        tun,
        f'cd / && exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs "$@"',
    ]
    home = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "SKBLAB_CACHE": str(cache or "")}
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(lines), "sh", *argv]
    return process.run(argv, env=home, timeout_s=90)


@pytest.mark.parametrize(("tun", "enobufs"), [(OPEN_TUN, True), (CLOSED_TUN, False)], ids=["tap", "veth"])
@pytest.mark.wall_clock
def test_the_whole_experiment(every_image: Image, tun: str, enobufs: bool) -> None:
    before = remains()
    done = as_ordinary_user(every_image, tun, "ping", "--holds", "0.5,1", "--staircase", "--json")
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    for stop in fields["stops"]:
        assert stop["rtt_ms"] == pytest.approx(stop["held_s"] * 1e3, abs=10)
        assert stop["backtrace"][0]["function"] == "icmp_rcv"
    assert len(fields["staircase"]["rtts_ms"]) >= 8
    if not os.geteuid():
        assert (fields["staircase"]["enobufs"] > 0) is enobufs
    assert fields["lost"] == 0
    assert eventually_nothing(before) == []


def test_a_sweep_with_the_images_of_another_user(image: Image) -> None:
    """It reads the cache; what it would write there is for one who goes on with it."""
    sweep = ("sweep", "--verdicts", "drop", "--judge", "status", "--", "ping", "-c1", "guest")
    cache = image.path.parents[1]
    done = as_ordinary_user(image, OPEN_TUN, *sweep, cache=cache)
    assert done.returncode == 1, done.stderr
    assert "2 cells: failed 2" in done.stdout
    if not os.geteuid():
        assert "skblab: this sweep cannot be resumed if it is interrupted\n" in done.stderr
        assert "hint: SKBLAB_CACHE=DIR" in done.stderr
        refused = as_ordinary_user(image, OPEN_TUN, "sweep", "--resume", *sweep[1:], cache=cache)
        assert refused.returncode == MissingPrerequisite.exit_status
        assert "cannot use the directory of interrupted sweeps" in refused.stderr


@pytest.mark.complains("panic")  # a kernel that may start no process of its guest's
@pytest.mark.parametrize("processes", range(1, 7))
def test_a_user_who_may_have_no_more_processes_is_told_so(every_image: Image, processes: int) -> None:
    before = remains()
    done = as_ordinary_user(every_image, OPEN_TUN, "ping", "-c", "1", limit=f"--nproc={processes}")
    assert done.returncode == MissingPrerequisite.exit_status, done.stderr
    assert "this user may have no more processes here" in done.stderr
    assert "ulimit -u" in done.stderr
    assert eventually_nothing(before) == []


def test_it_leaves_its_lock_directory_to_its_user_alone(image: Image) -> None:
    done = as_ordinary_user(image, CLOSED_TUN, "ping", "-c", "1")
    assert done.returncode == 0, done.stderr
    uid = os.geteuid() or USER
    directory = Path(os.environ["XDG_RUNTIME_DIR"], "skblab") if os.geteuid() else Path(f"/tmp/skblab-{uid}")
    found = directory.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (uid, 0o700)


def test_a_cache_of_root_is_for_all(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SKBLAB_CACHE", str(cache))
    before = os.umask(0o022)
    try:
        images = images_dir()
    finally:
        os.umask(before)
    (images / image.name).symlink_to(image.path)
    done = as_ordinary_user(image, CLOSED_TUN, "run", "-q", "-r", "icmp_rcv = trace", "--", "ping", "-c1", "guest",
                            cache=cache)  # fmt: skip
    assert done.returncode == 0, done.stderr
    images.chmod(0)
    done = as_ordinary_user(image, CLOSED_TUN, "run", "--", "true", cache=cache)
    assert done.returncode == MissingPrerequisite.exit_status
    assert "cannot use the directory of images" in done.stderr
    images.chmod(0o755)
