"""A command's results as JSON lines in a file of their own, so that the client's output does not mix with them."""

import argparse
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from skblab import files

HERE = "-"  # standard output
DESCRIPTOR = re.compile(r"/dev/fd/(\d{1,9})")  # used as it is: opening it again would truncate its file


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that names the file."""
    help_text = f"write {what} to FILE as JSON lines; FILE may be a pipe, /dev/fd/3, or - for standard output"
    parser.add_argument("--json", metavar="FILE", help=help_text)


class JsonLines:
    """A file of JSON lines, each written at once, from any thread. Without a path, nothing is written."""

    def __init__(self, path: str | None) -> None:
        """Open the file.

        :raises CannotWrite: the file cannot be written, or another process writes it
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

    def write(self, fields: dict[str, Any]) -> None:
        """Write one object.

        :raises CannotWrite: the write is refused
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
