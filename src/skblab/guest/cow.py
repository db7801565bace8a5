"""UML's copy-on-write disks: a header, a bitmap of the written sectors, and those sectors.

Read and written as the kernel does it, arch/um/drivers/cow_user.c: ``read_cow_header()``, ``cow_sizes()``,
``init_cow_file()``. The file is sparse and as long as the whole disk; a sector that is not set in the bitmap is read
from the backing file.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from skblab.errors import DiskError

MAGIC = 0x4F4F4F4D  # "OOOM", or "MOOO" from the other side
SECTOR_BYTES = 512  # drivers/ubd_kern.c create_cow_file()
ALIGNMENT_BYTES = 4096  # PAGE_SIZE, same function
V1 = struct.Struct("<II256sIQI")  # in the writer's byte order; x86 here
V2 = struct.Struct(">II4096sIQI")
V3 = struct.Struct(">IIIQIII4096s")
# Until December 2005, 64-bit kernels left the header's padding in; mtime was swapped as 32 bits (cow_user.c).
V3_PADDED = struct.Struct(">III4xQIII4096s4x")
V3_BACKING_AT = V3.size - 4096
HEADER_BYTES = V3_PADDED.size
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Header:
    """A COW file's header: its backing file, and that file's size and mtime when the COW file was made."""

    version: int
    backing_file: str
    mtime_s: int
    size_bytes: int
    sector_bytes: int = SECTOR_BYTES
    alignment_bytes: int = ALIGNMENT_BYTES
    bitmap_offset: int = -(-V3.size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def bitmap_bytes(self) -> int:
        """Length of the bitmap. Before version 3 it was rounded down, so the last sector could lack a bit."""
        if self.version < 3:
            return (self.size_bytes + self.sector_bytes - 1) // (8 * self.sector_bytes)
        return _divide_up(_divide_up(self.size_bytes, self.sector_bytes), 8)

    @property
    def data_offset(self) -> int:
        """Offset of the first sector."""
        unit = self.sector_bytes if self.version < 3 else self.alignment_bytes
        return _round_up(self.bitmap_offset + self.bitmap_bytes, unit)

    def pack(self) -> bytes:
        """Return the header as bytes, of version 3.

        :raises DiskError: the backing file's name is too long
        """
        name = os.fsencode(self.backing_file)
        if len(name) > 4095:
            raise DiskError(f"a COW header has no room for a path of {len(name)} bytes", found=self.backing_file)
        return V3.pack(
            MAGIC, 3, self.mtime_s & 0xFFFFFFFF, self.size_bytes, self.sector_bytes, self.alignment_bytes, 0, name
        )


def parse(data: bytes) -> Header | None:
    """Decode the first ``HEADER_BYTES`` of a file; return None if it is not a COW file.

    :raises DiskError: its version is unknown, it is cut short, or its sizes are impossible
    """
    if len(data) < 8 or MAGIC not in struct.unpack("<I", data[:4]) + struct.unpack(">I", data[:4]):
        return None
    order = "<" if struct.unpack("<I", data[:4])[0] == MAGIC else ">"
    (version,) = struct.unpack(order + "I", data[4:8])
    try:
        header = _parse(version, data)
    except struct.error:
        raise DiskError(f"a COW file of version {version} with a header of {len(data)} bytes: cut short") from None
    if header.sector_bytes <= 0 or header.alignment_bytes <= 0:
        raise DiskError(
            "a COW header that cannot be", found=f"sectors of {header.sector_bytes}, alignment {header.alignment_bytes}"
        )
    return header


def _parse(version: int, data: bytes) -> Header:
    match version:
        case 1:
            _, _, name, mtime_s, size, sector = V1.unpack_from(data)
            return Header(1, _text(name), mtime_s, size, sector, sector, V1.size)
        case 2:
            _, _, name, mtime_s, size, sector = V2.unpack_from(data)
            return Header(2, _text(name), mtime_s, size, sector, sector, V2.size)
        case 3:
            form = V3 if any(data[V3_BACKING_AT : V3_BACKING_AT + 4]) else V3_PADDED
            _, _, mtime_s, size, sector, alignment, _, name = form.unpack_from(data)
            offset = _round_up(form.size, alignment) if alignment else 0
            return Header(3, _text(name), mtime_s, size, sector, alignment, offset)
    raise DiskError(f"a COW file of version {version}", found="UML and skblab know versions 1, 2 and 3")


def create(descriptor: int, header: Header) -> None:
    """Make an empty file a COW disk without changes."""
    os.pwrite(descriptor, header.pack(), 0)
    os.ftruncate(descriptor, header.data_offset + header.size_bytes)


def changed(descriptor: int, header: Header) -> Iterator[range]:
    """Yield the runs of written sectors, in order."""
    first = sector = 0
    inside = False
    bitmap = os.pread(descriptor, header.bitmap_bytes, header.bitmap_offset)
    for byte in bitmap:
        if byte == (0xFF if inside else 0):
            sector += 8
            continue
        for bit in range(8):  # the lowest bit is the first sector: drivers/ubd_kern.c ubd_test_bit()
            if bool(byte >> bit & 1) != inside:
                if inside:
                    yield range(first, sector)
                first, inside = sector, not inside
            sector += 1
    if inside:
        yield range(first, sector)


def merge(descriptor: int, header: Header, target: int) -> int:
    """Write the changed sectors over a copy of the backing file; return their size in bytes."""
    written = 0
    for run in changed(descriptor, header):
        at, end = run.start * header.sector_bytes, min(run.stop * header.sector_bytes, header.size_bytes)
        while at < end:
            data = os.pread(descriptor, min(COPY_BYTES, end - at), header.data_offset + at)
            if not data:
                raise DiskError("a COW file that is shorter than its bitmap says", found=f"nothing at sector {run}")
            at += os.pwrite(target, data, at)
            written += len(data)
    return written


def _text(name: bytes) -> str:
    return os.fsdecode(name.partition(b"\0")[0])


def _divide_up(number: int, by: int) -> int:
    return -(-number // by)


def _round_up(number: int, unit: int) -> int:
    return _divide_up(number, unit) * unit
