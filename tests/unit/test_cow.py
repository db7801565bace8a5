"""UML's COW format: files are read again, by skblab and by uml_moo; old versions; other files."""

import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skblab.errors import DiskError
from skblab.guest import cow, disk
from skblab.host import process

headers = st.builds(
    cow.Header,
    version=st.just(3),
    backing_file=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4, max_size=1000),
    mtime_s=st.integers(0, 2**32 - 1),
    size_bytes=st.integers(1, 2**50),
)


@given(headers)
def test_a_header_is_read_as_it_was_written(header: cow.Header) -> None:
    assert cow.parse(header.pack().ljust(cow.HEADER_BYTES, b"\0")) == header


@given(headers)
def test_every_sector_has_a_bit_and_a_place(header: cow.Header) -> None:
    sectors = -(-header.size_bytes // header.sector_bytes)
    assert header.bitmap_bytes * 8 >= sectors > header.bitmap_bytes * 8 - 8
    assert header.data_offset >= header.bitmap_offset + header.bitmap_bytes
    assert header.data_offset % header.alignment_bytes == 0
    assert header.bitmap_offset == 8192


@given(st.binary(max_size=cow.HEADER_BYTES))
def test_any_bytes_are_a_header_or_none_or_refused(data: bytes) -> None:
    try:
        assert cow.parse(data) is None
    except DiskError as error:
        assert "COW" in error.what  # noqa: PT017 - one of two ways


def test_version_1_is_in_its_writers_byte_order() -> None:
    data = struct.pack("<II256sIQI", cow.MAGIC, 1, b"/root_fs", 12, 1 << 20, 512)
    header = cow.parse(data)
    assert header == cow.Header(1, "/root_fs", 12, 1 << 20, 512, 512, 280)
    assert (header.bitmap_bytes, header.data_offset) == (256, 1024)


def test_version_2() -> None:
    data = struct.pack(">II4096sIQI", cow.MAGIC, 2, b"/root_fs", 12, 1 << 20, 512)
    header = cow.parse(data)
    assert header == cow.Header(2, "/root_fs", 12, 1 << 20, 512, 512, 4120)
    assert (header.bitmap_bytes, header.data_offset) == (256, 4608)


def test_version_3_as_64_bit_kernels_wrote_it_until_2005() -> None:
    data = struct.pack(">III4xQIII4096s4x", cow.MAGIC, 3, 12, 1 << 20, 512, 4096, 0, b"/root_fs")
    assert cow.parse(data) == cow.Header(3, "/root_fs", 12, 1 << 20)


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(DiskError, match="version 4") as caught:
        cow.parse(struct.pack(">II", cow.MAGIC, 4) + bytes(5000))
    assert "1, 2 and 3" in caught.value.found


def test_a_header_that_is_cut_short() -> None:
    with pytest.raises(DiskError, match="cut short"):
        cow.parse(struct.pack(">II", cow.MAGIC, 3) + bytes(100))


def write(path: Path, header: cow.Header, sectors: dict[int, bytes]) -> None:
    """Write some sectors, as a guest would."""
    with path.open("r+b") as file:
        bitmap = bytearray(header.bitmap_bytes)
        for number, data in sectors.items():
            bitmap[number // 8] |= 1 << number % 8
            os.pwrite(file.fileno(), data, header.data_offset + number * header.sector_bytes)
        os.pwrite(file.fileno(), bitmap, header.bitmap_offset)


SECTORS = {0: b"a" * 512, 1: b"b" * 512, 9: b"c" * 512, 2047: b"d" * 512}


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing"
    path.write_bytes(os.urandom(1 << 20))
    return path


def test_what_was_changed(backing: Path) -> None:
    path = backing.with_name("cow")
    header = disk.create(path, backing)
    assert disk.changed_sectors(path, header) == 0
    write(path, header, SECTORS)
    with path.open("rb") as file:
        assert list(cow.changed(file.fileno(), header)) == [range(2), range(9, 10), range(2047, 2048)]
    assert path.stat().st_blocks * 512 < 64 << 10  # sparse


def test_uml_moo_and_we_make_the_same_of_it(backing: Path) -> None:
    assert shutil.which("uml_moo"), "apt-get install uml-utilities"
    path = backing.with_name("cow")
    write(path, disk.create(path, backing), SECTORS)
    ours, theirs = backing.with_name("ours"), backing.with_name("theirs")
    assert disk.merge(path, ours) == 4 * 512
    done = process.run(["uml_moo", path, theirs], timeout_s=30)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.read_bytes() != backing.read_bytes()
