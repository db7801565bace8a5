"""Get a kernel's source from Debian's archive, by apt with directories of its own: nothing on the machine changes.

The mirror, and the proxy before it, are those of the machine's apt; the signature is checked against Debian's keyring.
A source is kept in the cache, and used from there.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from skblab import files
from skblab.errors import MissingPrerequisite, UsageError
from skblab.host import process
from skblab.image.store import ANOTHER_CACHE, cache_dir

SUITES = ("trixie-backports", "trixie", "bookworm")  # the newest kernels first
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIANS_OWN = "http://deb.debian.org/debian"
REPOSITORY = re.compile(r"^'([^' ]+)/dists/[^' ]+/InRelease'", re.MULTILINE)
PACKAGE = re.compile(r"^linux-source-(\d+\.\d+)$", re.MULTILINE)
TIMEOUT_S = 1800.0
SHOWN_LINES = 8


def get_source(series: str, progress: Callable[[str], object] = lambda _: None) -> Path:
    """Return the tarball of Debian's source of a series: the kept one, or download it.

    :param progress: called with what is done
    :raises UsageError: *series* is not of the form 6.12
    :raises MissingPrerequisite: Debian has no such kernel; or its archive cannot be used, with apt's own lines
    """
    if not re.fullmatch(r"\d+\.\d+", series):
        raise UsageError(f"no kernel series: {series}", hint="its first two numbers, as 6.12")
    name = f"linux-source-{series}.tar.xz"
    sources = cache_dir() / "sources"
    if (sources / name).is_file():
        return sources / name
    hint = f"apt-get install linux-source-{series}   (as root)\nor give a tree or a tarball with --source"
    if not KEYRING.is_file():
        raise MissingPrerequisite(
            f"no source of Linux {series}, and Debian's signature cannot be checked",
            found=f"there is no {KEYRING}",
            hint=f"apt-get install debian-archive-keyring, or {hint}",
        )
    files.directory(sources, 0o755, what="the directory of kernel sources", hint=ANOTHER_CACHE)
    offered: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".getting-", dir=sources) as scratch:
        for suite in SUITES:
            archive = _Archive(Path(scratch) / suite, suite, hint)
            progress(f"asking {archive.mirror} for kernels of Debian's {suite}; apt's lists are in {archive.directory}")
            found = archive.kernels()
            if series in found:
                progress(f"getting linux-source-{series} of {suite}, to {sources}")
                archive.get_tarball(series).rename(sources / name)
                return sources / name
            offered += [f"{one} ({suite})" for one in found]
    raise MissingPrerequisite(
        f"Debian has no source of Linux {series}",
        found=f"it has: {', '.join(offered)}",
        hint="one of these, or give a tree or a tarball with --source",
    )


class _Archive:
    """One suite of Debian's archive, seen by apt with its own sources list, lists and cache in *directory*."""

    def __init__(self, directory: Path, suite: str, hint: str) -> None:
        self.directory = directory
        self._hint = hint
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        self._options = [
            f"-oDir::Etc::SourceList={directory / 'sources.list'}", "-oDir::Etc::SourceParts=-",
            f"-oDir::State::Lists={directory / 'lists'}", f"-oDir::Cache={directory / 'cache'}",
            "-oDir::State::Status=/dev/null", "-oDir::Etc::Preferences=-", "-oDir::Etc::PreferencesParts=-",
            "-oAPT::Sandbox::User=", "-oAcquire::Languages=none",
            "-oAcquire::AllowInsecureRepositories=false", "-oAPT::Get::AllowUnauthenticated=false",
            "-oAPT::Update::Error-Mode=any", "-oAPT::Update::Post-Invoke=", "-oAPT::Update::Post-Invoke-Success=",
        ]  # fmt: skip
        self.mirror = self._find_mirror(suite)

    def kernels(self) -> list[str]:
        """Return the series of the suite's sources, the newest first."""
        done = process.run(["apt-cache", *self._options, "pkgnames", "linux-source-"], timeout_s=60)
        return sorted(PACKAGE.findall(done.stdout), key=lambda one: [*map(int, one.split("."))], reverse=True)

    def get_tarball(self, series: str) -> Path:
        """Download a package, which apt compares with the digest in the signed list; return the tarball in it."""
        package = f"linux-source-{series}"
        self._run(["apt-get", *self._options, "download", package])  # to the directory in which it runs
        self._run(["dpkg-deb", "-x", *self.directory.glob("*.deb"), "unpacked"])
        return self.directory / f"unpacked/usr/src/{package}.tar.xz"

    def _find_mirror(self, suite: str) -> str:
        """Get the suite's lists from the first of the machine's repositories that has them, signed by Debian."""
        done = process.run(["apt-get", "update", "--print-uris"], timeout_s=60)
        likely = sorted(REPOSITORY.findall(done.stdout), key=lambda uri: not uri.endswith("/debian"))
        mirrors: dict[str, None] = dict.fromkeys([*likely, DEBIANS_OWN])
        refused = ""
        for mirror in mirrors:
            text = f"deb [signed-by={KEYRING}] {mirror} {suite} main\n"
            (self.directory / "sources.list").write_text(text)
            got = process.run(["apt-get", *self._options, "update"], timeout_s=TIMEOUT_S)
            if got.returncode == 0:
                return mirror
            refused = refused or got.stderr
        raise self._failed(refused)

    def _run(self, argv: list[process.Argument]) -> None:
        running = process.start(argv, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, guarded=True)
        done = process.finish(running, timeout_s=TIMEOUT_S)
        if done.returncode:
            raise self._failed(done.stderr)

    def _failed(self, said: str) -> MissingPrerequisite:
        return MissingPrerequisite(
            "cannot get a kernel's source from Debian's archive",
            found="\n".join(said.splitlines()[:SHOWN_LINES]),
            hint=self._hint,
        )
