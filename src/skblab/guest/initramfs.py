"""The guest's initramfs: init and the agent, in a cpio archive that the kernel unpacks at boot.

The archive is kept in its image, under a name made from a digest of the sources, so that a newer skblab makes a new
one. Format: Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

import hashlib
import stat
import tempfile
from pathlib import Path

from skblab.errors import BuildFailed
from skblab.host import process
from skblab.image.module import ensure_agent, keep, key_of
from skblab.image.recipe import kernel_dir

COMPILE = ("gcc", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-std=gnu11")


def ensure(directory: Path) -> Path:
    """Return the archive in *directory*; make it first if there is no archive of these sources.

    :raises BuildFailed: the compiler refused
    :raises CannotWrite: *directory* cannot be written
    """
    sources = sorted((kernel_dir() / "init").glob("*.[ch]"))
    agent = ensure_agent(directory)
    key = hashlib.sha256("\0".join((key_of(sources), *COMPILE, agent.name)).encode()).hexdigest()[:12]
    archive = directory / f"initramfs-{key}.cpio"
    if archive.exists():
        return archive
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "init")
        done = process.run([*COMPILE, "-o", program, *(path for path in sources if path.suffix == ".c")], timeout_s=60)
        if done.returncode:
            raise BuildFailed(
                f"cannot compile {sources[0].parent}", found=done.stderr.strip(), hint="apt-get install gcc libc6-dev"
            )
        module = Path(scratch, "agent.ko")
        process.run(["objcopy", "--strip-debug", agent, module], timeout_s=60).check_returncode()
        content = pack(
            [
                ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
                ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
                ("init", stat.S_IFREG | 0o755, program.read_bytes(), (0, 0)),
                ("agent.ko", stat.S_IFREG | 0o644, module.read_bytes(), (0, 0)),
            ]
        )
    keep(content, archive)
    return archive


def pack(entries: list[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """Return a "newc" cpio archive of (path, st_mode, content, (major, minor))."""
    out = bytearray()
    for path, mode, content, (major, minor) in [*entries, ("TRAILER!!!", 0, b"", (0, 0))]:
        name = path.encode() + b"\0"
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)
