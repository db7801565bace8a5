"""Build modules for an image's kernel: keep the part of the tree that kbuild needs, and run it.

The agent is one; users build their own.
"""

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from skblab import files
from skblab.errors import BuildFailed, CannotWrite, UsageError
from skblab.host import process
from skblab.image.image import SOURCE, digest_file, digest_line
from skblab.image.recipe import FLAGS, kernel_dir

# Files that kbuild reads for an external module (Documentation/kbuild/modules.rst), beside the headers.
OF_TREE = (
    "Makefile", "Kbuild", "scripts", "include", "arch/um",
    "arch/x86/include", "arch/x86/um", "arch/x86/Makefile", "arch/x86/Makefile.um", "arch/x86/Makefile_32.cpu",
)  # fmt: skip
OF_BUILD = (".config", "scripts", "include", "arch/um/include", "arch/x86/include", "Module.symvers")
TIMEOUT_S = 300.0
LEFT_OUT = (".o", ".a", ".cmd", ".tmp")


def keep_tree(tree: Path, source: Path) -> None:
    """Copy the files of the tree that external modules are built from."""
    _copy(tree, OF_TREE, source)


def keep_build(obj: Path, source: Path) -> None:
    """Copy the files of the build that external modules are built from, to ``obj`` in *source*."""
    shutil.copyfile(obj / "vmlinux.symvers", obj / "Module.symvers")
    _copy(obj, OF_BUILD, source / "obj")


def _copy(origin: Path, names: tuple[str, ...], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = [name for name in names if (origin / name).exists()]
    argv: list[process.Argument] = ["cp", "-dR", "--preserve=mode,timestamps", "--parents", *found, target]
    done = process.run(argv, cwd=origin, timeout_s=TIMEOUT_S)  # in a fifth of the time that shutil takes
    if done.returncode:
        raise BuildFailed(f"cannot copy {origin}", found=done.stderr.strip())
    for directory, _, inside in os.walk(target):
        for name in inside:
            if name.endswith(LEFT_OUT):
                Path(directory, name).unlink()


def ensure_agent(image: Path) -> Path:
    """Return the agent's module for the image in a directory; build it first if there is no module of this source.

    :raises BuildFailed: the compiler refused
    :raises CannotWrite: the directory cannot be written
    """
    module = _agents_place(image)
    if not module.exists():
        with tempfile.TemporaryDirectory() as scratch:
            _build_agent(image / SOURCE, image / SOURCE / "obj", Path(scratch), module)
    return module


def build_agent(image: Path, tree: Path, obj: Path, directory: Path) -> None:
    """Build the agent's module for the image that is built in *obj*; reuse the last build's objects in *directory*.

    :raises BuildFailed: the compiler refused
    """
    directory.mkdir(exist_ok=True)
    _build_agent(tree, obj, directory, _agents_place(image))


def key_of(sources: Iterable[Path]) -> str:
    """Return a key of files' contents. They are read again where one has changed since: a sweep asks for each cell."""
    found = ((path, path.stat()) for path in sources)
    return _key_of(tuple((path, one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found))


@functools.lru_cache(maxsize=8)
def _key_of(sources: tuple[tuple[Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in sources:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _agents_place(image: Path) -> Path:
    return image / f"agent-{key_of(_agents_files())}.ko"


def _agents_files() -> list[Path]:
    agent = kernel_dir() / "agent"
    return sorted(path for path in agent.iterdir() if path.suffix in {".c", ".h", ".S"} or path.name == "Kbuild")


def _build_agent(tree: Path, obj: Path, directory: Path, module: Path) -> None:
    for path in _agents_files():
        copy = directory / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)
    _kbuild(tree, obj, directory)
    keep(Path(directory, "skblab_agent.ko").read_bytes(), module)


def build_module(image: Path, directory: Path, *more: str) -> None:
    """Build the external module in a directory, as ``make M=`` does.

    :raises BuildFailed: with the compiler's own lines
    """
    _kbuild(image / SOURCE, image / SOURCE / "obj", directory, *more)


def _kbuild(tree: Path, obj: Path, directory: Path, *more: str) -> None:
    argv: list[process.Argument] = [
        "make",
        "-C",
        tree,
        f"O={obj}",
        f"-j{os.cpu_count() or 1}",
        "ARCH=um",
        f"M={directory}",
        *more,
        "modules",
    ]
    done = process.run(argv, timeout_s=TIMEOUT_S)
    if done.returncode:
        raise BuildFailed(
            f"cannot build the module in {directory}", found=f"{done.stdout}{done.stderr}".strip()[-4000:]
        )


def build_own(image: Path, directory: Path) -> list[Path]:
    """Build the user's modules in a directory; return their files, the newest last.

    They are compiled with the kernel's patchable entries, so that they can be probed, too.

    :raises UsageError: the directory has no module to build
    :raises BuildFailed: with the compiler's own lines
    """
    directory = files.typed(directory).absolute()
    makefiles = [path for name in ("Kbuild", "Makefile") if (path := directory / name).is_file()]
    if not any("obj-m" in path.read_text(errors="replace") for path in makefiles):
        raise UsageError(
            f"{directory} has no module to build",
            found="no Kbuild or Makefile there says obj-m" if directory.is_dir() else "there is no such directory",
            hint="echo 'obj-m := NAME.o' >Kbuild, with NAME.c beside it",
        )
    build_module(image, directory, f"KCFLAGS={' '.join(FLAGS)}")
    return sorted(directory.glob("*.ko"), key=lambda path: path.stat().st_mtime)


def offset_in_text(module: Path, function: str) -> int:
    """Return a function's offset in a module's code."""
    listed = process.run(["nm", "--format=posix", module], timeout_s=30).stdout
    return next(int(line.split()[2], 16) for line in listed.splitlines() if line.split()[0] == function)


def keep(content: bytes, path: Path) -> None:
    """Write a file of an image by rename, readable by all users, and its digest beside it for ``image check``.

    :raises CannotWrite: the image's directory cannot be written
    """
    try:
        for kept, there in ((digest_line(path, content), digest_file(path)), (content, path)):
            with files.whole(there) as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(kept)
    except CannotWrite as error:
        error.exit_status, error.hint = CannotWrite.exit_status, error.hint or "skblab image build, as its owner"
        raise
