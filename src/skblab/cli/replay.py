"""``skblab replay``: do a saved run again, and say whether the same came of it."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from skblab import files
from skblab.cli import saving
from skblab.cli.complaints import add_strict
from skblab.errors import UNFIRED

if TYPE_CHECKING:
    from skblab.saved import SavedRun

EXAMPLES = f"""\
examples:
  skblab run --save lost.toml --time virtual -r 'icmp_rcv = drop @2' -- ping -c3 guest
  skblab replay lost.toml
  skblab replay lost.toml --json | jq .same
  skblab hold --save hand.toml -- ping guest            what you decide on the screen, and when
  skblab replay hand.toml --save test_hand.py           as a test for pytest

The file is TOML, to be read and edited: the command, its rules, the decisions about held packets with their times, the
guest ([lab]), and what came of it ([outcome]). What stands in [outcome] is compared; remove what need not be the same.
In virtual time the replay is the same to the byte. In real time the order of the decisions is kept, their times are
about the saved ones, and times in the output are not compared.

The exit status is 1 if something differs. Without [outcome] it is the command's, or {UNFIRED} if a rule never fired or
a decision could not be carried out.
"""

COUNTED = (
    ("went", "packets decided about"), ("complaints", "complaints"), ("unfired", "rules that never fired"),
    ("unedited", "rules whose edit failed"), ("undecided", "decisions not carried out"),
)  # fmt: skip


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="do a saved run again, and show what differs",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=files.typed, metavar="FILE", help="a file that --save has written, or you")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the command's output")
    saving.add_save_option(parser)
    add_strict(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the run; return 1 if its outcome differs."""
    from skblab.saved import SavedRun  # noqa: PLC0415

    saving.check(arguments)
    saved = SavedRun.read(arguments.file)
    image = saved.found_image().name
    if saved.image and image != saved.image:
        print(f"skblab: it was saved on the image {saved.image}, which is not here; this one is {image}, with which it "
              "may be another outcome", file=sys.stderr)  # fmt: skip
    now = saved.run(shown=not arguments.json)
    differences = saved.differences(now)
    if arguments.json:
        fields = {
            "same": not differences if saved.outcome else None, "image": now.image, "saved_image": saved.image,
            "differences": [dataclasses.asdict(one) for one in differences],
            "outcome": dict(now.outcome), "saved": dict(saved.outcome),
        }  # fmt: skip
        print(json.dumps(fields))
    else:
        print(*map(str, differences), *([] if differences else _summary(saved, now)), sep="\n", file=sys.stderr)
    if arguments.save:
        now.write(arguments.save)
        saving.tell(arguments.save)
    return int(bool(differences)) if saved.outcome else _status(now)


def _status(now: "SavedRun") -> int:
    """Return the status of a run that there is nothing to compare with."""
    if "unfired" in now.outcome or "undecided" in now.outcome:
        return UNFIRED
    return int(now.outcome.get("status", 1)) or int("unedited" in now.outcome)


def _summary(saved: "SavedRun", now: "SavedRun") -> Iterator[str]:
    outcome = now.outcome
    parts = [str(outcome["end"])] if "end" in outcome else [f"status {outcome['status']}"]
    parts += [f"{outcome['duration_s']:g} s"] if "duration_s" in outcome else []
    for key, what in COUNTED:
        parts += [f"{what}: {len(outcome[key])}"] if key in outcome else []
    yield ("the outcome is the same: " if saved.outcome else "") + ", ".join(parts)
    if not saved.outcome:
        yield from (f"{one}: never fired" for one in outcome.get("unfired", ()))
        yield from (f"unedited: {one}" for one in outcome.get("unedited", ()))
        yield from outcome.get("undecided", ())
