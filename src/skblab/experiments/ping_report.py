"""The ping experiment's result as a table for people."""

from rich.console import Console
from rich.table import Table

from skblab.experiments.ping import Result, Staircase

WIDTH_OFF_TERMINAL = 132


def print_report(result: Result, console: Console | None = None) -> None:
    """Print a result: plain pings, hold times beside RTTs, the backtrace, the staircase, lost pings."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OFF_TERMINAL)
    console.print(f"Linux {result.kernel}; plain pings: " + ", ".join(f"{rtt:g} ms" for rtt in result.baseline_ms))
    if result.stops:
        console.print(f"stopped in [bold]{result.function}()[/bold]:")
        table = Table("held", "ping says", "packet", box=None, pad_edge=False, header_style="bold")
        for stop in result.stops:
            said = "no reply" if stop.rtt_ms is None else f"time={stop.rtt_ms:g} ms"
            table.add_row(f"{stop.held_s * 1e3:.0f} ms", said, stop.packet["summary"] if stop.packet else "")
        console.print(table)
        console.print("backtrace of the first one, newest first:")
        for number, frame in enumerate(result.stops[0].backtrace):
            place = f"{frame['file']}:{frame['line']}" if frame["file"] else ""
            console.print(f"  #{number:<2} {frame['function']}()  [dim]{place}[/dim]", soft_wrap=True)
    if result.staircase:
        console.print(staircase_text(result.staircase))
    console.print(f"pings lost: {result.lost}")


def staircase_text(staircase: Staircase) -> str:
    """Return the staircase in words."""
    stairs = ", ".join(f"{rtt:.0f}" for rtt in staircase.rtts_ms)
    text = f"staircase, a ping every {staircase.interval_s:g} s behind one held {staircase.held_s:.2f} s: {stairs} ms\n"
    if staircase.enobufs or staircase.link == "tap":
        return (
            text
            + f"then the link's queue was full: {staircase.enobufs} sends refused, No buffer space available (ENOBUFS)"
        )
    return text + f"no send was refused: this link ({staircase.link}) has no short queue; a tap would have"
