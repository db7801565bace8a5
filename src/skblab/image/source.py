"""Kernel sources: Debian's package, a tarball, or a developer's tree."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import BuildFailed, UsageError
from skblab.files import typed
from skblab.host import process
from skblab.image import debian
from skblab.image.store import alone, builds_dir

# What a UML build of Debian's source with skblab's options only reads, beside Kconfig files and Makefiles: a quarter of
# the files, a sixth of the bytes.
READ = (
    "arch/um", "arch/x86", "block", "crypto", "drivers/base", "drivers/block", "drivers/char", "drivers/tty",
    "drivers/net/*.[ch]", "drivers/net/vxlan", "drivers/pci/*.[ch]", "fs", "include", "init", "io_uring", "ipc",
    "kernel", "lib", "mm", "net", "scripts", "security", "tools/include", "usr", "virt",
)  # fmt: skip
SHOWN_LINES = 20
READ_ANYWHERE = ("*/Kconfig*", "*/Makefile*", "*/Kbuild*")

VERSION_LINE = re.compile(r"^(VERSION|PATCHLEVEL) *= *(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A kernel's source: a tarball, of Debian or another, or a tree, which is never written to."""

    path: Path
    series: str
    of_debian: bool = False

    @property
    def is_tarball(self) -> bool:
        """Whether it has to be unpacked."""
        return self.path.is_file()

    def identity(self) -> str:
        """Return a digest of the content: of the tarball's bytes, or of every file's path, size and ctime."""
        digest = hashlib.sha256()
        if self.is_tarball:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for directory, directories, files in os.walk(self.path):
            directories[:] = sorted(name for name in directories if name != ".git")
            for name in sorted(files):
                try:
                    found = os.stat(f"{directory}/{name}", follow_symlinks=False)  # noqa: PTH116 - 90,000 of them
                except FileNotFoundError:  # an editor's temporary file
                    continue
                place = f"{directory.removeprefix(str(self.path))}/{name}"
                digest.update(f"{place}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_source(series: str, given: Path | None = None, progress: Callable[[str], object] = lambda _: None) -> Source:
    """Return the source to build: *given*, a tree or a tarball, else Debian's package of *series*, installed or got.

    :param progress: called with what is done to get it
    :raises MissingPrerequisite: Debian's package is not installed and cannot be got
    :raises UsageError: *given* is not a kernel source, or there is no such series
    """
    if given is None:
        path = Path(f"/usr/src/linux-source-{series}.tar.xz")
        return Source(path if path.exists() else debian.get_source(series, progress), series, of_debian=True)
    path = typed(given).resolve()
    if path.is_dir():
        return Source(path, series_of(path))
    if path.is_file():
        return Source(path, _series_of_tarball(path))
    raise UsageError(f"no such source: {given}", hint="--source takes a kernel tree or a tarball of one")


def series_of(tree: Path) -> str:
    """Return a tree's series, "6.12", from its Makefile.

    :raises UsageError: the Makefile names no version
    """
    makefile = tree / "Makefile"
    found = dict(VERSION_LINE.findall(makefile.read_text())) if makefile.is_file() else {}
    if {"VERSION", "PATCHLEVEL"} - found.keys():
        raise UsageError(f"{tree} is not a kernel source", found="its Makefile names no VERSION and PATCHLEVEL",
                         hint="--source takes a kernel tree or a tarball of one")  # fmt: skip
    return f"{found['VERSION']}.{found['PATCHLEVEL']}"


def _series_of_tarball(path: Path) -> str:
    done = process.run(
        ["tar", "-xOf", path, "--wildcards", "--no-wildcards-match-slash", "*/Makefile", "--occurrence=1"]
    )
    found = dict(VERSION_LINE.findall(done.stdout))
    if {"VERSION", "PATCHLEVEL"} - found.keys():
        raise UsageError(f"{path} is not a tarball of a kernel source", found=done.stderr.strip())
    return f"{found['VERSION']}.{found['PATCHLEVEL']}"


def unpack(source: Source, scratch: Path, *, whole: bool, progress: Callable[[int], object] = lambda _: None) -> Path:
    """Return the tree to build from: the source itself, or its tarball unpacked into *scratch*.

    What is read of Debian's source is unpacked once and kept: the files are links to that tree's, to be replaced only.

    :param whole: unpack everything, not only what a kernel with skblab's options is built from
    :param progress: called with the number of files unpacked
    :raises BuildFailed: tar refused, or the tarball does not hold one directory
    """
    if not source.is_tarball:
        return source.path
    if whole:
        return _untar(source.path, scratch / "unpacked", [], progress)
    tree = scratch / source.series
    with kept_tree(source, progress) as kept:
        link_tree(kept, tree)
    return tree


@contextlib.contextmanager
def kept_tree(source: Source, progress: Callable[[int], object] = lambda _: None) -> Iterator[Path]:
    """Yield what is read of Debian's source, unpacked for all builds of its series; nobody removes it meanwhile.

    :raises BuildFailed: as ``unpack()``
    """
    content = f"{source.identity()} {READ} {READ_ANYWHERE}"
    kept = builds_dir() / f"source-{source.series}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    unpacking = kept.with_name(f".unpacking-{source.series}")
    with alone(kept.with_name(f"source-{source.series}"), lambda: progress(0)):
        if not kept.exists():
            shutil.rmtree(unpacking, ignore_errors=True)
            for earlier in kept.parent.glob(f"source-{source.series}-*"):
                earlier.rename(unpacking)  # nobody builds from what is half removed
                shutil.rmtree(unpacking, ignore_errors=True)
            only = ["--wildcards", "--wildcards-match-slash", *READ_ANYWHERE]
            only += ["--no-wildcards-match-slash", *(f"*/{name}" for name in READ)]
            try:
                _untar(source.path, unpacking, only, progress).rename(kept)
            finally:
                shutil.rmtree(unpacking, ignore_errors=True)
        yield kept


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory tree whose files are replaced only: by hard links, or to another file system as files.

    :raises BuildFailed: it cannot be copied
    """
    for how in ("--link", "--archive"):
        done = process.run(["cp", "-dR", "--preserve=all", how, "--no-target-directory", source, target])
        if done.returncode == 0:
            return
    raise BuildFailed(f"cannot copy {source}", found=done.stderr.strip())


def _untar(tarball: Path, directory: Path, only: list[str], progress: Callable[[int], object]) -> Path:
    """Unpack a tarball, or *only* what tar's arguments name, into a new directory; return the tree in it."""
    directory.mkdir()
    several = os.environ | {"XZ_DEFAULTS": "--threads=0"}  # Debian's tarballs have independent blocks
    tar = process.start(
        ["tar", "-C", directory, "-xvf", tarball, *only],
        env=several, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, guarded=True,
    )  # fmt: skip
    assert tar.stdout is not None
    progress(0)
    complaints = []
    try:
        for files, line in enumerate(tar.stdout, 1):
            progress(files)
            complaints += [line.decode(errors="replace")] if line.startswith((b"tar: ", b"xz: ")) else []
        status = tar.wait()
    finally:
        process.end(tar)
    trees = list(directory.iterdir())
    if status or len(trees) != 1:
        found = "".join(complaints[:SHOWN_LINES]).rstrip() or f"{len(trees)} directories in it"
        raise BuildFailed(f"cannot unpack {tarball}", found=found)
    return trees[0]
