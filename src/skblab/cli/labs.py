"""``skblab up``, ``ls``, ``down``, ``exec``, ``shell``, ``console``, ``log``: labs that several terminals share."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from skblab.cli import tmux
from skblab.cli.complaints import add_strict
from skblab.cli.options import add_guest_options, add_lab_options, complete, lab_from, lab_names
from skblab.errors import NoSuchLab, UsageError
from skblab.guest.session import raw_keyboard
from skblab.guest.terminal import NAME_OF_LEAVE
from skblab.host import registry
from skblab.host.process import exit_status
from skblab.host.waiting import wait

if TYPE_CHECKING:
    from skblab.host.namespace import JoinedNamespaces
    from skblab.lab import Lab

DEFAULT_NAME = "lab"
CONSOLE = 1  # among the descriptors that a lab passes to a process that joins it (host/lab_init.py do_join())

UP_EXAMPLES = """\
examples:
  skblab up                                   boot a lab and leave it up; its name is lab
  skblab up web --root host -g 'python3 -m http.server 80'
  skblab up deb --disk my.cow,debian.ext4      boot from a disk (skblab disk build); skblab console deb: log in
  skblab exec web -- curl -s http://guest/    in any terminal
  skblab run --lab web -r 'tcp_v4_rcv = delay 50ms' -- curl -s http://guest/
  skblab gdb web                              in another terminal
  skblab down web

Any number of terminals can use one lab; only one command at a time can have rules and holds, and only one gdb.
"""

EXEC_EXAMPLES = """\
examples:
  skblab exec lab -- ping -c3 guest             on the host side of the link
  skblab exec --guest lab -- ip -s link         in the guest
  skblab exec --guest lab -- bash               with a terminal, if stdin and stdout are one
  skblab exec --guest lab -- tcpdump -i vec0 -w - -c 10 >guest.pcap
  tar c . | skblab exec --guest lab -- tar xC /tmp

The command has skblab's stdin, stdout and stderr, and skblab exits with its status: 128 plus the signal's number if a
signal ended it, 127 if there is no such program. Ctrl-C is for the command; if a signal ends skblab, a command in the
guest gets SIGHUP. A guest has programs with --root host, --root DIR or --disk FILE.
"""

CONSOLE_EXAMPLES = """\
examples:
  skblab up deb --disk deb.cow --consoles 6
  skblab console deb 2                          the second of six: a login of the disk
  skblab console deb --tmux                     all six as windows of a tmux session

A console lasts as long as its lab: its shell and programs run on after you leave. For a single command, with its status
and pipes, use skblab exec --guest.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    up = _command(commands, "up", _up, "boot a lab that outlives the command", UP_EXAMPLES)
    up.add_argument(
        "name", nargs="?", default=DEFAULT_NAME, metavar="NAME", help="the lab's name (default: %(default)s)"
    )
    up.add_argument("--json", action="store_true", help="print one JSON object")
    add_lab_options(up, joins=False)
    add_guest_options(up)
    up.set_defaults(consoles=1)
    ls = _command(commands, "ls", _ls, "list the running labs")
    ls.add_argument("--json", action="store_true", help="print JSON lines")
    down = _command(commands, "down", _down, "end labs that are up")
    names = down.add_argument("names", nargs="*", metavar="LAB", help=f"a lab that is up (default: {DEFAULT_NAME})")
    complete(names, lab_names)
    down.add_argument("--all", action="store_true", help="end every lab that is up")
    execute = _command(
        commands, "exec", _exec, "run a command on the host side of a lab, or in its guest", EXEC_EXAMPLES
    )
    execute.add_argument("--guest", action="store_true", help="run it in the guest instead of on the host side")
    complete(execute.add_argument("name", metavar="LAB", help="a lab that is up"), lab_names)
    execute.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run, after --")
    shell = _command(commands, "shell", _shell, "start your shell on the host side of a lab")
    _add_lab(shell)
    console = _command(commands, "console", _console,
                       f"connect to a virtual console of a guest; {NAME_OF_LEAVE} leaves it",
                       CONSOLE_EXAMPLES)  # fmt: skip
    _add_lab(console)
    console.add_argument(
        "number", nargs="?", type=int, default=1, metavar="N", help="the console's number (default: %(default)s)"
    )
    console.add_argument("--tmux", action="store_true", help="show all consoles, each in a window of a tmux session")
    log = _command(commands, "log", _log, "print the kernel log of a lab's guest")
    _add_lab(log)
    log.add_argument("-f", "--follow", action="store_true", help="print new lines as they come, until the lab ends")
    for parser in (down, execute, shell, console, log):
        add_strict(parser)


