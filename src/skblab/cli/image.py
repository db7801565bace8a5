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
from skblab.image.image import Image
from skblab.image.recipe import DEFAULT_SERIES, VARIANTS

EXAMPLES = """\
examples:
  skblab image build                        Debian's linux-source-6.12
  skblab image build --series 7.3           got from Debian's archive first; nothing on this machine changes
  skblab image build --source ~/linux       your own tree or tarball; later builds compile only what has changed
  skblab image build --config mine.config   more kernel options, which override those of --variant
  skblab image diff 6.12-default-0123456789ab 6.12-kasan-0123456789ab
  skblab image ls
  skblab image check && skblab image rm 6.1-default-0123456789ab
"""
REPORT_EVERY_S = 10.0
QUIET_S = 1.0  # a build that is done at once needs no log


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its verbs."""
    parser = commands.add_parser(
        "image",
        help="build, list, compare, check and remove guest kernels",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = verbs.add_parser("build", help="build an image, unless it exists; print its directory")
    build.add_argument(
        "--series",
        default=DEFAULT_SERIES,
        help="kernel series of Debian's linux-source, as 7.3; it is got from Debian's archive if it is not installed "
        "(default: %(default)s)",
    )
    build.add_argument("--source", type=Path, metavar="TREE-OR-TARBALL", help="your own kernel source")
    build.add_argument("--variant", default="default", choices=sorted(VARIANTS), help="set of kernel options")
    build.add_argument("--config", type=Path, action="append", default=[], metavar="FRAGMENT",
                       help="a file of kernel options, CONFIG_X=y, which override the variant's; "
                       "may be given several times")  # fmt: skip
    build.add_argument("--accept-uncorrected", action="store_true",
                       help="build a source also if it is unknown whether it has a fault of User Mode Linux that "
                       "skblab corrects")  # fmt: skip
    build.set_defaults(run=run_build)
    ls = verbs.add_parser("ls", help="list images, newest first")
    ls.add_argument("--json", action="store_true", help="print a JSON array")
    ls.set_defaults(run=run_ls)
    diff = verbs.add_parser(
        "diff", help="compare two images: kernel options, source files, functions; exit with 1 if they differ"
    )
    for name in ("old", "new"):
        complete(diff.add_argument(name, metavar=name.upper(), help="an image's name or directory"), image_names)
    diff.add_argument("-p", "--patch", action="store_true", help="print only the source's changes, as a patch")
    diff.add_argument("--json", action="store_true", help="print one JSON object")
    diff.set_defaults(run=run_diff)
    check = verbs.add_parser("check", help="compare every file of images with its recorded digest")
    complete(
        check.add_argument(
            "names", nargs="*", metavar="IMAGE", help="an image's name or directory (default: all images)"
        ),
        image_names,
    )
    check.set_defaults(run=run_check)
    rm = verbs.add_parser("rm", help="remove images")
    complete(rm.add_argument("names", nargs="*", metavar="IMAGE", help="an image's name"), image_names)
    rm.add_argument(
        "--builds", action="store_true", help="remove what is kept for the next build, too: objects, unpacked sources"
    )
    rm.set_defaults(run=run_rm)


def run_build(arguments: argparse.Namespace) -> int:
    """Build an image and print its directory."""
    from skblab.guest import initramfs  # noqa: PLC0415
    from skblab.image.build import Request, build_image  # noqa: PLC0415

    request = Request(series=arguments.series, variant=arguments.variant, source=arguments.source,
                      config=tuple(arguments.config), accept_uncorrected=arguments.accept_uncorrected)  # fmt: skip
    progress = _Progress()
    image = build_image(request, progress)
    initramfs.ensure(image.path)
    progress.done()
    for outcome, names in _corrections(image).items():
        print(f"corrections {outcome}: {', '.join(names)}", file=sys.stderr)
    print(image.path)
    return 0


def run_ls(arguments: argparse.Namespace) -> int:
    """List the images; name the damaged ones on stderr, and return 1 if there is one."""
    images, damaged = store.list_images()
    if arguments.json:
        fields = ("name", "series", "variant", "release", "corrections")
        rows = [{name: getattr(image, name) for name in fields} | {"path": str(image.path)} for image in images]
        print(json.dumps(rows))
    else:
        for image in images:
            corrections = ", ".join(
                f"{outcome}: {', '.join(names) if outcome == 'unknown' else len(names)}"
                for outcome, names in _corrections(image).items()
            )
            print(f"{image.name:32} {image.release:24} {_size_mb(image.path):5.0f} MB  corrections {corrections}")
    for error in damaged:
        print(f"skblab: {error}", file=sys.stderr)
    return 1 if damaged else 0


def run_diff(arguments: argparse.Namespace) -> int:
    """Compare two images; return 1 if they differ, as diff does."""
    from skblab.image.difference import compare  # noqa: PLC0415

    found = compare(*(store.open_named(name) for name in (arguments.old, arguments.new)))
    if arguments.json:
        print(json.dumps(asdict(found)))
    elif arguments.patch:
        print("".join(change.patch for change in found.sources), end="")
    else:
        for title, lines in (
            ("options", [f"{name}: {old} -> {new}" for name, (old, new) in found.options.items()]),
            ("source files", [f"{one.file}: {one.added} lines added, {one.removed} removed" for one in found.sources]),
            ("new functions", found.new),
            ("functions gone", found.gone),
        ):
            if lines:
                print(f"{title}: {len(lines)}", *lines, sep="\n  ")
    return 1 if found else 0


def run_check(arguments: argparse.Namespace) -> int:
    """Check every file of each image; return 1 if one is damaged."""
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
            print(f"{image.name}: not checked, without a recorded digest: {', '.join(unrecorded)}", file=sys.stderr)
    for one in damaged:
        print(f"skblab: {one}", file=sys.stderr)
    return 1 if damaged else 0


def run_rm(arguments: argparse.Namespace) -> int:
    """Remove images."""
    if not arguments.names and not arguments.builds:
        raise UsageError("no image to remove", hint="skblab image ls lists them")
    if arguments.builds:
        store.remove_builds()
    for name in arguments.names:
        store.remove_image(name)
    return 0


def _corrections(image: Image) -> dict[str, list[str]]:
    """Return the faults of UML for which an image's source was examined, by outcome."""
    found: dict[str, list[str]] = {}
    for name, about in image.corrections.items():
        found.setdefault(about["outcome"], []).append(name)
    return found


def _size_mb(path: Path) -> float:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 1e6


class _Progress:
    """Prints how far a build is: one moving line on a terminal, else a line now and then."""

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
