"""Unwind a stack: from its words and their offsets to a backtrace, by the kernel's call frame information.

.eh_frame gives for every instruction the distance from the stack pointer to the caller's frame (DWARF 5, section 6.4).
It is read once per image, and kept there as two sorted arrays. A backtrace ends where a signal interrupted the kernel.
"""

import array
import bisect
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import BuildFailed, ImageDamaged
from skblab.host import process
from skblab.image.image import Image, digest_file
from skblab.image.module import keep

TABLE = "unwind-1.bin"
UNKNOWN = 0  # the frame is not relative to the stack pointer: the function moves it while it runs
# readelf's output for .eh_frame: a common entry (CIE), a function's entry (FDE), a row of its table.
COMMON = re.compile(r"([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ CIE ")
FUNCTION = re.compile(
    r"[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE cie=(?P<common>[0-9a-f]+) pc=(?P<start>[0-9a-f]+)\.\.(?P<end>[0-9a-f]+)"
)
ROW = re.compile(r"([0-9a-f]{16}) (?:rsp\+(\d+)|\S+)")
TIMEOUT_S = 120.0
WORD_BYTES = 8
ROW_BYTES = 8  # of the table: first address and size
SOURCE_PREFIX = "/skblab/"

# A thread's first functions, which have no caller (arch/um/kernel/process.c copy_thread()).
OUTERMOST = ("new_thread_handler", "fork_handler")


@dataclass(frozen=True)
class Frame:
    """One call frame. ``file`` is relative to the kernel's source; "" without debug info.

    ``inlined``: the compiler has inlined this function into the next frame's.
    """

    function: str
    file: str
    line: int
    inlined: bool = False

    def __str__(self) -> str:
        """Return it as ``function()  file:line``."""
        return f"{self.function}()" + (f"  {self.file}:{self.line}" if self.file else "")