def _add_lab(parser: argparse.ArgumentParser) -> None:
    lab = parser.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="LAB",
                              help="a lab that is up (default: %(default)s)")  # fmt: skip
    complete(lab, lab_names)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,  # noqa: A002
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    with lab_from(arguments) as lab:
        lab.keep()
        if arguments.json:
            complaints = [one.fields() for one in lab.complaints]
            print(
                json.dumps(
                    {"name": lab.name, "image": lab.image.name, "pid": lab.guest.pid, "link": lab.namespaces.link,
                     "complaints": complaints}
                )
            )  # fmt: skip
        else:
            print(
                f"{lab.name} is up: Linux {lab.image.release}, pid {lab.guest.pid}; end it with: skblab down {lab.name}"
            )
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    owners = registry.running()
    if arguments.json:
        for owner in owners:
            print(json.dumps(asdict(owner)))
        return 0
    if not owners:
        print("no lab runs; start one with: skblab up", file=sys.stderr)
        return 0
    print(f"{'NAME':20} {'AGE':>8}  {'PID':>8}  COMMAND")
    for owner in owners:
        kept = "" if owner.kept else "   (ends with its command)"
        age_s = int(time.time() - owner.started)
        age = f"{age_s // 3600}:{age_s // 60 % 60:02}:{age_s % 60:02}"
        print(f"{owner.name:20} {age:>8}  {owner.init_pid:>8}  {owner.command}{kept}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from skblab.guest.console import Console  # noqa: PLC0415

    if arguments.all and arguments.names:
        raise UsageError(
            f"--all ends every lab; it takes no name: {shlex.join(arguments.names)}",
            found="no lab was ended",
            hint="without --all, or without a name",
        )
    names = lab_names() if arguments.all else arguments.names or [DEFAULT_NAME]
    if not names:
        print("no lab is up", file=sys.stderr)
    for name in names:
        with _to_end(name) as namespaces:
            console = Console(namespaces.fds[CONSOLE]) if namespaces.is_of_this_version else None
            namespaces.end()
            if console:
                arguments.hearing.complaints += console.unreported_complaints()
                console.close()
        print(f"{name} is down")
    return 0


@contextlib.contextmanager
def _to_end(name: str) -> "Iterator[JoinedNamespaces]":
    from skblab.host.namespace import JoinedNamespaces  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        try:
            namespaces = stack.enter_context(JoinedNamespaces(name, to_end=True))
        except NoSuchLab as error:
            error.what, error.hint = f"no lab named {name!r} is up", "skblab ls"
            raise
        yield namespaces


def _exec(arguments: argparse.Namespace) -> int:
    if not arguments.guest:
        return _run_in(arguments.name, arguments.command)
    from skblab.guest.session import run_here  # noqa: PLC0415
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(arguments.name) as lab:
        return exit_status(run_here(lab.guest, arguments.command))


def _shell(arguments: argparse.Namespace) -> int:
    says = f"skblab: a shell on the host side of {arguments.name}; guest and host are names; exit leaves it"
    return _run_in(arguments.name, [os.environ.get("SHELL") or "/bin/sh"], says)


def _run_in(name: str, command: list[str], says: str = "") -> int:
    from skblab.guest.session import interrupts_kept  # noqa: PLC0415
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(name) as lab, interrupts_kept() as kept:
        if says:
            print(says, file=sys.stderr)
        client = lab.popen(command, stdin=None)
        kept.are_for(client)
        return exit_status(client.wait())


def _console(arguments: argparse.Namespace) -> int:
    from skblab.lab import Lab  # noqa: PLC0415

    name, number = arguments.name, arguments.number
    with Lab.join(name) as lab:
        lab.check()
        if not lab.terminals:
            raise UsageError(
                f"the guest of {name} has no consoles, because it has no programs",
                hint="skblab up NAME --root host, or --disk FILE",
            )
        if not 1 <= number <= len(lab.terminals):
            raise UsageError(
                f"the guest of {name} has no console {number}", found=f"it has {len(lab.terminals)}",
                hint="skblab up NAME --consoles N",
            )  # fmt: skip
        if arguments.tmux:
            return tmux.show(name, len(lab.terminals))
        terminal = lab.terminals[number - 1]
        print(f"skblab: console {number} of {name}'s guest; {NAME_OF_LEAVE} leaves it", file=sys.stderr)
        keyboard = sys.stdin.fileno()
        with contextlib.ExitStack() as stack:
            if os.isatty(keyboard):
                stack.callback(print, file=sys.stderr)
                stack.enter_context(raw_keyboard())
                termios.tcsetwinsize(terminal.fd, termios.tcgetwinsize(keyboard))
            os.write(terminal.fd, b"\r")  # makes the shell print its prompt
            stack.enter_context(lab.guest.clock.paced())
            ended = terminal.talk(keyboard, sys.stdout.buffer, lab.guest.pidfd, lab.guest.clock)
        if ended:
            raise lab.guest.lost()
    return 0


def _log(arguments: argparse.Namespace) -> int:
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(arguments.name) as lab, contextlib.ExitStack() as stack:
        if not arguments.follow:
            _print_log(lab, "")
            return 0
        grown = lab.console.watch()
        stack.callback(os.close, grown)
        printed = _print_log(lab, "")
        ended = False
        while not ended:
            ended = lab.guest.pidfd in wait([lab.guest.pidfd, grown])
            with contextlib.suppress(BlockingIOError):
                os.read(grown, 65536)
            printed = _print_log(lab, printed)
        if event := lab.guest.panic():
            arguments.hearing.panic_is_printed = True
            print(f"skblab: the guest kernel has panicked:\n{event}", file=sys.stderr)
    return 0


def _print_log(lab: "Lab", printed: str) -> str:
    """Print what the guest's log has beyond *printed*; return the log."""
    text = lab.console.text()
    sys.stdout.write(text[len(printed) :])
    sys.stdout.flush()
    return text
