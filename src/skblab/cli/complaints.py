"""Complaints of a command's guest kernels: printed when the command ends, and with ``--strict`` its exit status."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from skblab.errors import GuestLost
from skblab.guest.complaint import Complains, Complaint, in_words, when_left
from skblab.guest.losses import Losses

if TYPE_CHECKING:
    from skblab.lab import Lab

STATUS = 119  # below 128, so that git bisect run takes it for bad; not a status that shells or test drivers use

Report = Callable[[dict[str, Any]], object]


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes a complaint the exit status."""
    parser.add_argument(
        "--strict", action="store_true",
        help=f"exit with status {STATUS} if the guest's kernel complained: WARNING, BUG, KASAN, lockdep ...",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run a command; then print the complaints of its guest kernels. Return the command's status, or STATUS."""
    arguments.hearing = hearing = Hearing()
    when_left.append(hearing.left)
    try:
        status: int = arguments.run(arguments)
    except GuestLost:
        hearing.panic_is_printed = True
        raise
    finally:
        when_left.remove(hearing.left)
        hearing.print()
    return STATUS if getattr(arguments, "strict", False) and hearing.complaints else status


class Hearing:
    """Collects the complaints of one command's guest kernels, and the losses of its links."""

    def __init__(self) -> None:
        self.complaints: list[Complaint] = []  # of labs that have been left
        self.losses = Losses()
        self.panic_is_printed = False
        self._reported = 0  # how many of them were events already
        self._report: Report | None = None

    def left(self, lab: Complains) -> None:
        """Take the complaints and losses of a lab that has been left."""
        self.complaints += lab.new_complaints
        self.losses += lab.link_losses

    @contextlib.contextmanager
    def as_they_come(self, lab: "Lab", report: Report) -> Iterator[None]:
        """Report a lab's complaints as events, too: each at once, and the last ones in print().

        A panic waits for print(): mostly it is the command's error.
        """
        self._report = report

        def report_complaint(complaint: Complaint) -> None:
            if complaint.kind != "panic":
                report(complaint.fields())

        watch = lab.on_complaint(report_complaint)
        try:
            yield
        finally:
            watch.close()
            self._reported = watch.reported

    def print(self) -> None:
        """Print the complaints and losses, and report the events that are left."""
        panics = [] if self.panic_is_printed else [one for one in self.complaints if one.kind == "panic"]
        if self._report:
            for one in [*(one for one in self.complaints[self._reported :] if one.kind != "panic"), *panics]:
                self._report(one.fields())
        if rest := [*(one for one in self.complaints if one.kind != "panic"), *panics]:
            print(f"skblab: {in_words(rest)}", file=sys.stderr)
        if self.losses:
            print(f"skblab: {self.losses}", file=sys.stderr)
