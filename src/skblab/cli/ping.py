"""``skblab ping``: the experiment, by hand on a terminal, else unattended.

By hand, a screen shows the held pings while the kernel runs on; with ``--walk``, gdb stops the whole kernel.
"""

import argparse
import json
import sys
from dataclasses import asdict

from skblab.cli import hold, saving
from skblab.cli.options import add_lab_options, complete, function_names, lab_from
from skblab.errors import UsageError
from skblab.rule import Rule

DEFAULT_HOLDS = (0.5, 1.0, 2.0)
STAIRCASE_HOLD_S, STAIRCASE_INTERVAL_S = 3.0, 0.2
EXAMPLES = """\
examples:
  skblab ping                              on a terminal: pings held inside the kernel; you decide about each
  skblab ping --walk                       gdb stops the whole kernel; Enter resumes it
  skblab ping --holds 0.5,1,2 --staircase  unattended: three holds, then pings that pile up
  skblab ping --at icmp_echo --holds 1 --json
  skblab ping -c 3                         boot, ping three times, nothing else
  skblab ping --save hand.toml             by hand, and again: skblab replay hand.toml
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ping",
        help="ping a kernel, hold the ping inside it, and decide when it gets its answer",
        description="Boot a guest, ping it, hold the ping at a function of its kernel, and release it: ping's RTT is "
        "the time you held it. On a terminal, a screen shows the held pings while the kernel runs on; with --walk, or "
        "without a terminal, gdb stops the whole kernel instead.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    at = parser.add_argument(
        "--at", default="icmp_rcv", metavar="FUNCTION", help="hold pings at this function (default: %(default)s)"
    )
    complete(at, function_names)
    parser.add_argument(
        "--holds", type=_holds, metavar="S,S,...", help="hold one ping for each of these times, in seconds"
    )
    parser.add_argument("-c", "--count", type=_positive, metavar="N",
                        help="plain pings (default: 3); without --holds and --staircase, send only these")  # fmt: skip
    parser.add_argument("-i", "--interval", type=_seconds, metavar="S",
                        help="seconds between pings (default: 0.2; on the screen: 1)")  # fmt: skip
    parser.add_argument(
        "--staircase", action="store_true", help="after the holds, hold one ping so long that others pile up behind it"
    )
    parser.add_argument("--walk", action="store_true",
                        help="walk through the experiment under gdb on a terminal, step by step")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    saving.add_save_option(parser)
    add_lab_options(parser)
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a time between 0 and 3600 s")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of pings")
    return value


def _holds(text: str) -> tuple[float, ...]:
    try:
        return tuple(_seconds(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seconds like 0.5,1,2") from None


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment and print its result."""
    from skblab.experiments import ping_report, ping_run  # noqa: PLC0415

    unattended = arguments.json or arguments.holds or arguments.staircase or arguments.count
    plain = arguments.count and not (arguments.holds or arguments.staircase)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if arguments.walk and (unattended or not on_terminal):
        raise UsageError("--walk needs a person at a terminal", hint="skblab ping --holds 0.5,1,2 runs unattended")
    if arguments.walk and arguments.time == "virtual":
        raise UsageError("--walk is for a person, in real time", hint="--time virtual --holds 0.5,1,2")
    if arguments.walk and arguments.save:
        raise UsageError("what a person does under gdb is not saved", hint="--save without --walk: on the screen")
    saving.check(arguments)
    if not unattended and on_terminal and not arguments.walk and arguments.time == "real":
        rule = Rule.parse_hold(f"{arguments.at} if icmp[icmptype] == icmp-echo")
        words = ["ping", "-i", f"{arguments.interval or 1:g}", "guest"]
        return hold.show(lab_from(arguments), [rule], words, arguments.save)
    if arguments.walk:
        from skblab.cli import ping_walk  # noqa: PLC0415

        with lab_from(arguments) as lab:
            ping_walk.walk(lab, arguments.at, arguments.interval or STAIRCASE_INTERVAL_S)
        return 0
    interval_s = arguments.interval or STAIRCASE_INTERVAL_S
    plan = ping_run.Plan(
        function=arguments.at,
        holds_s=() if plain else arguments.holds or DEFAULT_HOLDS,
        count=arguments.count or 3,
        interval_s=interval_s,
        staircase_s=max(STAIRCASE_HOLD_S, 14 * interval_s) if arguments.staircase else None,
    )
    progress = _Progress(quiet=not sys.stderr.isatty())
    lab = lab_from(arguments)
    if arguments.save:
        progress("the run that is saved")
        plan.as_run(lab.spec).run().write(arguments.save)
    with lab:
        result = ping_run.run(lab, plan, progress)
    progress.done()
    if arguments.json:
        print(json.dumps(asdict(result) | {"complaints": [one.fields() for one in lab.new_complaints]}))
    else:
        ping_report.print_report(result)
    if arguments.save:
        saving.tell(arguments.save)
    return 0


class _Progress:
    """Prints one line on the terminal: what the command waits for."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def done(self) -> None:
        """Wipe the line."""
        self("")
