"""How long the guest's clock has stood still because gdb had stopped its kernel (image/corrections/stopped.py)."""

import functools
import os
from pathlib import Path

WORD_BYTES = 8
NAME = "os_stopped_ns"


class StoppedClock:
    """The word of the kernel in which gdb keeps that time.

    :param pid: the kernel's process
    :param kernel: its file, with symbols
    """

    def __init__(self, pid: int, kernel: Path) -> None:
        self._path = Path(f"/proc/{pid}/mem")
        self._kernel = kernel

    def read(self) -> int:
        """Return the time in ns; 0 where the kernel is gone."""
        try:
            with self._path.open("rb", 0) as memory:
                return int.from_bytes(os.pread(memory.fileno(), WORD_BYTES, _address(self._kernel)), "little")
        except OSError:
            return 0


@functools.lru_cache(maxsize=8)
def _address(kernel: Path) -> int:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - 60 ms, which most labs can do without

    with kernel.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return int(table.get_symbol_by_name(NAME)[0]["st_value"])