class Unwinder:
    """Backtraces through one image's kernel."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._lines: dict[int, tuple[Frame, ...]] = {}
        file = ensure_table(image.path, image.kernel)
        content = file.read_bytes()
        if not content or len(content) % ROW_BYTES:
            raise ImageDamaged(
                f"image {image.name} is damaged: {TABLE}", found=f"{len(content)} bytes",
                hint=f"rm {file}   (it is made again)",
            )  # fmt: skip
        table = array.array("I", content)
        half = len(table) // 2
        self._starts, self._sizes = table[:half], table[half:]

    def backtrace(self, function: str, stack: Iterable[tuple[int, int]]) -> tuple[Frame, ...]:
        """Return the frames from a probed function to the end of its stack, inlined ones too, as gdb does.

        :param stack: pairs (offset in bytes from the function's return address, word), sorted by offset: ``Hit.stack``
        """
        entered = self._image.functions.lookup(function)
        first = Frame(function, entered.file, entered.line) if entered else Frame(function, "", 0)
        returns = list(self._returns(list(stack)))
        self._find_lines(returns)
        frames = [first, *(frame for address in returns for frame in self._lines[address])]
        end = next((at for at, frame in enumerate(frames, 1) if frame.function in OUTERMOST), None)
        return tuple(frames[:end])

    def callers(self, addresses: Iterable[int]) -> dict[int, tuple[Frame, ...]]:
        """Return the source places of calls by return address, each from the innermost inlined function outwards."""
        wanted = list(addresses)
        self._find_lines(wanted)
        return {address: self._lines[address] for address in wanted}

    def _returns(self, stack: list[tuple[int, int]]) -> Iterable[int]:
        """Yield the return addresses among a stack's words."""
        word_at = dict(stack)
        offset: int | None = 0
        while offset is not None and offset in word_at:
            address = word_at[offset]
            yield address
            size = self._frame_bytes(address - 1)
            offset = self._past_unknown(stack, offset) if size == UNKNOWN else offset + size

    def _past_unknown(self, stack: list[tuple[int, int]], offset: int) -> int | None:
        """Return the offset of the return address past a frame of unknown size: it leads farthest up the stack.

        Modules have no unwind table. Stale words of finished calls do not lead as far.
        """
        reach: dict[int, int] = {}
        best, farthest = None, 0
        for at, word in reversed(stack):
            if at <= offset:
                break
            size = self._frame_bytes(word - 1)
            reach[at] = reach.get(at + size, at + size) if size != UNKNOWN else farthest
            if size != UNKNOWN and reach[at] >= farthest:
                best, farthest = at, reach[at]
        return best

    def _frame_bytes(self, address: int) -> int:
        """Return the distance from the stack pointer to the caller's frame at an instruction, or UNKNOWN."""
        place = bisect.bisect_right(self._starts, address) - 1 if address < 1 << 32 else -1
        return self._sizes[place] if place >= 0 else UNKNOWN

    def _find_lines(self, returns: list[int]) -> None:
        """Look up the calls' source places by addr2line: one process for all new ones."""
        new = sorted({address for address in returns if address not in self._lines})
        if not new:
            return
        argv: list[process.Argument] = ["addr2line", "-a", "-i", "-f", "-e", self._image.kernel]
        done = process.run([*argv, *(hex(address - 1) for address in new)], timeout_s=30)
        if done.returncode:
            raise BuildFailed("addr2line cannot read the kernel", found=done.stderr.strip())
        for part in done.stdout.split("0x")[1:]:
            address, *lines = part.splitlines()
            pairs = list(zip(lines[::2], lines[1::2], strict=False))
            frames = [_frame(name, place, inlined=at < len(pairs) - 1) for at, (name, place) in enumerate(pairs)]
            self._lines[int(address, 16) + 1] = tuple(_whole(frames))


def _frame(name: str, place: str, *, inlined: bool) -> Frame:
    file, _, line = place.partition(" ")[0].rpartition(":")
    if name == "??":
        return Frame("[module]", "", 0)
    return Frame(name, file.removeprefix(SOURCE_PREFIX).removeprefix("./"), int(line) if line.isdigit() else 0, inlined)


def _whole(frames: list[Frame]) -> Iterable[Frame]:
    """Yield the frames of one address; a function that the compiler has split is one frame, not two."""
    for function, parts in itertools.groupby(frames, key=lambda frame: frame.function):
        innermost, *others = parts
        yield Frame(function, innermost.file, innermost.line, (others or [innermost])[-1].inlined)


def ensure_table(directory: Path, kernel: Path) -> Path:
    """Return the file of the unwind table for a kernel; write it to the image's directory first if it does not exist.

    Two arrays of 32-bit numbers, one after the other: the first address of a run of instructions, and the distance in
    bytes from the stack pointer to the caller's frame there.

    :raises CannotWrite: the directory cannot be written
    """
    path = directory / TABLE
    if not (path.exists() and digest_file(path).exists()):
        rows = sorted(_rows(kernel).items())
        table = array.array("I", [start for start, _ in rows])
        table.extend(size for _, size in rows)
        keep(table.tobytes(), path)
    return path


def _rows(kernel: Path) -> dict[int, int]:
    """Return the distance to the caller's frame for each run of instructions, by readelf from .eh_frame."""
    listed = process.run(["readelf", "--wide", "--debug-dump=frames-interp", kernel], timeout_s=TIMEOUT_S)
    rows: dict[int, int] = {}
    at_entry: dict[str, int] = {}  # by CIE: the distance at a function's entry, before any push
    common = ""
    for line in listed.stdout.splitlines():
        if row := ROW.match(line):
            frame = int(row.group(2)) if row.group(2) else UNKNOWN
            if common:
                at_entry[common] = frame
            else:
                rows[int(row.group(1), 16)] = frame
        elif function := FUNCTION.match(line):
            common = ""
            start, end = (int(function.group(name), 16) for name in ("start", "end"))
            rows[start] = at_entry.get(function.group("common"), UNKNOWN)
            rows.setdefault(end, UNKNOWN)
        elif entry := COMMON.match(line):
            common = entry.group(1)
    return rows
