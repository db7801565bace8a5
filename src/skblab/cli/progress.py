"""A table that fills while cells run, with the pace and the time left; and the whole of it at the end."""

import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MINUTE_S = 60


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


def ran(runs: Generator[object, None, None], progress: Progress) -> bool:
    """Run cells to their end while the table shows them; return False if a Ctrl-C has ended that."""
    with _shown(progress):
        try:
            for _ in runs:
                pass
        except KeyboardInterrupt:
            return False
        finally:
            runs.close()
    return True


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
