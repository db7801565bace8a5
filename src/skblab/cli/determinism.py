"""``skblab check-determinism``: run a command twice in virtual time, and show the first difference."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest

from skblab.cli.options import add_guest_options, add_lab_options, lab_from
from skblab.cli.rules import add_rule_options, rules_from
from skblab.errors import UsageError
from skblab.event import Hit
from skblab.rule import Rule
from skblab.session import Session, Watcher

EXAMPLES = """\
examples:
  skblab check-determinism -- ping -c3 guest
  skblab check-determinism --seed 7 --root host -g 'cd /; exec python3 -m http.server 80' -- curl -s guest/etc/passwd
  skblab check-determinism --root host -- ./my-test guest

The two runs have the same image, seed and rules. What is compared: the command's status, output and duration, each
packet that a rule matched or that entered ip_rcv() or ipv6_rcv(), and the kernel's log. The exit status is 1 if
something differs.
"""
EVERYWHERE = ("ip_rcv = trace", "ipv6_rcv = trace")
SHOWN = 100


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check-determinism",
        help="run a command twice in virtual time, and show the first difference",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_rule_options(parser, "a rule; may be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run, time="virtual")


class _Hits(Watcher):
    """Keeps a line for each packet."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def hit(self, hit: Hit) -> None:
        """Note a packet."""
        data = hit.packet.data.hex()
        self.lines.append(f"{hit.at_ns / 1e9:.9f} {hit.function}() {hit.verdict}: {hit.summary()} {data}")


def run(arguments: argparse.Namespace) -> int:
    """Run twice and compare; return 1 if something differs."""
    if arguments.time == "real":
        raise UsageError("no two runs in real time are the same", hint="without --time real")
    rules = rules_from(arguments) + [Rule.parse(rule) for rule in EVERYWHERE]
    first, second = (_once(arguments, rules) for _ in range(2))
    found = next(_differences(first, second), None)
    if arguments.json:
        counts = {name: len(lines) for name, lines in first.items()}
        print(json.dumps({"same": found is None, "compared": counts, "difference": found}))
    elif found:
        print(f"the runs differ in {found['what']}, line {found['line']}:\n  {found['first']}\n  {found['second']}")
    else:
        print("the runs are the same: " + ", ".join(f"{name} {len(lines)}" for name, lines in first.items()))
    return int(found is not None)


def _once(arguments: argparse.Namespace, rules: Sequence[Rule]) -> dict[str, list[str]]:
    """Return what came of one run, as lines."""
    hits = _Hits()
    with lab_from(arguments) as lab:
        with Session(lab, rules, hits) as session:
            outcome = session.run(arguments.command, capture=True)
        log = lab.console.text()
    out, err = outcome.output
    counts = [f"{one.rule}: {asdict(one.counts)}" for one in outcome.rules]
    return {
        "packets": hits.lines,
        "lines of output": out.splitlines(),
        "lines of standard error": err.splitlines(),
        "lines of the kernel's log": log.splitlines(),
        "results": [f"status {outcome.status}", f"{outcome.duration_s:.9f} s", *counts],
    }


def _differences(first: dict[str, list[str]], second: dict[str, list[str]]) -> Iterator[dict[str, object]]:
    for what, lines in first.items():
        for number, (one, other) in enumerate(zip_longest(lines, second[what]), 1):
            if one != other:
                yield {"what": what, "line": number, "first": _cut(one, other), "second": _cut(other, one)}


def _cut(text: str | None, other: str | None) -> str:
    """Return the part of a line in which it begins to differ from another."""
    if text is None:
        return "(nothing)"
    same = next((at for at, (a, b) in enumerate(zip(text, other or "", strict=False)) if a != b), 0)
    begin = max(same - SHOWN // 2, 0)
    return ("... " if begin else "") + text[begin : begin + SHOWN]
