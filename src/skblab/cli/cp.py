"""``skblab cp``: files into a lab's guest, and out of it."""

import argparse
from collections.abc import Iterable

from skblab.cli.complaints import add_strict
from skblab.cli.options import complete, lab_names
from skblab.errors import UsageError

EXAMPLES = """\
examples:
  skblab cp server.py lab:/tmp/               into a directory of the guest's
  skblab cp -- ./tests lab:/tmp/tests         a directory, with all in it
  skblab cp lab:/var/log/messages .           out of it

Modes and times are kept; the owner is root there, and you here. What has no LAB: before it is on this machine; a name
with a colon in it is written with its directory, ./a:b. The guest's own tar does the work there.
"""


def _places(prefix: str, **_: object) -> Iterable[str]:
    """Return the labs, as they begin a place; and, where it is none of them, this machine's files."""
    import argcomplete  # noqa: PLC0415

    yield from (f"{name}:" for name in lab_names() if name.startswith(prefix))
    yield from argcomplete.completers.FilesCompleter()(prefix)


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cp",
        help="copy files into a lab's guest, or out of it",
        description="Copy a file, or a directory, into a lab's guest or out of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, help_text in (("source", "PATH or LAB:PATH"), ("target", "LAB:PATH or PATH")):
        complete(parser.add_argument(name, metavar=name.upper(), help=help_text), _places)
    add_strict(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Copy."""
    from skblab.lab import Lab  # noqa: PLC0415

    (here_lab, here), (there_lab, there) = _place(arguments.source), _place(arguments.target)
    if bool(here_lab) == bool(there_lab):
        raise UsageError(
            "one of the two is in a guest, and the other is here", hint="skblab cp PATH LAB:PATH, or LAB:PATH PATH"
        )
    with Lab.join(here_lab or there_lab) as lab:
        if there_lab:
            lab.guest.copy_in(here, there)
        else:
            lab.guest.copy_out(here, there)
    return 0


def _place(text: str) -> tuple[str, str]:
    """Split LAB:PATH; a path of this machine has no lab."""
    lab, colon, path = text.partition(":")
    return (lab, path or "/") if colon and "/" not in lab else ("", text)
