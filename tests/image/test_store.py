"""Images as they are kept: found, damaged, removed; and the index of their functions."""

import json
import os
from pathlib import Path

import pytest

from skblab.agent.functions import packet_argument
from skblab.errors import ImageDamaged, ImageMissing, UsageError
from skblab.image import store
from skblab.image.image import KERNEL, MANIFEST, Image, digest, digest_file
from skblab.image.index import Function
from skblab.image.missing import explain_missing
from skblab.image.module import keep
from skblab.image.source import link_tree
from skblab.image.unwind import Unwinder, ensure_table
from skblab.lab import Lab
from support import skblab


def packet_number(function: Function) -> int | None:
    argument = packet_argument(function)
    return argument.number if argument else None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    return tmp_path / "images"


@pytest.fixture
def copy(cache: Path, image: Image) -> Path:
    """A copy of the default image in that cache; the files are the image's own (hard links), to be replaced only."""
    cache.mkdir()
    target = cache / image.name
    link_tree(image.path, target)
    return target


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file, without changing the file that other images share."""
    path.unlink()
    path.write_bytes(content)


def test_no_image_says_how_to_build_one(cache: Path) -> None:
    with pytest.raises(ImageMissing) as caught:
        store.find_image("6.1")
    assert caught.value.hint == "skblab image build --series 6.1"
    assert str(cache) in caught.value.found
    done = skblab("ping", "-c", "1")
    assert done.returncode == 3
    assert "hint: skblab image build --series 6.12" in done.stderr


@pytest.mark.parametrize("name", [KERNEL, "functions.sqlite", "config"])
def test_a_truncated_file_is_noticed_at_once(copy: Path, name: str) -> None:
    rewrite(copy / name, (copy / name).read_bytes()[:1000])
    with pytest.raises(ImageDamaged, match=f"is damaged: {name}") as caught:
        store.find_image()
    assert "1000 bytes instead of " in caught.value.found
    assert caught.value.hint == f"skblab image rm {copy.name} && skblab image build"
    done = skblab("ping", "-c", "1")
    assert done.returncode == 1
    assert f"is damaged: {name}" in done.stderr
    assert skblab("image", "ls").returncode == 1


def test_a_missing_file_is_noticed_at_once(copy: Path) -> None:
    (copy / KERNEL).unlink()
    with pytest.raises(ImageDamaged) as caught:
        store.find_image()
    assert caught.value.found == "it is missing"


def test_changed_content_is_noticed_by_a_check(copy: Path) -> None:
    assert skblab("image", "check").stdout == f"{copy.name}: good\n"
    content = bytearray((copy / "config").read_bytes())
    content[100] ^= 1
    rewrite(copy / "config", bytes(content))
    done = skblab("image", "check", copy.name)
    assert done.returncode == 1
    assert "its content has changed" in done.stderr


@pytest.mark.parametrize("pattern", ["agent-*.ko", "initramfs-*.cpio", "members-*.json", "unwind-*.bin"])
def test_a_check_reads_what_was_made_later_too(copy: Path, image: Image, pattern: str) -> None:
    made = next(image.path.glob(pattern))
    keep(made.read_bytes(), copy / made.name)
    done = skblab("image", "check")
    assert made.name not in done.stderr
    assert "good" in done.stdout
    rewrite(copy / made.name, made.read_bytes()[:1000])
    done = skblab("image", "check")
    assert done.returncode == 1
    assert f"is damaged: {made.name}" in done.stderr
    assert f"rm {copy / made.name}   (it is made again)" in done.stderr


def test_what_is_read_of_a_truncated_table_is_not_believed(copy: Path, image: Image) -> None:
    table = ensure_table(image.path, image.kernel)
    rewrite(copy / table.name, table.read_bytes()[:1001])
    rewrite(digest_file(copy / table.name), b"")
    with pytest.raises(ImageDamaged, match=table.name):
        Unwinder(Image.open(copy))


def test_a_check_reads_the_source(copy: Path) -> None:
    rewrite(copy / "source.sha256", f"{digest(copy / 'source')}  source\n".encode())
    assert "source" not in skblab("image", "check").stderr
    rewrite(copy / "source/net/ipv4/icmp.c", b"")
    assert "is damaged: source" in skblab("image", "check").stderr


def test_a_check_names_every_damaged_image(copy: Path) -> None:
    other = copy.with_name("6.12-other")
    link_tree(copy, other)
    for one in (copy, other):
        rewrite(one / "config", bytes((one / "config").stat().st_size))
    said = skblab("image", "check").stderr
    assert f"image {copy.name} is damaged" in said
    assert "image 6.12-other is damaged" in said


def test_an_image_that_a_lab_runs_stays(copy: Path) -> None:
    with Lab(f"runs-{os.getpid()}", image=copy) as lab:
        done = skblab("image", "rm", copy.name)
        assert done.returncode == 1
        assert f"image {copy.name} is in use\n  by lab {lab.name}: " in done.stderr
        assert lab.run(["ping", "-c", "1", "guest"]).returncode == 0
    assert skblab("image", "rm", copy.name).returncode == 0
    assert not copy.exists()


@pytest.mark.usefixtures("cache")
def test_images_are_for_others_too() -> None:
    before = os.umask(0o022)
    try:
        assert store.images_dir().stat().st_mode & 0o777 == 0o755
        assert store.builds_dir().stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_an_unreadable_manifest(copy: Path) -> None:
    rewrite(copy / MANIFEST, b"{")
    with pytest.raises(ImageDamaged, match="cannot be read"):
        store.find_image()
    (copy / MANIFEST).unlink()
    with pytest.raises(ImageDamaged, match=f"no {MANIFEST}"):
        store.find_image()


def test_an_image_of_another_recipe_is_not_taken(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    rewrite(copy / MANIFEST, json.dumps(manifest | {"recipe": "older"}).encode())
    with pytest.raises(ImageMissing, match=r"no image of Linux 6\.12") as caught:
        store.find_image()
    assert "was built by another recipe" in caught.value.found


def test_list_and_remove(copy: Path) -> None:
    done = skblab("image", "ls", "--json")
    (listed,) = json.loads(done.stdout)
    assert listed["name"] == copy.name
    assert listed["series"] == "6.12"
    assert "6.12." in skblab("image", "ls").stdout
    assert skblab("image", "rm", copy.name).returncode == 0
    assert skblab("image", "ls").stdout == ""
    assert list(copy.parent.iterdir()) == []
    done = skblab("image", "rm", copy.name)
    assert done.returncode == 2
    assert "no image named" in done.stderr


def test_a_damaged_image_can_be_removed(copy: Path) -> None:
    (copy / KERNEL).unlink()
    assert skblab("image", "rm", copy.name).returncode == 0
    assert not copy.exists()


@pytest.mark.parametrize("name", ["..", ".", "../images", ".lock-x", ""])
def test_nothing_but_an_image_is_removed(copy: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no image named"):
        store.remove_image(name)
    assert copy.exists()


def test_an_image_keeps_what_gdb_needs_and_no_more(every_image: Image) -> None:
    size_mb = sum(path.stat().st_size for path in every_image.path.rglob("*") if path.is_file()) / 1e6
    assert size_mb <= 600
    for name in ("net/ipv4/icmp.c", "net/core/dev.c", "include/linux/skbuff.h"):
        assert (every_image.source / name).is_file()
    assert not (every_image.source / "drivers/gpu").exists()


def test_the_index_knows_every_function(every_image: Image) -> None:
    functions = every_image.functions
    icmp_rcv = functions.lookup("icmp_rcv")
    assert icmp_rcv is not None
    assert icmp_rcv.signature == "int icmp_rcv(struct sk_buff *skb)"
    assert icmp_rcv.file == "net/ipv4/icmp.c"
    assert packet_number(icmp_rcv) == 0
    source = (every_image.source / icmp_rcv.file).read_text().splitlines()
    assert "icmp_rcv(struct sk_buff *skb)" in source[icmp_rcv.line - 1]
    assert functions.at(icmp_rcv.address + 7) == icmp_rcv
    output = functions.lookup("ip_output")
    assert output is not None
    assert [one.type for one in output.parameters] == ["struct net *", "struct sock *", "struct sk_buff *"]
    assert packet_number(output) == 2
    idle = functions.lookup("do_idle")
    assert idle is not None
    assert packet_number(idle) is None
    assert functions.lookup("icmp_rvc") is None
    assert functions.near("icmp_rvc")[0] == "icmp_rcv"
    assert len(functions.names()) > 15_000
    assert {"tcp_v4_rcv", "tcp_v4_connect"} <= set(functions.names("tcp_v4_*"))


def test_every_function_begins_with_the_nops_that_the_agent_needs(every_image: Image) -> None:
    kernel = every_image.kernel.read_bytes()
    assert b"__patchable_function_entries" in kernel


@pytest.mark.parametrize("name", ["", "a b", "x; quit", "icmp_rvc", "%s", "é"])
def test_what_is_no_function_is_explained(image: Image, name: str) -> None:
    assert "no function" in explain_missing(image, name).what
