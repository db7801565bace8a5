"""``skblab run``: arm rules, run a command against the guest, and print what happens to each packet."""

import argparse
import contextlib
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import TextIO

from skblab.cli import saving
from skblab.cli.complaints import STATUS
from skblab.cli.options import add_guest_options, add_lab_options, lab_from
from skblab.cli.results import JsonLines, add_json_option
from skblab.cli.rules import add_allow_unfired, add_rule_options, rules_from, status_of
from skblab.cli.stops import StopsShown
from skblab.errors import UNFIRED, GuestLost
from skblab.event import Hit
from skblab.guest.panic import GuestPanicked
from skblab.session import Outcome, Session
from skblab.verdict import table

EXAMPLES = f"""\
examples:
  skblab run -r 'icmp_rcv = delay 300ms @2' -- ping -c3 -i0.4 guest
  skblab run -r 'ip_rcv = drop if icmp[icmptype] == icmp-echo and icmp[6:2] == 3' -- ping -c5 guest
  skblab run -r 'icmp_rcv = hold 8 release reverse' -- ping -c8 -i0.2 guest
  skblab run -r 'tcp_v4_rcv = drop @1 if tcp[tcpflags] & tcp-syn != 0' \\
             --root host -g 'python3 -m http.server 80' -- curl -4 -s http://guest/
  skblab run -r 'icmp_rcv = edit ip.ttl=3' -r 'ip_output = trace' --json run.json -- ping -c1 guest
  skblab run --time virtual -r 'veth_xmit = drop @2 if icmp where skb->dev->name == "skb0"' -- ping -c3 guest
  skblab run --time virtual --save lost.toml -r 'icmp_rcv = drop @2' -- ping -c3 guest; skblab replay lost.toml
  skblab run -f faults.rules --series 6.1 -- ./my-test guest     rules from a file, one a line

a rule is FUNCTION = VERDICT [@OCCURRENCE] [if FILTER] [inside FUNCTION [if FILTER]]:
  occurrences  @3  @2-5  @3-  @every 10  @random 10% [seed N]
  filters      pcap-filter(7), as in tcpdump; where skb->mark == 7 and skb->dev->name != "vec0"
  inside       only while a call of that function is running: __alloc_skb = return NULL @1 inside tcp_v4_rcv

verdicts: what happens to the packet
{table()}

The command runs on the host side of the link, where guest and host are names. skblab exits with its status, but with
{UNFIRED} if a rule never fired, because then the run has not tested what the rule is for (--allow-unfired);
{STATUS} if the guest's kernel complained (--no-strict); 1 if the command's status is 0 and an edit has failed.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="hold, delay, drop, copy, edit or trace packets at any function while a command runs",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_rule_options(parser, "a rule; the first one that matches at a function wins; may be given several times")
    add_allow_unfired(parser)
    add_json_option(parser, "events and results")
    saving.add_save_option(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the summary")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser)
    add_guest_options(parser)
    parser.add_argument("--no-strict", action="store_false", dest="strict",
                        help=f"do not exit with status {STATUS} if the guest's kernel complained")  # fmt: skip
    parser.set_defaults(run=run, strict=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command under the rules; return its status."""
    saving.check(arguments)
    rules = saving.pinned(rules_from(arguments), arguments)
    save, stdin = arguments.save, subprocess.DEVNULL if arguments.save else None  # a replay has nothing to read
    json_lines = JsonLines(arguments.json)
    reporter = _Reporter(sys.stderr, json_lines, quiet=arguments.quiet)
    with lab_from(arguments) as lab:
        reporter.started_ns = lab.guest.clock.monotonic_ns
        events = arguments.hearing.as_they_come(lab, json_lines.write) if arguments.json else contextlib.nullcontext()
        with events, Session(lab, rules, reporter) as session:
            try:
                outcome = session.run(arguments.command, stdin=stdin, capture=bool(save), shown=True)
            except GuestLost as error:
                reporter.panicked(lab.guest.panic())
                if save:
                    session.save(save, end=error.what)
                raise
            status = status_of(outcome, arguments)
            reporter.summary(outcome, STATUS if arguments.strict and outcome.complaints else status)
            if save:
                session.save(save)
                saving.tell(save)
    return status


class _Reporter(StopsShown):
    """Prints what happens, one line a packet: for people on *out*, and for programs as JSON lines."""

    def __init__(self, out: TextIO, json_lines: JsonLines, *, quiet: bool) -> None:
        super().__init__(out)
        self._json_lines = json_lines
        self._quiet = quiet
        self._lock = threading.Lock()
        self.started_ns = 0

    def hit(self, hit: Hit) -> None:
        """Print one line for a packet."""
        at_s = (hit.at_ns - self.started_ns) / 1e9
        fields = {
            "event": "hit",
            "time_s": round(at_s, 6),
            "function": hit.function,
            "occurrence": hit.occurrence,
            "packet": hit.packet.summary() if hit.skb else "",
            "verdict": hit.verdict,
            "skb": f"{hit.skb:#x}",
            "len": hit.length_bytes,
            **({} if hit.skb else {"caller": hit.caller}),
        }
        self._json_lines.write(fields)
        if not self._quiet:
            self._print(f"{at_s:10.6f}  {hit.function:16} #{hit.occurrence:<4} {hit.verdict:12} {hit.summary()}")

    def panicked(self, event: GuestPanicked | None) -> None:
        """Write the kernel's panic as a JSON line; a person reads it in the error."""
        if event:
            frames = [asdict(frame) for frame in event.frames]
            self._json_lines.write({"event": "panic", "line": event.line, "backtrace": frames})

    def summary(self, outcome: Outcome, status: int) -> None:
        """Print the counts of each rule, and the end of the run, which exits with a status."""
        for one in outcome.rules:
            self._json_lines.write({"event": "rule", "rule": str(one.rule), **one.named_counts(), "fired": one.fired})
            self._print("\n  ".join(one.lines()))
        link = asdict(outcome.link)
        end = {"event": "end", "lost": outcome.events_lost, "link": link, "status": status}
        self._json_lines.write(end)
        self._print(f"events lost: {outcome.events_lost}")

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, file=self._out, flush=True)
