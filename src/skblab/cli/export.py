"""``skblab export``: write a trace in other programs' formats."""

import argparse
import sys
from pathlib import Path

from skblab.cli.progress import working
from skblab.cli.show import read
from skblab.errors import UsageError

EXAMPLES = """\
examples:
  skblab export run.skblab --pcapng run.pcapng && wireshark run.pcapng
  skblab export run.skblab --perfetto run.pftrace     for ui.perfetto.dev
  skblab export run.skblab --html run.html            one file, for any browser
  tshark -r run.pcapng -T fields -e frame.interface_name -e frame.comment
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a trace as pcapng, for Perfetto, or as an HTML page",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a trace file (skblab trace -o)")
    parser.add_argument(
        "--pcapng",
        type=Path,
        metavar="F",
        help="for Wireshark: one interface per function, the kernel's facts as comments",
    )
    parser.add_argument(
        "--perfetto", type=Path, metavar="F", help="for ui.perfetto.dev: one track per packet, calls as slices"
    )
    parser.add_argument("--html", type=Path, metavar="F", help="an HTML page that needs no other file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write each requested format."""
    if not (arguments.pcapng or arguments.perfetto or arguments.html):
        raise UsageError("no format to export to", hint="--pcapng F, --perfetto F or --html F")
    trace = read(arguments.file)
    if arguments.pcapng:
        from skblab.view.pcapng import write_pcapng  # noqa: PLC0415

        with working(f"writing {arguments.pcapng}"):
            count = write_pcapng(trace, arguments.pcapng)
        print(f"{arguments.pcapng}: {count} steps", file=sys.stderr)
    if arguments.perfetto:
        from skblab.view.perfetto import write_perfetto  # noqa: PLC0415

        with working(f"writing {arguments.perfetto}"):
            count = write_perfetto(trace, arguments.perfetto)
        print(f"{arguments.perfetto}: {count} slices", file=sys.stderr)
    if arguments.html:
        from skblab.view.page import write_page  # noqa: PLC0415

        with working(f"writing {arguments.html}"):
            write_page(trace, arguments.html)
        print(f"{arguments.html}: {arguments.html.stat().st_size >> 10} KiB", file=sys.stderr)
    return 0
