"""``skblab doctor``: what this machine allows and lacks, with a hint for each lack."""

import argparse
import json
from dataclasses import asdict

from skblab.errors import SkblabError
from skblab.host.doctor import Finding, examine
from skblab.image.store import find_image


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="print what this machine allows and lacks, and what to do about it")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 3 if no lab can run."""
    findings = [*examine(), _image()]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(
                f"{'ok  ' if finding.good else 'NO  ' if finding.needed else 'no  '}{finding.what:12} {finding.found}"
            )
            if not finding.good:
                print(f"                 {finding.hint}")
    return 3 if any(finding.needed and not finding.good for finding in findings) else 0


def _image() -> Finding:
    try:
        return Finding("image", good=True, found=find_image().name)
    except SkblabError as error:
        return Finding("image", good=False, found=error.what, hint=error.hint)
