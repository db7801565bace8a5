"""``skblab up``, ``ls``, ``down``, ``exec``, ``shell``, ``console``, ``log``: labs that several terminals share."""

import argparse
import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable
from dataclasses import asdict

from skblab.cli.options import add_guest_options, add_lab_options, complete, lab_from, lab_names
from skblab.errors import UsageError
from skblab.guest.terminal import NAME_OF_LEAVE
from skblab.host import registry
from skblab.host.process import Running, exit_status

DEFAULT_NAME = "lab"
FOLLOW_EVERY_S = 0.2

UP_EXAMPLES = """\
examples:
  skblab up                                   boot a lab and leave it up; its name is lab
  skblab up web --root host -g 'python3 -m http.server 80'
  skblab up deb --disk my.cow,debian.ext4      boot from a disk (skblab disk build); skblab console deb: log in
  skblab exec web -- curl -s http://guest/    in any terminal
  skblab run --lab web -r 'tcp_v4_rcv = delay 50ms' -- curl -s http://guest/
  skblab gdb web                              in another one
  skblab down web

Any number of terminals can use one lab; rules and holds are one command's at a time, and so is gdb.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    up = _command(commands, "up", _up, "boot a lab that outlives the command", UP_EXAMPLES)
    up.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME", help="default: %(default)s")
    up.add_argument("--json", action="store_true", help="print one JSON object")
    add_lab_options(up, joins=False)
    add_guest_options(up)
    ls = _command(commands, "ls", _ls, "list the labs that run")
    ls.add_argument("--json", action="store_true", help="print one JSON object a line")
    down = _command(commands, "down", _down, "end labs that are up")
    complete(down.add_argument("names", nargs="*", metavar="NAME", help=f"default: {DEFAULT_NAME}"), lab_names)
    down.add_argument("--all", action="store_true", help="every lab that is up")
    execute = _command(commands, "exec", _exec, "run a command on the host side of a lab",
                       "example:\n  skblab exec lab -- ping -c3 guest\n")  # fmt: skip
    complete(execute.add_argument("name", metavar="NAME"), lab_names)
    execute.add_argument("command", nargs="+", metavar="COMMAND", help="after --; its exit status is skblab's")
    shell = _command(commands, "shell", _shell, "start your shell on the host side of a lab")
    complete(shell.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME"), lab_names)
    console = _command(commands, "console", _console, f"talk to a shell in a lab's guest; {NAME_OF_LEAVE} leaves")
    complete(console.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME"), lab_names)
    log = _command(commands, "log", _log, "print what a lab's guest kernel has said")
    complete(log.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME"), lab_names)
    log.add_argument("-f", "--follow", action="store_true", help="go on as it says more, until the lab ends")


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
            print(
                json.dumps(
                    {"name": lab.name, "image": lab.image.name, "pid": lab.guest.pid, "link": lab.namespaces.link}
                )
            )
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
    from skblab.host.namespace import JoinedNamespaces  # noqa: PLC0415

    for name in lab_names() if arguments.all else arguments.names or [DEFAULT_NAME]:
        with JoinedNamespaces(name) as namespaces:
            namespaces.end()
        print(f"{name} is down")
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    return _run_in(arguments.name, arguments.command)


def _shell(arguments: argparse.Namespace) -> int:
    print(f"skblab: on the host side of {arguments.name}; guest and host are names; exit leaves", file=sys.stderr)
    return _run_in(arguments.name, [os.environ.get("SHELL", "/bin/sh")])


def _run_in(name: str, command: list[str]) -> int:
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(name) as lab:
        return _status(lab.popen(command, stdin=None))


def _status(client: Running) -> int:
    """Wait for a client; Ctrl-C is for it, and it says what it makes of that."""
    while True:
        try:
            status = client.wait()
        except KeyboardInterrupt:
            continue
        return exit_status(status)


def _console(arguments: argparse.Namespace) -> int:
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(arguments.name) as lab:
        lab.check()
        if lab.terminal is None:
            raise UsageError(
                f"the guest of {arguments.name} has no programs to talk to",
                mend="skblab up NAME --root host, or --disk FILE",
            )
        print(f"skblab: a shell in the guest of {arguments.name}; {NAME_OF_LEAVE} leaves", file=sys.stderr)
        keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
        before = None
        if os.isatty(keyboard):
            before = termios.tcgetattr(keyboard)
            tty.setraw(keyboard)
            termios.tcsetwinsize(lab.terminal.fd, termios.tcgetwinsize(keyboard))
        os.write(lab.terminal.fd, b"\r")  # for a prompt
        try:
            ended = lab.terminal.talk(keyboard, screen, lab.guest.pidfd)
        finally:
            if before:
                termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
                print(file=sys.stderr)
        if ended:
            raise lab.guest.lost()
    return 0


def _log(arguments: argparse.Namespace) -> int:
    from skblab.lab import Lab  # noqa: PLC0415

    with Lab.join(arguments.name) as lab:
        said = lab.console.text()
        sys.stdout.write(said)
        sys.stdout.flush()
        while arguments.follow:
            # A file in memory tells nobody that it has grown.
            ended = select.select([lab.guest.pidfd], [], [], FOLLOW_EVERY_S)[0]
            text = lab.console.text()
            sys.stdout.write(text[len(said) :])
            sys.stdout.flush()
            said = text
            if ended:
                if event := lab.guest.panic():
                    print(f"skblab: the guest kernel has panicked:\n{event}", file=sys.stderr)
                break
    return 0
