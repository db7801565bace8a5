"""``skblab cp``: files into a lab's guest, and out of it."""

import argparse
from collections.abc import Iterable

from skblab.cli.complaints import add_strict
from skblab.cli.options import complete, lab_names
from skblab.errors import UsageError

EXAMPLES = """\
examples:
  skblab cp server.py lab:/tmp/               into a directory of the guest
  skblab cp -- ./tests lab:/tmp/tests         a directory with everything in it
  skblab cp lab:/var/log/messages .           out of the guest

Modes and times are kept; the owner is root in the guest, and you here. A path without LAB: is on this machine; write
./a:b for a name with a colon. The guest needs tar and test.
"""


def _places(prefix: str, **_: object) -> Iterable[str]:
    """Return the labs, each with its colon, and the files of this machine."""
    import argcomplete  # noqa: PLC0415

    yield from (f"{name}:" for name in lab_names() if name.startswith(prefix))
    yield from argcomplete.completers.FilesCompleter()(prefix)


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cp",
        help="copy files into a lab's guest or out of it",
        description="Copy a file, or a directory, into a lab's guest or out of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, help_text in (("source", "PATH or LAB:PATH"), ("target", "LAB:PATH or PATH")):
        complete(parser.add_argument(name, metavar=name.upper(), help=help_text), _places)
    add_strict(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Copy in or out."""
    from skblab.lab import Lab  # noqa: PLC0415

    (here_lab, here), (there_lab, there) = _place(arguments.source), _place(arguments.target)
    if bool(here_lab) == bool(there_lab):
        raise UsageError(
            "one of the two paths must be in a guest, the other one here",
            hint="skblab cp PATH LAB:PATH, or skblab cp LAB:PATH PATH",
        )
    with Lab.join(here_lab or there_lab) as lab:
        if there_lab:
            lab.guest.copy_in(here, there)
        else:
            lab.guest.copy_out(here, there)
    return 0


def _place(text: str) -> tuple[str, str]:
    """Split LAB:PATH; the lab of a path on this machine is empty."""
    lab, colon, path = text.partition(":")
    return (lab, path or "/") if colon and "/" not in lab else ("", text)
