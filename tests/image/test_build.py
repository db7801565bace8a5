"""Builds that fail and builds that are interrupted leave nothing half-made."""

import contextlib
import fcntl
import json
import re
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skblab.errors import UsageError
from skblab.host import process
from skblab.image.build import Request, build_image
from skblab.image.difference import compare
from skblab.image.headers import FIRST
from skblab.image.image import MANIFEST, SOURCE, Image
from skblab.image.reasons import reasons
from skblab.image.recipe import DEFAULT_SERIES, SERIES
from skblab.image.source import find_source, kept_tree, link_tree, series_of
from skblab.image.store import builds_dir, cache_dir, find_image
from support import SKBLAB, eventually_nothing, read_until, remains, skblab, start_skblab


def unpacked(series: str) -> Path:
    """Return what is unpacked of a kernel's source."""
    with kept_tree(find_source(series)) as tree:
        return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default kernel's source with a mistake in the first file that is compiled."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    link_tree(unpacked(DEFAULT_SERIES), tree)
    bounds = tree / "kernel/bounds.c"
    rewrite(bounds, bounds.read_text() + "\nthis is not C\n")
    return tree


def rewrite(path: Path, text: str) -> None:
    """Write a file of which there may be another link."""
    path.unlink()
    path.write_text(text)


@pytest.fixture(scope="module")
def tarball(tree: Path) -> Path:
    """That source, packed again, but not compressed: unpacking it is quick."""
    path = tree.parent / "source.tar"
    done = process.run(["tar", "-C", tree.parent, "-cf", path, tree.name])
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    return tmp_path / "images"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith(".lock-"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_source_of_which_it_is_unknown_whether_it_has_a_fault(tree: Path, cache: Path) -> None:
    """Its idle loop was changed by hand, so that no correction fits: nothing is compiled unless that is accepted.

    If it is, the compiler refuses the source.
    """
    time_c = tree / "arch/um/os-Linux/time.c"
    original = time_c.read_text()
    rewrite(time_c, original.replace("\t\tsigsuspend(&old);\n", "\t\tsigsuspend(&old); /* mine */\n"))
    assert time_c.read_text() != original
    try:
        done = skblab("image", "build", "--source", str(tree), timeout_s=100)
        accepted = skblab("image", "build", "--source", str(tree), "--accept-uncorrected", timeout_s=250)
    finally:
        rewrite(time_c, original)
    assert done.returncode == 1
    assert "it is unknown whether this source has faults that skblab corrects: lost wake-ups\n" in done.stderr
    assert "arch/um/os-Linux/time.c does not have: " in done.stderr
    assert "a packet that comes to an idle guest may wait for a second" in done.stderr
    assert "--accept-uncorrected" in done.stderr.splitlines()[-1]
    assert "configuring" not in done.stderr
    assert "Traceback" not in done.stderr
    assert accepted.returncode == 1
    assert "make vmlinux failed" in accepted.stderr
    assert "kernel/bounds.c" in accepted.stderr
    assert "error: " in accepted.stderr
    assert "Traceback" not in accepted.stderr
    assert left_in(cache) == []
    assert not (tree / ".config").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "kind", "doing"),
    [
        (signal.SIGINT, "tree", "compiling"),
        (signal.SIGTERM, "tree", "compiling"),
        (signal.SIGKILL, "tarball", "configuring"),
    ],
)
def test_an_interrupted_build(
    cache: Path, number: signal.Signals, kind: str, doing: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    before = remains()
    building = start_skblab("image", "build", "--source", str(source))
    assert building.stdout is not None
    read_until(building.stdout.fileno(), lambda said: doing in said, within_s=120)
    select.select([building.stdout], [], [], 1.0)
    building.send_signal(number)
    done = process.finish(building, timeout_s=30)
    assert done.returncode in {128 + number, -number}
    assert eventually_nothing(before) == []
    assert [name for name in left_in(cache) if not name.startswith(".building-")] == []
    if number is not signal.SIGKILL:
        assert left_in(cache) == []
    assert skblab("image", "ls").stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_build_takes_all_that_it_started_along(cache: Path) -> None:
    """Its tar, here; and the next build does not wait for it."""
    for _ in range(2):
        building = start_skblab("image", "build")
        assert until(lambda: at_work_in(cache.parent), within_s=50)
        building.kill()
        process.end(building)
        assert until(lambda: not at_work_in(cache.parent), within_s=5), at_work_in(cache.parent)


def until(it_is_so: Callable[[], object], *, within_s: float) -> bool:
    """Wait for something that has no event, because other processes do it."""
    deadline = time.monotonic() + within_s
    while not it_is_so():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.02)
    return True


def at_work_in(directory: Path) -> list[str]:
    """Return the command lines of processes that name a directory: there is no event for a stranger's end."""
    found = []
    for path in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            words = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [words] if f"{directory}/" in words else []
    return found


def test_what_is_unpacked_of_debians_source_serves_every_build(tree: Path) -> None:
    """Each has links of its own; what one replaces is not replaced for the others."""
    kept = unpacked(DEFAULT_SERIES)
    assert (tree / "Makefile").samefile(kept / "Makefile")
    assert "this is not C" not in (kept / "kernel/bounds.c").read_text()
    assert "SKBLAB" not in (kept / FIRST).read_text()


