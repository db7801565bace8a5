"""The standard streams, open and usable whatever the command was started with.

A closed stream becomes /dev/null: otherwise the next file to be opened would get its number, and the messages. The
error of a refused write names the stream; Python's does not.
"""

import contextlib
import io
import os
import sys
from typing import TextIO

NAMES = {1: "standard output", 2: "standard error"}


class _Stream(io.FileIO):
    """The raw file of a stream, whose errors name the stream."""

    def write(self, data: object) -> int:
        """Write, and name the stream in the error."""
        try:
            return super().write(data)  # type: ignore[arg-type] # what FileIO takes
        except OSError as error:
            error.filename = NAMES[self.fileno()]
            raise


def open_all() -> None:
    """Open the three streams."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # no /dev: it stays closed
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout = _opened(1, sys.stdout)
    sys.stderr = _opened(2, sys.stderr)


def _opened(number: int, before: TextIO | None) -> TextIO:
    """Return a stream like the one before; a character that its encoding lacks is written as a Python escape."""
    raw = _Stream(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
        write_through=getattr(before, "write_through", False),
    )


def given_up(error: OSError) -> bool:
    """Return whether an error is a stream's; discard that stream's buffer, which Python would write again."""
    number = next((number for number, name in NAMES.items() if name == error.filename), None)
    if number is None:
        return False
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return True
