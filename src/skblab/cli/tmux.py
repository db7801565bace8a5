"""The consoles of a guest as windows of a tmux session."""

import os
import sys

from skblab.errors import SkblabError
from skblab.host import process

PROGRAM = (sys.executable, "-m", "skblab")


def show(lab: str, consoles: int) -> int:
    """Make the session unless it exists, and attach to it; without a terminal, print how to."""
    session = f"skblab-{lab}".replace(".", "_")  # tmux reads a dot as the separator of a pane
    if process.run(["tmux", "has-session", "-t", f"={session}"]).returncode:
        for number in range(1, consoles + 1):
            where = ["new-window", "-t", f"={session}:"] if number > 1 else ["new-session", "-s", session]
            console = [*PROGRAM, "console", lab, str(number)]
            done = process.run(["tmux", *where, "-d", "-n", f"console {number}", *console])
            if done.returncode:
                raise SkblabError("tmux cannot show the consoles", found=done.stderr.strip())
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(f"tmux attach -t {session}")
        return 0
    how = "switch-client" if os.environ.get("TMUX") else "attach-session"
    return process.start(["tmux", how, "-t", f"={session}"], stdin=None, stdout=None).wait()
