"""What the kernels of a command's labs complained of: said when the command ends, and by ``--strict`` its status."""

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

STATUS = 119  # below 128, so that git bisect run takes it for bad, and none of those that shells and test drivers use

Say = Callable[[dict[str, Any]], object]


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes a complaint the exit status."""
    parser.add_argument(
        "--strict", action="store_true",
        help=f"end with status {STATUS} where the guest's kernel complained: WARNING, BUG, KASAN, lockdep ...",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run a command; then say what the kernels of its labs complained of. Return the command's status, or STATUS."""
    arguments.hearing = hearing = Hearing()
    when_left.append(hearing.left)
    try:
        status: int = arguments.run(arguments)
    except GuestLost:
        hearing.panic_is_said = True
        raise
    finally:
        when_left.remove(hearing.left)
        hearing.say()
    return STATUS if getattr(arguments, "strict", False) and hearing.complaints else status


class Hearing:
    """What the kernels of one command's labs have complained of."""

    def __init__(self) -> None:
        self.complaints: list[Complaint] = []  # of labs that have been left
        self.losses = Losses()
        self.panic_is_said = False
        self._events = 0  # how many of them have been events
        self._event: Say | None = None

    def left(self, lab: Complains) -> None:
        """Take a lab's complaints, and what its links have lost, when it has been left."""
        self.complaints += lab.new_complaints
        self.losses += lab.link_losses

    @contextlib.contextmanager
    def as_they_come(self, lab: "Lab", event: Say) -> Iterator[None]:
        """Say a lab's complaints as events, too: each at once, and those that come later.

        A panic waits for the end, for mostly it is the command's error.
        """
        self._event = event

        def told(complaint: Complaint) -> None:
            if complaint.kind != "panic":
                event(complaint.fields())

        watch = lab.on_complaint(told)
        try:
            yield
        finally:
            watch.close()
            self._events = watch.reported

    def say(self) -> None:
        """Say what has not been said."""
        panics = [] if self.panic_is_said else [one for one in self.complaints if one.kind == "panic"]
        if self._event:
            for one in [*(one for one in self.complaints[self._events :] if one.kind != "panic"), *panics]:
                self._event(one.fields())
        if rest := [*(one for one in self.complaints if one.kind != "panic"), *panics]:
            print(f"skblab: {in_words(rest)}", file=sys.stderr)
        if self.losses:
            print(f"skblab: {self.losses}", file=sys.stderr)
