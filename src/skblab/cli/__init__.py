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
from skblab.cli.parser import WITH_WORD, Parser

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
# In the order of --help: modules, and the commands that each registers.
MODULES = {
    "run": ("run",), "hold": ("hold",), "ping": ("ping",), "replay": ("replay",), "trace": ("trace",),
    "show": ("show",), "export": ("export",), "diff": ("diff",), "probes": ("probes",),
    "determinism": ("check-determinism",), "sweep": ("sweep",), "explore": ("explore",), "matrix": ("matrix",),
    "gdb": ("gdb",), "labs": ("up", "ls", "down", "exec", "shell", "console", "log"), "cp": ("cp",),
    "mconsole": ("mconsole",), "image": ("image",), "module": ("module",), "disk": ("disk",), "doctor": ("doctor",),
    "completion": ("completion",),
}  # fmt: skip


class _Version(argparse.Action):
    """Print the version: argparse's own action wants it beforehand, and to look it up takes as long as to parse."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"{parser.prog} {version('skblab')}")
        parser.exit()


def parser(command: str = "") -> Parser:
    """Return the parser of one command's line; without its name, of every command's: to import all takes long."""
    top = Parser(
        prog="skblab",
        description="Stop packets inside a running Linux kernel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    top.add_argument("-v", "--verbose", action="store_true", help="print which programs are started")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    of_it = [module for module, names in MODULES.items() if command in names]
    for module in of_it or MODULES:
        importlib.import_module(f"skblab.cli.{module}").register(commands)
    return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; if a shell asks for completions, print them and exit."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # noqa: PLC0415

        argcomplete.autocomplete(parser())
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), "")
    top = parser(command)
    if not words:
        top.print_help(sys.stderr)
        sys.exit(2)
    client: list[str] = []
    if "--" in words and command in WITH_WORD:
        # argparse would take the client's first word for the lab's name, or the filter.
        dashes = words.index("--")
        words, client = words[:dashes], words[dashes + 1 :]
    arguments, rest = top.parse_known_args(words, argparse.Namespace(client=client))
    if rest:
        arguments.parser.refuse(rest, words, arguments)
    return arguments


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
