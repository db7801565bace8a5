"""What a person sees while a command works: a line that says at what; a table that fills while cells run."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skblab.errors import SkblabError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MINUTE_S = 60
QUIET_S = 1.0  # a command that is faster says nothing
EVERY_S = 0.25


class _Line:
    """One line on a terminal: for how long something has gone on, at what it is, and how much of it is done."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._began_s = time.monotonic()
        self._done = ""
        self.ended = threading.Event()

    def done(self, share: float) -> None:
        """Note which part is done, up to 1."""
        self._done = f"{share:.0%}  "

    def show(self) -> None:
        """Show the line, after the first second, until it has ended."""
        with contextlib.suppress(OSError):  # the terminal has gone
            wait_s = QUIET_S
            while not self.ended.wait(wait_s):
                text = f"{time.monotonic() - self._began_s:4.0f} s  {self._done}{self._at}"
                self._write(text[: shutil.get_terminal_size().columns - 1])
                wait_s = EVERY_S
            if wait_s == EVERY_S:
                self._write("")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@contextmanager
def working(at: str) -> Iterator[Callable[[float], None]]:
    """Say on a terminal what the block is at; yield a function that takes the part that is done, up to 1."""
    line = _Line(at)
    if not sys.stderr.isatty():
        yield line.done
        return
    thread = threading.Thread(target=line.show, name="skblab-working")
    thread.start()
    try:
        yield line.done
    finally:
        line.ended.set()
        thread.join()


@dataclass(frozen=True)
class Progress:
    """What is shown while cells run.

    :param table: as far as they are done
    :param summary: a line about those that are done
    :param count: how many are done, of how many
    """

    table: "Callable[[], Table]"
    summary: Callable[[], str]
    count: Callable[[], tuple[int, int]]
    began_s: float = field(default_factory=time.monotonic)

    def now(self) -> "Group":
        """Return what is shown at this moment."""
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        took_s, (done, count) = max(time.monotonic() - self.began_s, 0.1), self.count()
        left_s = round((count - done) * took_s / done) if done else 0
        pace = f"{done / took_s:.1f} cells a second, {left_s // MINUTE_S}:{left_s % MINUTE_S:02} left"
        return Group(Text(f"{self.summary()}; {pace}" if done else "begins"), self.table())


def ran(runs: Generator[object, None, None], progress: Progress) -> SkblabError | KeyboardInterrupt | None:
    """Run cells to their end while the table shows them; return what has ended that before, a Ctrl-C or an error.

    The caller has the results that are there, and reports them first.
    """
    with _shown(progress):
        try:
            for _ in runs:
                pass
        except (KeyboardInterrupt, SkblabError) as ended:
            return ended
        finally:
            runs.close()
    return None


@contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """Show the table on a terminal until the block ends."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=progress.now, console=console, transient=True, refresh_per_second=4):
        yield


def print_table(table: "Table") -> None:
    """Print a table whole, however narrow the terminal is."""
    from rich.console import Console  # noqa: PLC0415

    width = Console(width=1000).measure(table).maximum
    Console(file=sys.stdout, width=max(width, shutil.get_terminal_size().columns), highlight=False).print(table)
