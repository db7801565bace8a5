"""The command line: parse, call, print. No logic of its own."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from skblab.cli import complaints, outcome, streams
from skblab.cli.parser import Parser

EXAMPLES = """\
examples:
  skblab ping                                  hold pings inside the kernel, and decide about each
  skblab ping --holds 0.5,1,2 --json           stop the kernel at three pings, and print one JSON object
  skblab ping --at ip_rcv --series 6.1         another function, another kernel
  skblab run -r 'icmp_rcv = delay 300ms @2' -- ping -c3 guest
                                               a verdict on single packets while the kernel runs on
  skblab trace -- ping -c1 guest               the ping's journey through the kernel, call by call
  skblab sweep -g ./server -- ./client         every packet lost, late, twice ...: which one breaks it?
  skblab matrix scenario.toml --seed 1..100    scenarios on several kernels, under several seeds
  skblab hold -- ping guest                    hold packets on a screen, and decide about each
  skblab gdb -- ping guest                     gdb's own prompt on the guest's kernel, with commands for packets
  skblab up; skblab exec lab -- ping guest     a lab for several terminals; skblab down ends it
  skblab exec --guest lab -- ip neigh          a command in the guest; skblab cp FILE lab:/tmp/
  skblab mconsole lab sysrq m                  a command for the guest's kernel itself
  skblab image build                           build the guest's kernel (once; some minutes)
  skblab up --disk my.cow,debian.ext4          a guest with a disk; skblab disk build makes one
  skblab doctor                                what this machine allows and lacks

completion:  eval "$(skblab completion bash)"; also for zsh and fish
"""
# In the order of --help; each module registers its own commands.
COMMANDS = (
    "run", "hold", "ping", "replay", "trace", "show", "export", "diff", "probes", "determinism", "sweep", "explore",
    "matrix", "gdb", "labs", "cp", "mconsole", "image", "module", "disk", "doctor", "completion",
)  # fmt: skip


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="skblab",
        description="Stop packets inside a running Linux kernel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    top.add_argument("-v", "--verbose", action="store_true", help="print which programs are started")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"skblab.cli.{name}").register(commands)
    return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; if a shell asks for completions, print them and exit."""
    from skblab.cli import gdb, trace  # noqa: PLC0415

    top = parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # noqa: PLC0415

        argcomplete.autocomplete(top)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        top.print_help(sys.stderr)
        sys.exit(2)
    client: list[str] = []
    if "--" in words and next((word for word in words if not word.startswith("-")), "") in {gdb.NAME, trace.NAME}:
        # argparse would take the client's first word for the lab's name, or the filter.
        dashes = words.index("--")
        words, client = words[:dashes], words[dashes + 1 :]
    arguments, rest = top.parse_known_args(words, argparse.Namespace(client=client))
    if rest:
        arguments.parser.refuse(rest, words, arguments)
    return arguments


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return version("skblab")


def _end(number: int, _: object) -> NoReturn:
    """Exit as Ctrl-C does: everything that was started is ended on the way."""
    sys.exit(128 + number)


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parse(argv)
    logging.basicConfig(level=logging.DEBUG if arguments.verbose else logging.WARNING, format="skblab: %(message)s")
    return complaints.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    streams.open_all()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
            signal.signal(number, _end)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, wait(2) returns no status
    threads = outcome.Threads()
    status = outcome.status_of(lambda: _run(argv))
    flushed = [outcome.status_of(stream.flush) for stream in (sys.stdout, sys.stderr)]
    return next(filter(None, (status, threads.status(), *flushed)), 0)
