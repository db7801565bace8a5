"""A real terminal of some size with a program in it, and what it shows."""

import re
import time

from skblab.host import process

WITHIN_S = 20.0


class Tmux:
    """A terminal in tmux; when its program has ended, it shows ``status`` and the exit status."""

    def __init__(self, directory: str, columns: int, lines: int, *words: str) -> None:
        # pytest may set COLUMNS and LINES, and programs prefer them to the terminal's size.
        self._argv = ["env", "-u", "COLUMNS", "-u", "LINES", "tmux", "-S", f"{directory}/tmux", "-f", "/dev/null"]
        keep = "sh -c '\"$@\"; echo status $?; exec sleep 1000' --"
        self._do("new-session", "-d", "-x", str(columns), "-y", str(lines), " ".join([keep, *words]))

    def _do(self, *words: str) -> str:
        done = process.run([*self._argv, *words], timeout_s=10)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self._do("kill-server")

    def types(self, *keys: str) -> None:
        self._do("send-keys", *keys)

    def clicks(self, column: int, line: int) -> None:
        """Press and release the mouse's first button, from 1, as a terminal sends it (xterm's SGR mode, 1006)."""
        for last in "Mm":
            report = f"\x1b[<0;{column};{line}{last}".encode()
            self._do("send-keys", "-H", *(f"{byte:02x}" for byte in report))

    def resize(self, columns: int, lines: int) -> None:
        self._do("resize-window", "-x", str(columns), "-y", str(lines))

    def screen(self, *, colours: bool = False) -> str:
        return self._do("capture-pane", "-p", *(["-e"] if colours else []))

    def place_of(self, words: str) -> tuple[int, int]:
        """Return the column and the line, from 1, where the screen shows some words."""
        lines = enumerate(self.screen().splitlines(), 1)
        return next((line.index(words) + 1, at) for at, line in lines if words in line)

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until the screen matches, by asking tmux again and again: it has no event for that."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            screen = self.screen()
            if found := re.search(pattern, screen, re.DOTALL):
                return found
            assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {pattern}\n{screen}"