def test_of_debians_source_that_is_unpacked_which_is_read(tree: Path) -> None:
    assert (tree / "net/ipv4/icmp.c").exists()
    assert (tree / "drivers/gpu/drm/Kconfig").exists()
    assert not list(tree.glob("drivers/gpu/**/*.c"))
    assert not (tree / "Documentation/admin-guide").exists()


@pytest.mark.parametrize("series", SERIES)
def test_what_a_traced_kernel_compiles_is_unpacked(series: str) -> None:
    """TRACING, which lockdep and KASAN select, has files of its own in directories of drivers (7.3: drivers/pci)."""
    tree = unpacked(series)
    traced = [
        makefile.with_name(f"{name}.c")
        for makefile in tree.glob("drivers/*/Makefile")
        for name in re.findall(r"^obj-\$\(CONFIG_TRACING\)\s*\+= (\w+)\.o$", makefile.read_text(), re.MULTILINE)
    ]
    assert traced
    assert [path for path in traced if not path.exists()] == []


def test_the_subsystems_of_a_source_have_drop_reasons_of_their_own(tree: Path) -> None:
    """Openvswitch and mac80211 are in no image of skblab's options, but may be in a developer's."""
    found = reasons(tree)
    subsystems = {name: number >> 16 for name, number in found.items() if number >> 16}
    assert set(subsystems.values()) == {1, 2, 3}  # include/net/dropreason.h
    assert (found["RX_DROP_U_MIC_FAIL"], found["RX_DROP_M_UNEXPECTED_4ADDR_FRAME"]) == (0x10001, 0x20001)
    assert (found["OVS_DROP_LAST_ACTION"], found["OVS_DROP_IP_TTL"]) == (0x30001, 0x3000B)
    assert found["QDISC_DROP"] < found["MAX"]


def test_what_a_killed_build_left_is_swept_away_by_the_next(cache: Path, image: Image) -> None:
    left = cache / ".building-6.12-default-0123456789ab"
    left.mkdir(parents=True)
    (left / "obj").write_text("")
    link_tree(image.path, cache / image.name)
    assert build_image(Request()).name == image.name
    assert not left.exists()


def test_the_image_that_was_asked_for_last_is_the_one_that_labs_take(cache: Path, image: Image) -> None:
    cache.mkdir()
    link_tree(image.path, cache / image.name)
    other = cache / "6.12-default-0123456789ab"
    link_tree(image.path, other)
    (other / MANIFEST).unlink()
    shutil.copyfile(image.path / MANIFEST, other / MANIFEST)
    assert find_image().name == other.name
    build_image(Request())
    assert find_image().name == image.name


