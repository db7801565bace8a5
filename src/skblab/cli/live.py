"""Show a trace while it is being written: each journey when it is over, as long as more are wanted."""

import contextlib
import threading
from collections.abc import Iterator

from skblab.cli.show import Printer
from skblab.record.live import SETTLED_NS, Live
from skblab.record.tracer import Tracer


@contextlib.contextmanager
def shown_live(tracer: Tracer, printer: Printer) -> Iterator[None]:
    """Print a trace's journeys from another thread; at the end, those that are over then."""
    ended = threading.Event()
    live = Live(tracer.path)
    thread = threading.Thread(target=_show, args=(live, tracer.grown, ended, printer), name="skblab-live")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        tracer.grown.set()
        thread.join()
        live.close()


def _show(live: Live, grown: threading.Event, ended: threading.Event, printer: Printer) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever reads has enough; the command goes on
        while not (ended.is_set() or printer.has_enough or live.behind):
            if not live.pending:
                grown.wait()
            grown.clear()
            ended.wait(SETTLED_NS / 1e9)
            over = live.over()
            if live.trace:
                printer.print(live.trace, over)
                live.forget(over)
