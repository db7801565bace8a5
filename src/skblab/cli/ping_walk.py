"""The ping experiment by hand under gdb, step by step: Enter goes on."""

import contextlib
import sys
import termios
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from skblab.cli.keyboard import read_line
from skblab.debugger.inside.wire import GdbFrame, Stopped
from skblab.experiments.ping import PingExperiment, StoppedPing
from skblab.experiments.ping_report import staircase_text
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.image.missing import find_function
from skblab.lab import Lab

TICK_S = 0.1
STAIRCASE_HOLD_S = 3.0
FEWEST_FRAMES, OTHER_LINES = 9, 24  # of a stop: frames, and lines that are not frames
SHOWN_SOURCE = 4


def walk(lab: Lab, function: str, interval_s: float) -> None:
    """Lead a person through the experiment on a running lab."""
    find_function(lab.image, function)
    console = Console(highlight=False)
    experiment = PingExperiment(lab, function)
    took_ms = (lab.guest.ready_s - lab.guest.spawned_s) * 1e3
    console.print(
        f"Linux {lab.image.release} is up after {took_ms:.0f} ms: process {lab.guest.pid}, link {lab.namespaces.link}."
    )
    rtts = experiment.baseline(3, interval_s)
    console.print("Three plain pings: " + ", ".join(f"{rtt:g} ms" for rtt in rtts))
    console.print("\nAttaching gdb ...")
    with lab.debugger() as debugger, _one_key_at_a_time():
        console.print("The whole kernel is stopped. It was idle:")
        console.print(Padding(_backtrace(console, debugger.attached_at), (0, 2)))
        experiment.attach(debugger)
        _pause(
            console,
            f"\nA breakpoint is on [bold]{function}()[/bold]. Enter sends a ping, and you decide when it goes on.",
        )
        while True:
            ping = experiment.stop_ping()
            console.rule(f"stopped in {function}()")
            console.print(_scene(console, lab.image, ping))
            _hold(console, experiment, ping)
            stop = experiment.outcome(ping, experiment.resume(ping))
            reply = "no reply" if stop.rtt_ms is None else f"time={stop.rtt_ms:g} ms"
            console.print(f"you held it [bold]{stop.held_s * 1e3:.0f} ms[/bold]; ping says [bold]{reply}[/bold]")
            if not _again(console):
                break
        console.rule("the staircase")
        console.print(
            f"One ping is held for {STAIRCASE_HOLD_S:g} s; a ping every {interval_s:g} s piles up behind it ..."
        )
        console.print(staircase_text(experiment.staircase(max(STAIRCASE_HOLD_S, 14 * interval_s), interval_s)))
    console.print(
        "gdb has detached; the guest is well: " + ", ".join(f"{rtt:g} ms" for rtt in experiment.baseline(2, interval_s))
    )


def _scene(console: Console, image: Image, ping: StoppedPing) -> RenderableType:
    """Return what a stop shows: the packet, the backtrace, the source."""
    frame = ping.stopped.frames[0]
    parts: list[RenderableType] = []
    if ping.packet:
        age = "" if ping.age_ms is None else f"; sent {ping.age_ms:.1f} ms before"
        parts.append(Text(ping.packet.summary() + age, style="bold"))
    else:
        parts.append(Text(ping.stopped.packet_problem, style="dim"))
    parts.append(Padding(_backtrace(console, ping.stopped), (0, 2)))
    lines = image.source_lines(frame.file, frame.line, around=SHOWN_SOURCE)
    if lines:
        code = "\n".join(text for _, text in lines)
        parts.append(
            Syntax(
                code,
                "c",
                line_numbers=True,
                start_line=lines[0][0],
                highlight_lines={frame.line},
                background_color="default",
            )
        )
    return Group(*parts)


def _backtrace(console: Console, stopped: Stopped) -> Text:
    """Return the backtrace, newest frame first, without inlined frames, and as long as the screen has room."""
    frames = [frame for frame in stopped.frames if not frame.inline]
    room = max(FEWEST_FRAMES, console.height - OTHER_LINES)
    shown = [_frame_line(frame) for frame in frames[:room]]
    if rest := frames[room:]:
        shown.append(Text(f"... {len(rest)} more, down to {rest[-1].function}()", style="dim"))
    return Text("\n").join(shown)


def _frame_line(frame: GdbFrame) -> Text:
    where = f"  {frame.file}:{frame.line}" if frame.file else ""
    return Text.assemble((f"{frame.function}()", "cyan"), (where, "dim"))


def _hold(console: Console, experiment: PingExperiment, ping: StoppedPing) -> None:
    """Show how long the packet has been held, until Enter."""
    started_ns = ping.stopped.at_ns
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            held_s = (time.monotonic_ns() - started_ns) / 1e9
            live.update(Text(f"  held {held_s:6.1f} s    Enter resumes the kernel", style="bold yellow"), refresh=True)
            ready = wait([sys.stdin, experiment.debugger, experiment.lab.guest.pidfd], TICK_S)
            if sys.stdin in ready:
                sys.stdin.readline()
                return
            if ready:
                experiment.stay_stopped(ping, held_s)  # raises the error that says whether gdb or the guest has ended


def _pause(console: Console, text: str) -> None:
    console.print(text)
    read_line()


def _again(console: Console) -> bool:
    console.print("\nEnter holds another one; [bold]s[/bold] and Enter goes on to the staircase.")
    answer = read_line()
    return bool(answer) and not answer.strip().lower().startswith(("s", "q"))


@contextlib.contextmanager
def _one_key_at_a_time() -> Iterator[None]:
    """Do not echo what is typed, because a clock runs on the screen; discard what was typed ahead."""
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)
