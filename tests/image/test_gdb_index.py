"""gdb's index of a kernel names a header's types and enumerators once; gdb finds everything that it found before."""

import shutil
import struct
from pathlib import Path

import pytest

from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image.debuginfo import add_gdb_index
from skblab.image.gdb_index import A_HEADERS, TYPE, VARIABLE, kind, read_vector, shortened
from skblab.image.image import Image

ASKED = (
    "ptype struct sk_buff", "print (int)SKB_DROP_REASON_NO_SOCKET", "print (int)TCP_ESTABLISHED", "info line icmp_rcv",
    "print sizeof(struct iphdr)", "print &'net/ipv4/tcp.c'::tcp_orphan_count", "show language",
)  # fmt: skip


def vectors(index: bytes) -> dict[str, tuple[int, ...]]:
    """Return the units of each name."""
    version, *offsets = struct.unpack_from("<7I", index)
    symbols, behind = offsets[3:5]
    pool = offsets[5] if version > 8 else behind
    found = {}
    for name, vector in struct.iter_unpack("<II", index[symbols:behind]):
        if name or vector:
            begin = pool + name
            found[index[begin : index.index(b"\0", begin)].decode()] = read_vector(index, pool + vector)
    return found


@pytest.fixture(scope="module")
def whole(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel with the index as gdb writes it."""
    kernel = tmp_path_factory.mktemp("kernel") / "vmlinux"
    done = process.run(["objcopy", "--remove-section", ".gdb_index", image.kernel, kernel])
    assert done.returncode == 0, done.stderr
    gdb = find_gdb()
    done = process.run([*gdb.argv, "-nx", "-batch", "-ex", f"save gdb-index {kernel.parent}", kernel], env=gdb.env)
    index = kernel.with_name("vmlinux.gdb-index")
    done = process.run(["objcopy", "--add-section", f".gdb_index={index}", kernel])
    assert done.returncode == 0, done.stderr
    return kernel


@pytest.fixture(scope="module")
def short(whole: Path) -> Path:
    """The same kernel with the index as skblab writes it."""
    kernel = whole.with_name("short")
    done = process.run(["objcopy", "--remove-section", ".gdb_index", whole, kernel])
    assert done.returncode == 0, done.stderr
    add_gdb_index(kernel)
    return kernel


def index_of(kernel: Path) -> bytes:
    section = kernel.with_name(f"{kernel.name}.section")
    done = process.run(["objcopy", "--dump-section", f".gdb_index={section}", kernel, "/dev/null"])
    assert done.returncode == 0, done.stderr
    return section.read_bytes()


def test_no_name_is_lost_and_no_function(whole: Path, short: Path) -> None:
    before, after = vectors(index_of(whole)), vectors(index_of(short))
    assert before.keys() == after.keys()
    assert shortened(index_of(short)) == index_of(short)
    assert sum(map(len, after.values())) < sum(map(len, before.values())) / 5
    for name, units in before.items():
        assert set(after[name]) <= set(units)
        for which in set(map(kind, units)):
            many, few = ([unit for unit in one[name] if kind(unit) == which] for one in (before, after))
            assert few == (many[:1] if which in {TYPE, VARIABLE} and len(many) > A_HEADERS else many), name


def test_of_another_version_nothing_is_changed() -> None:
    index = struct.pack("<7I", 10, *range(6))
    assert shortened(index) == index


def test_gdb_answers_the_same(whole: Path, short: Path) -> None:
    """Debian's gdb, too, which reads no index as gdb 18 writes it."""
    gdb, debians = find_gdb(), shutil.which("gdb")
    commands = [word for one in ASKED for word in ("-ex", f"echo {one}\\n", "-ex", one)]
    whole_ours, short_ours, short_debians = [
        process.run([*argv, "-nx", "-batch", *commands, kernel], env=env).stdout
        for argv, env, kernel in ((gdb.argv, gdb.env, whole), (gdb.argv, gdb.env, short), ([debians], None, short))
    ]
    assert "SKB_DROP_REASON_NO_SOCKET\n$1 = 3\n" in whole_ours
    assert short_ours == whole_ours
    assert short_debians == whole_ours
