"""``skblab probes``: the functions that can be probed, and the verdicts that are sound there."""

import argparse
import json

from skblab.agent.contracts import pointed_to
from skblab.agent.functions import packet_argument, sound_verdicts
from skblab.agent.probes import choose
from skblab.cli.options import add_image_options, chosen_image, complete, function_names
from skblab.image.index import Function
from skblab.verdict import STOP, VERDICTS

EXAMPLES = """\
examples:
  skblab probes 'icmp_*'                       functions by name
  skblab probes 'net/ipv4/*.c'                 functions by file
  skblab probes --calls 'fib_*'                functions that take no packet, too
  skblab probes --json | jq -r 'select(.verdicts | index("hold")) | .name'
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "probes",
        help="list the functions that can be probed, and which verdicts are sound there",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pattern = parser.add_argument("patterns", nargs="*", metavar="PATTERN",
                                  help="icmp_* or net/ipv4/*.c (default: all that take an sk_buff)")  # fmt: skip
    complete(pattern, function_names)
    parser.add_argument("--calls", action="append", default=[], metavar="PATTERN",
                        help="functions that take no sk_buff, too: fib_*; may be given several times")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    add_image_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List the functions."""
    image = chosen_image(arguments)
    for function in sorted(choose(image, arguments.patterns, arguments.calls), key=lambda one: (one.file, one.line)):
        verdicts, members = sound_verdicts(function, image), pointed_to(function, image)
        if arguments.json:
            print(json.dumps({"name": function.name, "file": function.file, "line": function.line,
                              "signature": function.signature, "verdicts": verdicts, "members": members}))  # fmt: skip
        else:
            what = ": ".join(filter(None, (_what(function, verdicts), ", ".join(members))))
            print(f"{function.signature}\n    {function.file}:{function.line}  {what}")
    return 0


def _what(function: Function, verdicts: list[str]) -> str:
    if len(verdicts) == len(VERDICTS):
        return "every verdict"
    is_only_followed = packet_argument(function) and STOP not in verdicts  # rules have no packet to look at
    return ", ".join(["followed"] * bool(is_only_followed) + (verdicts or ["no rules"]))
