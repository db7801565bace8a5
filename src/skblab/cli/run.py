"""``skblab run``: put rules in force, run a command against the guest, say what became of each packet."""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from skblab.agent.abi import Hit
from skblab.agent.streams import Running
from skblab.cli.options import add_guest_options, add_lab_options, lab_from
from skblab.cli.results import JsonLines, add_json_option
from skblab.cli.rules import add_rule_options, in_force, rules_from
from skblab.errors import GuestLost
from skblab.guest.losses import Losses
from skblab.guest.panic import GuestPanicked
from skblab.packet import Packet
from skblab.rule import Rule

EXAMPLES = """\
examples:
  skblab run -r 'icmp_rcv = delay 300ms @2' -- ping -c3 -i0.4 guest
  skblab run -r 'ip_rcv = drop if icmp[icmptype] == icmp-echo and icmp[6:2] == 3' -- ping -c5 guest
  skblab run -r 'icmp_rcv = hold 8 release reverse' -- ping -c8 -i0.2 guest
  skblab run -r 'tcp_v4_rcv = drop @1 if tcp[tcpflags] & tcp-syn != 0' \\
             --root host -g 'python3 -m http.server 80' -- curl -4 -s http://guest/
  skblab run -r 'icmp_rcv = edit ip.ttl=3' -r 'ip_output = trace' --json run.json -- ping -c1 guest
  skblab run -f faults.rules --series 6.1 -- ./my-test guest     rules from a file, one a line

a rule is FUNCTION = VERDICT [@OCCURRENCE] [if FILTER]:
  verdicts     accept, trace, hold [N] [release fifo|reverse|random], delay TIME [+-JITTER], drop [REASON],
               duplicate [N], edit FIELD=VALUE[,FIELD=VALUE], stop
  occurrences  @3  @2-5  @3-  @every 10  @random 10% [seed N]
  filters      pcap-filter(7), as in tcpdump

The command runs on the host side of the link, where guest and host are names; its exit status is skblab's, or 1
where that is 0 and an edit has failed.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="hold, delay, drop, copy, edit or trace packets at any function while a command runs",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_rule_options(parser, "a rule; of several at one function the first that matches wins")
    add_json_option(parser, "what happens")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the summary alone")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run on the host side, after --")
    add_lab_options(parser)
    add_guest_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command under the rules; return its status."""
    rules = rules_from(arguments)
    json_lines = JsonLines(arguments.json)
    teller = _Teller(sys.stderr, json_lines, quiet=arguments.quiet)
    with lab_from(arguments) as lab:
        teller.started_ns = time.monotonic_ns()
        events = arguments.hearing.as_they_come(lab, json_lines.say) if arguments.json else contextlib.nullcontext()
        with events, in_force(lab, rules, lambda rule: teller.for_rule(rule, lab.agent.channel.host_ns)) as force:
            try:
                status = force.run(arguments.command)
            except GuestLost:
                teller.panicked(lab.guest.panic())
                raise
            force.close()
            status = force.exit_status(status)
            teller.summary(force.running, lab.agent.channel.lost, lab.link_losses, status)
    return status


class _Teller:
    """Says what happens, one line a packet: to people on *out*, and to programs as JSON lines."""

    def __init__(self, out: TextIO, json_lines: JsonLines, *, quiet: bool) -> None:
        self._out = out
        self._json_lines = json_lines
        self._quiet = quiet
        self._lock = threading.Lock()
        self.started_ns = 0

    def for_rule(self, rule: Rule, host_ns: Callable[[int], int]) -> Callable[[Hit, Packet, str], None]:
        """Return what is to be called for each packet of a rule."""

        def told(hit: Hit, packet: Packet, done: str) -> None:
            at_s = (host_ns(hit.at_ns) - self.started_ns) / 1e9
            fields = {
                "event": "hit",
                "time_s": round(at_s, 6),
                "function": rule.function,
                "occurrence": hit.occurrence,
                "packet": packet.summary(),
                "verdict": done,
                "skb": f"{hit.skb:#x}",
                "len": hit.length,
            }
            self._json_lines.say(fields)
            if not self._quiet:
                self._print(f"{at_s:10.6f}  {rule.function:16} #{hit.occurrence:<4} {done:12} {packet.summary()}")

        return told

    def panicked(self, event: GuestPanicked | None) -> None:
        """Tell a program of the kernel's panic; a person reads it in the error."""
        if event:
            frames = [asdict(frame) for frame in event.frames]
            self._json_lines.say({"event": "panic", "line": event.line, "backtrace": frames})

    def summary(self, running: list[Running], lost: int, link: Losses, status: int) -> None:
        """Say what became of all packets."""
        for one in running:
            counts = asdict(one.counts) | ({"unedited": one.unedited} if one.armed.rule.verdict == "edit" else {})
            shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count or name == "arrived")
            self._json_lines.say({"event": "rule", "rule": str(one.armed.rule), **counts})
            self._print("\n  ".join([f"{one.armed.rule}: {shown}", *one.counts.caveats]))
        self._json_lines.say({"event": "end", "lost": lost, "link": asdict(link), "status": status})
        self._print(f"events lost: {lost}")

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, file=self._out, flush=True)
