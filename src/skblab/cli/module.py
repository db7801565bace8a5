"""``skblab module``: build kernel modules for an image."""

import argparse
from pathlib import Path

from skblab.cli.options import add_image_options, chosen_image

EXAMPLES = """\
examples:
  skblab module build ./mine                   its Makefile or Kbuild has obj-m := mine.o
  skblab up --module ./mine/mine.ko
  skblab run --module ./mine/mine.ko,debug=1 -r 'mine_rcv = trace' -- ping -c1 guest

The module is built in that directory, as by make M=DIRECTORY, against the image's kernel.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "module",
        help="build your own kernel modules",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = verbs.add_parser("build", help="build the modules in a directory; print their files")
    build.add_argument("directory", type=Path, metavar="DIRECTORY", help="a directory with a Makefile or Kbuild")
    add_image_options(build)
    build.set_defaults(run=run_build)


def run_build(arguments: argparse.Namespace) -> int:
    """Build the modules; print their files."""
    from skblab.image.module import build_own  # noqa: PLC0415

    for file in build_own(chosen_image(arguments).path, arguments.directory):
        print(file)
    return 0
