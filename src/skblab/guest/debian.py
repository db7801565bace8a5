"""Make a small Debian on a disk image by mmdebstrap, without mounting the image, and without root if possible."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from skblab.errors import BuildFailed, DiskError, MissingPrerequisite, Timeout, UsageError
from skblab.host import process
from skblab.host.waiting import wait

PACKAGES = ("systemd-sysv", "udev", "dbus", "login", "iproute2", "iputils-ping", "procps")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
DEFAULT_SUITE = "bookworm"
DEFAULT_SIZE = "1G"
SIZE = re.compile(r"(\d{1,15})([KMGT]?)", re.ASCII | re.IGNORECASE)  # as mke2fs(8) reads it: without a letter, in KiB
KIB = {"": 1, "K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}
LEAST_KIB, MOST_KIB = 256 << 10, 16 << 30  # the packages take 190 MiB; ext4 without the feature 64bit ends at 16 TiB
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT_S = 1800.0
TROUBLE_LINES = 12


def hook() -> Path:
    """Return the script that finishes the tree; its text is part of the disk's recipe."""
    return Path(__file__).with_name("debian_disk.sh")


def build(path: Path, *, size: str = DEFAULT_SIZE, suite: str = DEFAULT_SUITE,
          progress: Callable[[str], None] = lambda _: None) -> None:  # fmt: skip
    """Make a disk image with a Debian on it: with its own init, and root login without a password on every console.

    :param size: as mke2fs(8) reads it; the file is sparse
    :param progress: called with each step
    :raises UsageError: no such size
    :raises MissingPrerequisite: mmdebstrap, or a source of packages, is missing
    :raises BuildFailed: mmdebstrap failed: its own lines
    :raises DiskError: the image cannot be written there
    """
    found = SIZE.fullmatch(size)
    if not (found and LEAST_KIB <= int(found[1]) * KIB[found[2].upper()] <= MOST_KIB):
        raise UsageError(f"a disk of {size!r}", found="256M to 16T, in K, M, G or T", hint="--size 1G")
    if path.exists():
        raise DiskError(f"{path} is there already", hint="another name, or remove it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise DiskError(f"cannot make {path}", found=f"{path.absolute().parent} cannot be written")
    if not shutil.which("mmdebstrap"):
        raise MissingPrerequisite("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    sources = apt_sources(suite)
    with tempfile.TemporaryDirectory(prefix="skblab-disk-", dir=path.absolute().parent) as kept:
        made = _run(sources, suite, size, Path(kept), progress)
        made.rename(path)


def apt_sources(suite: str) -> list[str]:
    """Return lines of sources.list(5) for a suite, from the mirrors that this machine's own apt uses.

    :raises MissingPrerequisite: none of them has the suite
    """
    words = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(ORIGIN)"
    done = process.run(["apt-get", "indextargets", "--format", words, "Created-By: Packages"], timeout_s=60)
    found = [line.split() for line in done.stdout.splitlines()]
    names = {suite, f"{suite}-updates", f"{suite}-security"}
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    lines = sorted(
        {f"deb {signed}{uri} {name} {component}" for uri, name, component, *origin in found
         if name in names and component == "main" and origin == ["Debian"]}
    )  # fmt: skip
    if not any(f" {suite} " in line for line in lines):
        raise MissingPrerequisite(
            f"this machine's apt has no mirror with Debian {suite}",
            found=done.stdout.strip() or done.stderr.strip(),
            hint="apt-get update, with such a mirror in /etc/apt/sources.list.d; or another --suite",
        )
    return lines


def _run(sources: list[str], suite: str, size: str, kept: Path, progress: Callable[[str], None]) -> Path:
    # Without root, mmdebstrap works as other users, who cannot read this user's directories.
    with tempfile.TemporaryDirectory(prefix="skblab-debian-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        image, script = scratch / "image", scratch / "hook"
        image.touch()
        image.chmod(0o666)  # for those users; cp(1) makes a file of this user
        script.write_text(hook().read_text())
        script.chmod(0o755)
        argv = [
            "setpriv", "--pdeathsig", "TERM", "mmdebstrap", "--variant=minbase",
            f"--include={','.join(PACKAGES)}", "--format=null",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            f'--customize-hook=sh {shlex.join([str(script), str(image), size])} "$1"',
            suite, "/dev/null", *sources,
        ]  # fmt: skip
        _follow(argv, progress)
        process.run(["cp", "--sparse=always", image, kept / "image"], timeout_s=TIMEOUT_S).check_returncode()
    return kept / "image"


def _follow(argv: list[str], progress: Callable[[str], None]) -> None:
    """Run mmdebstrap; report its steps."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    running = process.start(argv, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert running.stdout
    deadline = time.monotonic() + TIMEOUT_S
    said: list[str] = []
    left = b""
    try:
        while data := _read(running.stdout.fileno(), deadline):
            *lines, left = (left + data).split(b"\n")
            for line in (raw.decode(errors="replace").rpartition("\r")[2] for raw in lines):
                said.append(line)
                if step := re.match(r"I: (.+?)\.*$", line):
                    progress(step.group(1))
    except BaseException:
        running.terminate()  # it unmounts what it has mounted
        raise
    finally:
        status = running.wait()
        running.stdout.close()
    if status:
        raise BuildFailed(
            f"mmdebstrap failed (status {status})",
            found="\n".join(said[-TROUBLE_LINES:]),
            hint=""
            if os.geteuid() == 0
            else "without root it needs newuidmap (apt-get install uidmap) and a range of "
            "yours in /etc/subuid and /etc/subgid; or run this one command as root",
        )


def _read(descriptor: int, deadline: float) -> bytes:
    if not wait([descriptor], max(deadline - time.monotonic(), 0)):
        raise Timeout(f"mmdebstrap has not ended within {TIMEOUT_S:g} s")
    return os.read(descriptor, 65536)
