"""A guest's archive is unpacked only into its target, whatever it contains."""

import contextlib
import io
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from skblab.guest.unpack import LONGEST_HEADER_BYTES, unpack

REGULAR, LINK, SYMLINK = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def member(name: str, kind: bytes = REGULAR, link: str = "", mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    return info


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    """Return an archive of members, each with as many bytes as it says, up to a kilobyte."""
    out = io.BytesIO()
    for info in members:
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        content = b"x" * min(info.size, 1024)
        out.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    out.seek(0)
    return out


def test_a_tree_with_links(tmp_path: Path) -> None:
    content = archive(
        member("tree", tarfile.DIRTYPE, mode=0o555),
        member("tree/file", size=5, mode=0o4755),
        member("tree/same", LINK, "tree/file", mode=0o4755),
        member("tree/short", SYMLINK, "file"),
    )
    assert unpack(content, "tree", tmp_path / "renamed") == []
    file = tmp_path / "renamed/file"
    assert file.read_bytes() == b"xxxxx"
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    assert file.samefile(tmp_path / "renamed/same")
    assert (tmp_path / "renamed/short").readlink() == Path("file")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o555
    file.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        ([member("/etc/x")], "is not in the subpath"),
        ([member("tree/../../x")], "outside of the copy"),
        ([member("tree/../x")], "outside of the copy"),
        ([member("other/x")], "is not in the subpath"),
        ([member("tree/a", SYMLINK, "/etc/passwd")], "outside of the copy"),
        ([member("tree/a", SYMLINK, "../../outside"), member("tree/a/x", size=1)], "outside of the copy"),
        ([member("tree/a", LINK, "/etc/passwd")], "is not in the subpath"),
        ([member("tree/a", LINK, "tree/../../x")], "outside of the copy"),
        ([member("tree/a", LINK, "tree/none")], "not in the copy"),
        ([member("tree/a", tarfile.BLKTYPE)], "a device or a FIFO"),
        ([member("tree/a", tarfile.CHRTYPE)], "a device or a FIFO"),
        ([member("tree/a", tarfile.FIFOTYPE)], "a device or a FIFO"),
    ],
    ids=lambda hostile: hostile if isinstance(hostile, str) else hostile[0].name + hostile[0].linkname,
)
def test_what_is_left_out(tmp_path: Path, hostile: list[tarfile.TarInfo], why: str) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "x").write_text("mine")
    content = archive(member("tree", tarfile.DIRTYPE, mode=0o755), *hostile, member("tree/good", size=3))
    left_out = unpack(content, "tree", directory / "tree")
    assert why in left_out[0]
    assert (directory / "tree/good").read_bytes() == b"xxx"
    assert (directory / "x").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_link_that_an_earlier_copy_left_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").symlink_to(tmp_path / "elsewhere")
    left_out = unpack(archive(member("tree/a/x", size=1)), "tree", tmp_path / "tree")
    assert "outside of the copy" in left_out[0]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    huge = member("tree/huge", size=1 << 60)
    with pytest.raises(tarfile.ReadError):  # what follows is not there
        unpack(archive(huge), "tree", tmp_path / "tree")
    assert not (tmp_path / "tree/huge").exists()
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=LONGEST_HEADER_BYTES + 1)
    with pytest.raises(tarfile.TarError):
        unpack(archive(name), "tree", tmp_path / "tree")


@given(content=some.binary(max_size=2048) | some.binary(min_size=512, max_size=512).map(lambda head: b"tree" + head))
@settings(max_examples=300)
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("arbitrary")
    with contextlib.suppress(tarfile.TarError, OSError, EOFError):
        unpack(io.BytesIO(content), "tree", directory / "tree")
    assert {path.name for path in directory.iterdir()} <= {"tree"}
