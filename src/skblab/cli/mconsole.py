"""``skblab mconsole``: commands for a guest's kernel, without a program in the guest."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from skblab.cli.complaints import add_strict
from skblab.cli.options import complete, lab_names
from skblab.errors import UsageError

if TYPE_CHECKING:
    from skblab.guest.mconsole import Mconsole

EXAMPLES = """\
examples:
  skblab mconsole lab version
  skblab mconsole lab proc meminfo            a file of the guest's /proc
  skblab mconsole lab stack 1                 the kernel stack of init
  skblab mconsole lab sysrq m                 memory use; h lists the keys; c panics the kernel
  skblab mconsole lab config con2=null        plug in a device; config con2 shows it, remove con2 unplugs it
  skblab mconsole lab log "here it begins"    write a line to the kernel's log
  skblab mconsole lab stop                    stop the kernel; go resumes it

commands:
  version  help  proc FILE  stack PID  sysrq KEY  log TEXT  config DEVICE[=VALUE]  remove DEVICE
  cad      Ctrl-Alt-Del: a signal to the guest's init
  stop go  stop the kernel, without a debugger; resume it; in virtual time it stands still anyway
  halt     end the kernel; the lab's name is free after skblab down
  reboot   refused: a lab's kernel does not reboot, start another lab

A kernel that is stopped under gdb does not answer: skblab mconsole fails after 5 seconds.
"""


def _config(console: "Mconsole", text: str) -> str:
    device, equals, value = text.partition("=")
    return console.config(device, value if equals else None)


def _pid(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"not a pid: {text!r}", hint="a pid of the guest: 1 is its init")
    return int(text)


Action = Callable[["Mconsole", str], str | None]
PLAIN: dict[str, Callable[["Mconsole"], str | None]] = {
    "version": lambda console: console.version(),
    "help": lambda console: console.help(),
    "cad": lambda console: console.cad(),
    "stop": lambda console: console.stop(),
    "go": lambda console: console.go(),
    "halt": lambda console: console.halt(),
    "reboot": lambda console: console.reboot(),
}
WITH_WORD: dict[str, tuple[str, Action]] = {
    "proc": ("FILE", lambda console, word: console.proc(word)),
    "stack": ("PID", lambda console, word: console.stack(_pid(word))),
    "sysrq": ("KEY", lambda console, word: console.sysrq(word)),
    "log": ("TEXT", lambda console, word: console.log(word)),
    "config": ("DEVICE[=VALUE]", _config),
    "remove": ("DEVICE", lambda console, word: console.remove(word)),
}
COMMANDS = (*PLAIN, *WITH_WORD)


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "mconsole",
        help="send a command to the kernel of a lab's guest",
        description="Send one command to the management console of a lab's guest kernel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete(parser.add_argument("name", metavar="LAB", help="a lab that is up"), lab_names)
    complete(parser.add_argument("order", metavar="COMMAND", help=", ".join(COMMANDS)), lambda **_: COMMANDS)
    parser.add_argument("words", nargs="*", metavar="WORD", help="the command's argument")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_strict(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the command, and print the answer."""
    from skblab.lab import Lab  # noqa: PLC0415

    order, _, text = " ".join([arguments.order, *arguments.words]).partition(" ")  # quoted as one word, or not
    if order not in COMMANDS:
        raise UsageError(f"mconsole has no command {order!r}", hint=f"one of: {', '.join(COMMANDS)}")
    if order in PLAIN and text:
        raise UsageError(f"mconsole {order} takes nothing", found=text)
    if order in WITH_WORD and not text:
        raise UsageError(f"mconsole {order} is not complete", hint=f"skblab mconsole LAB {order} {WITH_WORD[order][0]}")
    with Lab.join(arguments.name) as lab:
        console = lab.guest.mconsole
        answer = (PLAIN[order](console) if order in PLAIN else WITH_WORD[order][1](console, text)) or ""
        event = lab.guest.panic()
    arguments.hearing.panic_is_printed = bool(event)
    if arguments.json:
        complaints = [one.fields() for one in lab.new_complaints]
        fields = {
            "lab": arguments.name, "command": f"{order} {text}".strip(), "answer": answer, "complaints": complaints,
        }  # fmt: skip
        print(json.dumps(fields | ({"panic": str(event)} if event else {})))
    elif answer or event:
        print((answer or str(event)).rstrip("\n"))
    return 0
