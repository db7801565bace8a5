"""``skblab disk``: make disk images and COW files for guests, inspect and merge them."""

import argparse
import fcntl
import json
import sys
import time
from pathlib import Path

EXAMPLES = """\
examples:
  skblab disk build debian.ext4                       a small Debian; root logs in without a password
  skblab disk create my.cow --backing debian.ext4     a copy that takes no room until the guest writes
  skblab up --disk my.cow                             boot from it
  skblab up two --disk two.cow,debian.ext4            the same; makes the COW file if it does not exist
  skblab disk info my.cow                             its backing file, what was changed, who has it open
  skblab disk merge my.cow whole.ext4                 a new image of the COW file and its backing file
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its verbs."""
    parser = commands.add_parser(
        "disk",
        help="make guests' disks, inspect and merge them",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = verbs.add_parser("build", help="make a disk image with a small Debian (mmdebstrap)")
    build.add_argument("file", type=Path, metavar="FILE")
    build.add_argument(
        "--size", default="1G", help="size of the disk, 256M to 16T; unused space takes no room (default: %(default)s)"
    )
    build.add_argument(
        "--suite", default="bookworm", help="Debian suite, from this machine's apt mirrors (default: %(default)s)"
    )
    build.set_defaults(run=run_build)
    create = verbs.add_parser("create", help="make a COW file of a disk image")
    create.add_argument("file", type=Path, metavar="COW")
    create.add_argument(
        "--backing", type=Path, required=True, metavar="IMAGE", help="the disk image of which it is a copy"
    )
    create.set_defaults(run=run_create)
    info = verbs.add_parser("info", help="print what a disk is, what was changed, and who has it open")
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=run_info)
    merge = verbs.add_parser("merge", help="make a disk image of a COW file and its backing file")
    merge.add_argument("file", type=Path, metavar="COW")
    merge.add_argument("target", type=Path, metavar="IMAGE", help="the new disk image")
    merge.set_defaults(run=run_merge)


def run_build(arguments: argparse.Namespace) -> int:
    """Build a disk image with a small Debian."""
    from skblab.guest import debian  # noqa: PLC0415

    started = time.monotonic()

    def progress(step: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s  {step}", file=sys.stderr)

    debian.build(arguments.file, size=arguments.size, suite=arguments.suite, progress=progress)
    print(arguments.file)
    return 0


def run_create(arguments: argparse.Namespace) -> int:
    """Make a COW file."""
    from skblab.guest import disk  # noqa: PLC0415

    disk.create(arguments.file, arguments.backing)
    print(arguments.file)
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Print a disk's kind, sizes and user."""
    from skblab.guest import disk  # noqa: PLC0415

    header = disk.inspect(arguments.file)
    user = disk.holder(arguments.file, fcntl.F_WRLCK)
    found: dict[str, object] = {"file": str(arguments.file), "kind": "cow" if header else "image"}
    if header:
        found |= {
            "version": header.version, "backing": header.backing_file, "backing_mtime": header.mtime_s,
            "size_bytes": header.size_bytes, "sector_bytes": header.sector_bytes,
            "changed_sectors": disk.changed_sectors(arguments.file, header),
        }  # fmt: skip
    else:
        found["size_bytes"] = disk.size_bytes(arguments.file)
    found["in_use_by"] = {"lab": user.lab or None, "pid": user.pid} if user else None
    if arguments.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            text = str(user or "nobody") if key == "in_use_by" else value
            print(f"{key.replace('_', ' '):16} {text}")
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """Write a disk image of a COW file and its backing file."""
    from skblab.guest import disk  # noqa: PLC0415

    written = disk.merge(arguments.file, arguments.target)
    print(f"{arguments.target}: the backing file with {written} bytes changed")
    return 0
