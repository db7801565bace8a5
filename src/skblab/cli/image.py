"""``skblab image``: build, list, compare, check and remove images."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from skblab.cli.options import complete, image_names
from skblab.errors import ImageDamaged, UsageError
from skblab.image import store
from skblab.image.recipe import DEFAULT_SERIES, VARIANTS

EXAMPLES = """\
examples:
  skblab image build                        Debian's linux-source-6.12
  skblab image build --series 6.1
  skblab image build --source ~/linux       your own tree, or a tarball; again: only what has changed
  skblab image build --config mine.config   more kernel options, over those of --variant
  skblab image diff 6.12-default-0123456789ab 6.12-kasan-0123456789ab
  skblab image ls
  skblab image check && skblab image rm 6.1-default-0123456789ab
"""
REPORT_EVERY_S = 10.0
QUIET_S = 1.0  # nobody needs a log of what is done at once


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its verbs."""
    parser = commands.add_parser(
        "image",
        help="build, list, compare, check and remove guest kernels",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = verbs.add_parser("build", help="build an image, or find it built already")
    build.add_argument("--series", default=DEFAULT_SERIES, help="of Debian's linux-source (default: %(default)s)")
    build.add_argument("--source", type=Path, metavar="TREE-OR-TARBALL", help="a kernel source of your own")
    build.add_argument("--variant", default="default", choices=sorted(VARIANTS), help="set of kernel options")
    build.add_argument("--config", type=Path, action="append", default=[], metavar="FRAGMENT",
                       help="a file of kernel options, CONFIG_X=y, over the variant's; again for more")  # fmt: skip
    build.set_defaults(run=run_build)
    ls = verbs.add_parser("ls", help="list images, newest first")
    ls.add_argument("--json", action="store_true", help="print JSON")
    ls.set_defaults(run=run_ls)
    diff = verbs.add_parser("diff", help="compare two images: kernel options, source files, functions; 1: they differ")
    for name in ("old", "new"):
        complete(diff.add_argument(name, metavar=name.upper(), help="an image's name or directory"), image_names)
    diff.add_argument("-p", "--patch", action="store_true", help="print the source's changes as a patch, and no more")
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(run=run_diff)
    check = verbs.add_parser("check", help="read images whole and compare with what was recorded")
    complete(check.add_argument("names", nargs="*", metavar="NAME", help="default: all"), image_names)
    check.set_defaults(run=run_check)
    rm = verbs.add_parser("rm", help="remove images")
    complete(rm.add_argument("names", nargs="*", metavar="NAME"), image_names)
    rm.add_argument("--builds", action="store_true", help="and what is kept of builds of --source trees for the next")
    rm.set_defaults(run=run_rm)


def run_build(arguments: argparse.Namespace) -> int:
    """Build an image and print its directory."""
    from skblab.guest import initramfs  # noqa: PLC0415
    from skblab.image.build import Request, build_image  # noqa: PLC0415

    request = Request(series=arguments.series, variant=arguments.variant, source=arguments.source,
                      config=tuple(arguments.config))  # fmt: skip
    progress = _Progress()
    image = build_image(request, progress)
    initramfs.ensure(image.path)
    progress.done()
    print(image.path)
    return 0


def run_ls(arguments: argparse.Namespace) -> int:
    """List the images; damaged ones are named on stderr."""
    images, damaged = store.list_images()
    if arguments.json:
        fields = ("name", "series", "variant", "release")
        rows = [{name: getattr(image, name) for name in fields} | {"path": str(image.path)} for image in images]
        print(json.dumps(rows))
    else:
        for image in images:
            print(f"{image.name:32} {image.release:24} {_size_mb(image.path):5.0f} MB")
    for error in damaged:
        print(f"skblab: {error}", file=sys.stderr)
    return 1 if damaged else 0


def run_diff(arguments: argparse.Namespace) -> int:
    """Compare two images; the status is diff's, 1 where they differ."""
    from skblab.image.difference import compare  # noqa: PLC0415

    found = compare(*(store.open_named(name) for name in (arguments.old, arguments.new)))
    if arguments.json:
        print(json.dumps(asdict(found)))
    elif arguments.patch:
        print("".join(change.patch for change in found.sources), end="")
    else:
        for title, lines in (
            ("options", [f"{name}: {old} -> {new}" for name, (old, new) in found.options.items()]),
            ("source files", [f"{one.file}: {one.added} lines more, {one.removed} less" for one in found.sources]),
            ("new functions", found.new),
            ("functions gone", found.gone),
        ):
            if lines:
                print(f"{title}: {len(lines)}", *lines, sep="\n  ")
    return 1 if found else 0


def run_check(arguments: argparse.Namespace) -> int:
    """Check images whole, each of them; return 1 where one is damaged."""
    images, damaged = (
        store.list_images() if not arguments.names else ([store.open_named(name) for name in arguments.names], [])
    )
    for image in images:
        try:
            unrecorded = image.check()
        except ImageDamaged as error:
            damaged.append(error)
            continue
        print(f"{image.name}: good")
        if unrecorded:
            print(f"{image.name}: nothing was recorded of: {', '.join(unrecorded)}", file=sys.stderr)
    for one in damaged:
        print(f"skblab: {one}", file=sys.stderr)
    return 1 if damaged else 0


def run_rm(arguments: argparse.Namespace) -> int:
    """Remove images."""
    if not arguments.names and not arguments.builds:
        raise UsageError("remove which image?", hint="skblab image ls lists them")
    if arguments.builds:
        store.remove_builds()
    for name in arguments.names:
        store.remove_image(name)
    return 0


def _size_mb(path: Path) -> float:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 1e6


class _Progress:
    """Says how far a build is: one moving line on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._started = self._stage_started = time.monotonic()
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_started, self._last = stage, now, 0.0
        elif now - self._last < (0.1 if self._terminal else REPORT_EVERY_S):
            return
        if not self._terminal and now - self._started < QUIET_S:
            return
        self._last = now
        text = f"{now - self._started:4.0f} s  {stage}"
        if done:
            text += f"  {done} files" if not total else f"  {done} of about {total} files"
            if total // 50 < done < total:
                text += f", about {(now - self._stage_started) / done * (total - done):.0f} s left"
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def done(self) -> None:
        """End the moving line."""
        if self._terminal and self._stage:
            sys.stderr.write("\n")
