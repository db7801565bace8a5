"""``skblab trace``: follow packets through the kernel's functions while a command runs, and print their journeys."""

import argparse
import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli.live import shown_live
from skblab.cli.options import OfNewLab, add_guest_options, add_lab_options, complete, function_names, lab_from
from skblab.cli.progress import working
from skblab.cli.results import HERE, JsonLines, add_json_option
from skblab.cli.rules import add_allow_unfired, add_rule_options, rules_from, status_of
from skblab.cli.show import Printer, add_output_options, find, losses, show
from skblab.cli.stops import StopsShown
from skblab.errors import UNFIRED, CannotWrite, TraceError, UsageError
from skblab.session import Outcome, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skblab.guest.complaint import Complaint
    from skblab.trace.model import Trace
    from skblab.trace.tracer import Tracer

EXAMPLES = f"""\
examples:
  skblab trace -- ping -c1 guest               the journey of a ping and its reply, call by call
  skblab trace icmp -- ping -c3 guest          only packets that match a filter, and those that they cause
  skblab trace 'icmp where skb->dev->name == "vec0"' -- ping -c3 guest       and conditions on a struct sk_buff
  skblab trace -p 'tcp_*' -p 'net/ipv4/ip_*.c' --root host -g 'python3 -m http.server 80' \\
               -o run.skblab 'tcp port 80' -- curl -s http://guest/
  skblab trace --field 'skb->dev->name' --field 'skb->priority' --table -- ping -c1 guest
  skblab trace -p 'ip_*' --calls 'fib_*' -- ping -c1 guest
  skblab trace -r 'icmp_rcv = delay 50ms' icmp -- ping -c1 guest        what a rule does, and what follows
  skblab trace --lab web 'tcp port 80'         all such packets of a lab that is up, until Ctrl-C
  skblab trace -o run.skblab --lab web -- curl -s http://guest/ ; skblab export run.skblab --html run.html

A packet is followed from the first function at which it matches the filter until it is freed, even if its headers
change; so are the packets that it causes and those that are made of it. A journey is printed when it has ended. The
command runs on the host side; skblab exits with its status, but with {UNFIRED} if a rule never fired
(--allow-unfired), or with 1 if the command's status is 0 and an edit has failed. Without a command, packets of --lab
are followed until Ctrl-C.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "trace",
        help="follow packets through the kernel: every function, its time, and why a packet was dropped",
        usage="skblab trace [OPTION]... [FILTER] [-- COMMAND [ARGUMENT]...]",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "filter",
        nargs="?",
        default="",
        metavar="FILTER",
        help="a pcap-filter(7) expression, and conditions: packets to follow",
    )
    probes = parser.add_argument("-p", "--probe", action="append", default=[], metavar="PATTERN", dest="patterns",
                                 help="functions to follow: tcp_* or net/ipv4/*.c (default: all that take an sk_buff); "
                                 "may be given several times")  # fmt: skip
    complete(probes, function_names)
    calls = parser.add_argument("--calls", action="append", default=[], metavar="PATTERN",
                                help="functions that take no sk_buff, too, if called inside a packet's call: fib_*; "
                                "may be given several times")  # fmt: skip
    complete(calls, function_names)
    parser.add_argument("--field", action="append", default=[], metavar="EXPR", dest="fields",
                        help="record a member of each packet at each step: skb->dev->name; "
                        "may be given several times")  # fmt: skip
    parser.add_argument("--no-returns", dest="returns", action="store_false",
                        help="record no returns: half the cost, but no durations, callers or causes")  # fmt: skip
    add_rule_options(parser, "a rule, as for skblab run, whose verdicts are in the trace; may be given several times")
    add_allow_unfired(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write the trace to FILE, for show, export and diff"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what was lost")
    parser.add_argument("--ring", action=OfNewLab, type=int, default=64, metavar="MIB",
                        help="memory between kernel and trace file, a power of two (default: %(default)s)")  # fmt: skip
    add_output_options(parser)
    add_json_option(parser, "the trace")
    add_lab_options(parser)
    add_guest_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trace while the command runs; return its status."""
    _check(arguments)
    rules = rules_from(arguments)
    json_lines = JsonLines(arguments.json)
    with lab_from(arguments) as lab:
        tracer = lab.trace(
            arguments.patterns,
            calls=arguments.calls,
            filter=arguments.filter,
            fields=arguments.fields,
            returns=arguments.returns,
            to=arguments.output,
            about={"command": arguments.client},
        )
        with tracer:
            if tracer.refused:
                print(f"{len(tracer.refused)} functions cannot be probed: {', '.join(tracer.refused)}", file=sys.stderr)
            if not arguments.client:
                print(f"following {len(tracer.probes)} functions; Ctrl-C ends the trace", file=sys.stderr)
            printer = Printer(arguments)
            live = not arguments.quiet and arguments.json != HERE
            shown = shown_live(tracer, printer) if live else contextlib.nullcontext()
            with Session(lab, rules, StopsShown(sys.stderr)) as session, shown:
                outcome = session.run(arguments.client, stdin=None)
                if not arguments.client:
                    print(file=sys.stderr)  # behind ^C
            status = status_of(outcome, arguments)
            _print_unmet(outcome)
            failed = _end(tracer, status=status, link=asdict(outcome.link))
        if arguments.quiet and arguments.output and not (arguments.json or failed):
            print(f"events lost: {tracer.losses()['lost']}", file=sys.stderr)
            return status
        trace = _written(tracer, failed)
    if arguments.json:
        _write(json_lines, trace, lab.new_complaints)
    if live:
        show(trace, find(trace), arguments, printer)
    else:
        print(losses(trace), file=sys.stderr)
    if failed:
        raise failed
    return status


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.client and not arguments.lab:
        raise UsageError(
            "no command that sends packets",
            hint="put it after --: skblab trace -- ping -c1 guest; or --lab LAB, and Ctrl-C ends the trace",
        )
    if arguments.json and not (arguments.json == HERE or arguments.filter or {".", "/"} & {*arguments.json}):
        raise UsageError(
            f"is {arguments.json} a file, or the filter?", found="--json takes a file",
            hint=f"--json run.json {arguments.json}, or --json ./{arguments.json}",
        )  # fmt: skip


def _write(json_lines: JsonLines, trace: "Trace", complaints: "Sequence[Complaint]") -> None:
    from skblab.view.lines import objects  # noqa: PLC0415

    for one in objects(trace):
        json_lines.write(one)
    for complaint in complaints:
        json_lines.write({"type": "complaint"} | asdict(complaint))


def _print_unmet(outcome: Outcome) -> None:
    """Print which rules never fired, and which edits failed."""
    for rule in outcome.rules:
        if rule.unedited:
            print(f"{rule.rule}: {rule.unedited} unedited; {rule.why_unedited}", file=sys.stderr)
    for unfired in outcome.unfired:
        print(f"{unfired}: never fired", file=sys.stderr)


def _end(tracer: "Tracer", **fields: object) -> CannotWrite | None:
    """End the trace; return the error if it is not whole, which is raised after the written part is printed."""
    try:
        tracer.end(**fields)
    except CannotWrite as error:
        return error
    return None


def _written(tracer: "Tracer", failed: CannotWrite | None) -> "Trace":
    try:
        with working("reading the trace") as done:
            return tracer.trace(done)
    except TraceError as nothing:  # not even the first chunk is there
        raise failed or nothing from None