@dataclass(frozen=True, slots=True)
class Built:
    """A developer's tree with own options, built in a cache of its own."""

    tree: Path
    fragment: Path
    asked: tuple[str, ...]
    first: Image


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """Build it as it was unpacked.

    The tree and its objects stay for the next run, as a developer's do: from scratch the build takes minutes. One test
    uses it at a time.
    """
    source_tree = unpacked(DEFAULT_SERIES)
    place = cache_dir() / "tests" / source_tree.name.replace("source", "tree")
    place.mkdir(parents=True, exist_ok=True)
    tree, fragment = place / "tree", place / "bbr.config"
    monkeypatch.setenv("SKBLAB_CACHE", str(place / "cache"))
    asked = ("image", "build", "--source", str(tree), "--variant", "debug", "--config", str(fragment))
    with (place / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            process.run(["cp", "-a", source_tree, tree]).check_returncode()
            for path in CHANGED:
                shutil.copy2(tree / path, place / Path(path).name)
        fragment.write_text("# mine\nCONFIG_TCP_CONG_ADVANCED=y\nCONFIG_TCP_CONG_BBR=y\n")
        for path in CHANGED:  # with its time: to skblab it is the tree of the last run, whose image is there
            shutil.copy2(place / Path(path).name, tree / path)
        done = skblab(*asked, timeout_s=2000)
        assert done.returncode == 0, done.stderr
        first = Image.open(Path(done.stdout.strip()))
        for other in first.path.parent.glob("6.12-debug+bbr-*"):  # of runs before, which would be found, and not built
            if other != first.path:
                shutil.rmtree(other)
        yield Built(tree, fragment, asked, first)


CHANGED = ("net/ipv4/icmp.c", "net/ipv4/Kconfig")
MINE = "int mine(int x)\n{\n\treturn x;\n}\n\n"


def change_a_line(tree: Path) -> None:
    icmp = tree / CHANGED[0]
    icmp.write_text(icmp.read_text().replace("int icmp_rcv(", f"{MINE}int icmp_rcv("))


def processor_s() -> float:
    """Return how long processors have worked for programs that this process has started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_tree_of_ones_own_is_built(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is changed, built in seconds of processor time, and seen to run; then options are added, new ones too."""
    assert built.first.name.startswith("6.12-debug+bbr-")
    change_a_line(built.tree)
    before_s = processor_s()
    second = skblab(*built.asked, timeout_s=300)
    assert second.returncode == 0, second.stderr
    changed = Path(second.stdout.strip()).name
    run = skblab("run", "--image", changed, "-r", "icmp_rcv = trace", "--", "ping", "-c1", "guest")
    assert processor_s() - before_s < 90  # 14 s on two quick processors, 45 on two slow ones; from nothing: 450 s
    assert "icmp_rcv = trace: arrived 1, traced 1" in run.stdout + run.stderr
    assert changed != built.first.name
    kconfig = built.tree / CHANGED[1]
    kconfig.write_text(kconfig.read_text() + '\nconfig MINE\n\tbool "Mine"\n\tdefault y\n')
    built.fragment.write_text(built.fragment.read_text() + "CONFIG_TCP_CONG_VEGAS=y\n")
    third = skblab(*built.asked, timeout_s=300)
    assert third.returncode == 0, third.stderr
    options = Image.open(Path(third.stdout.strip())).config.read_text()
    assert "CONFIG_MINE=y\n" in options
    assert "CONFIG_TCP_CONG_VEGAS=y\n" in options
    assert len(list(builds_dir().glob("tree-debug+bbr-*"))) == 1  # by another recipe, but of the same tree
    names = [built.first.name, changed]
    different = json.loads(skblab("image", "diff", *names, "--json").stdout)
    assert different["options"] == {}
    assert different["new"] == ["int mine(int x)"]
    assert [(one["file"], one["added"], one["removed"]) for one in different["sources"]] == [("net/ipv4/icmp.c", 5, 0)]
    assert "\n+int mine(int x)\n" in skblab("image", "diff", "-p", *names).stdout
    assert not (built.tree / ".config").exists()
    copy = tmp_path / "cache"
    link_tree(cache_dir(), copy)
    monkeypatch.setenv("SKBLAB_CACHE", str(copy))
    assert list(copy.glob("builds/*"))
    assert skblab("image", "rm", "--builds").returncode == 0
    assert not list(copy.glob("builds/*"))
    assert skblab("image", "diff", names[0], names[0]).returncode == 0


@pytest.mark.timeout(300)
def test_fragments_that_make_no_sense(tree: Path, cache: Path, tmp_path: Path) -> None:
    for content, status, said in (
        ("hello\n", 2, "mine.config:1: this is no option"),
        ("CONFIG_NOBODY_HAS=y\n", 1, "CONFIG_NOBODY_HAS=y"),
        ("CONFIG_PREEMPT=y\n", 1, "wants a kernel that is neither preemptible nor SMP"),
    ):
        (tmp_path / "mine.config").write_text(content)
        asked = ("image", "build", "--source", str(tree), "--config", str(tmp_path / "mine.config"))
        done = skblab(*asked, timeout_s=120)
        assert done.returncode == status
        assert said in done.stderr
    assert left_in(cache) == []
    assert "no fragment" in skblab("image", "build", "--config", str(tmp_path / "none")).stderr


def test_what_is_different(image: Image) -> None:
    other = find_image(variant="kasan")
    difference = compare(image, other)
    assert difference.options["CONFIG_KASAN"] == ("n", "y")
    assert not [
        one for one in difference.sources if one.added and one.removed
    ]  # one source; of it, other files are used
    assert any("kasan_" in one for one in difference.new)
    said = skblab("image", "diff", image.name, other.name)
    assert said.returncode == 1
    assert "\n  CONFIG_KASAN: n -> y\n" in said.stdout
    assert skblab("image", "diff", image.name, "nobody").returncode == 3


def test_what_is_no_source(tmp_path: Path) -> None:
    for given, said in ((tmp_path, "is not a kernel source"), (tmp_path / "none", "no such source")):
        with pytest.raises(UsageError, match=said):
            find_source("6.12", given)
    tarball = tmp_path / "x.tar"
    tarball.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="is not a tarball of a kernel source"):
        find_source("6.12", tarball)


def test_the_series_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("# SPDX\nVERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 0\n")
    assert series_of(tmp_path) == "6.18"
    assert find_source("6.12", tmp_path).series == "6.18"


def test_an_image_that_is_there_is_not_built_again() -> None:
    stages: list[str] = []
    image = build_image(Request(), lambda stage, *_: stages.append(stage))
    assert "compiling the kernel" not in stages
    assert skblab("image", "build").stdout == f"{image.path}\n"


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    done = process.run([*SKBLAB, "image", "build"], env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, timeout_s=60)
    assert done.returncode == 3
    assert "building a kernel needs: make, gcc," in done.stderr
    assert "make setup" in done.stderr


def test_the_headers_of_an_image_are_those_of_its_source(every_image: Image) -> None:
    """While it was built, one was another, and precompiled."""
    first = every_image.path / SOURCE / FIRST
    assert "SKBLAB" not in first.read_text()
    assert not list(first.parent.glob("*.gch"))
    assert "skblab-headers" not in "".join(path.name for path in (every_image.path / SOURCE / "obj").iterdir())
