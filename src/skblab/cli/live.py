"""Print a trace while it is being written: each journey when it is over, up to the number that the options want."""

import contextlib
import threading
from collections.abc import Iterator

from skblab.cli.show import Printer
from skblab.trace.live import SETTLED_NS, Live
from skblab.trace.tracer import Tracer


@contextlib.contextmanager
def shown_live(tracer: Tracer, printer: Printer) -> Iterator[None]:
    """Print a trace's journeys from another thread until the block ends."""
    ended = threading.Event()
    failed: list[OSError] = []
    live = Live(tracer.path)

    def run() -> None:
        try:
            _show(live, tracer.grown, ended, printer)
        except OSError as error:  # standard output cannot be written; the command goes on
            failed.append(error)

    thread = threading.Thread(target=run, name="skblab-live")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        tracer.grown.set()
        thread.join()
        live.close()
    for error in failed:
        raise error


def _show(live: Live, grown: threading.Event, ended: threading.Event, printer: Printer) -> None:
    while not (ended.is_set() or printer.has_enough or live.behind):
        if not live.pending:
            grown.wait()
        grown.clear()
        ended.wait(SETTLED_NS / 1e9)
        over = live.over()
        if live.trace:
            printer.print(live.trace, over)
            live.forget(over)
