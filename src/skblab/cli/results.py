"""What a command finds, as JSON lines in a file of its own: whatever its client prints, they are whole."""

import argparse
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from skblab import files

HERE = "-"  # standard output
DESCRIPTOR = re.compile(r"/dev/fd/(\d{1,9})")  # used as it is: to open it again would begin its file anew


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that names the file."""
    help_text = f"write {what} to FILE as JSON lines; a pipe or /dev/fd/3 will do, - is standard output"
    parser.add_argument("--json", metavar="FILE", help=help_text)


class JsonLines:
    """A file of JSON lines: each is written at once, by any thread. Without a file, none is."""

    def __init__(self, path: str | None) -> None:
        """Begin the file.

        :raises CannotWrite: it cannot be written, or somebody else writes it
        """
        self._path = path
        self._lock = threading.Lock()
        if path is None:
            return
        descriptor = DESCRIPTOR.fullmatch("/dev/fd/1" if path == HERE else path)
        try:
            self._fd = os.dup(int(descriptor[1])) if descriptor else files.to_write(Path(path), os.O_WRONLY)
        except OSError as error:
            raise files.cannot_write(path, error) from error

    def say(self, fields: dict[str, Any]) -> None:
        """Write one object.

        :raises CannotWrite: it is refused
        """
        if self._path is None:
            return
        with self._lock:
            left = memoryview(json.dumps(fields).encode() + b"\n")
            try:
                while left:
                    left = left[os.write(self._fd, left) :]
            except OSError as error:
                raise files.cannot_write(self._path, error) from error
