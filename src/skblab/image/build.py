"""Build an image: source, configuration, kernel, indexes. A finished image is renamed into the store, nothing else is.

A tree is built in a directory that is kept, so that the next build compiles only what has changed; a tarball never
changes, so its directory is removed. Of Debian's source, the files that are read are unpacked once for all builds.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from skblab.errors import BuildFailed, MissingPrerequisite
from skblab.host import process
from skblab.image import corrections, debuginfo, headers, members, module, prune, recipe, unwind
from skblab.image.described import Described
from skblab.image.image import CONFIG, INDEX, KERNEL, MANIFEST, SOURCE, Image, describe_files, digest, digest_file
from skblab.image.source import Source, find_source, unpack
from skblab.image.store import REMOVED, alone, builds_dir, images_dir, lock_of

TOOLS = ("make", "gcc", "ld", "nm", "objcopy", "flex", "bison", "bc", "tar", "xz", "cp")
OBJECTS = 900  # approximate, for the progress
COMPILING = re.compile(r"^  (?:CC|AS)\s")
LINKING = re.compile(r"^  LD\s+(?:vmlinux|\.tmp_vmlinux)")
TROUBLE = re.compile(r"error:|Error \d|undefined reference|No such file|fatal|\*\*\*")
SHOWN_LINES = 20
JOBS = (os.cpu_count() or 1) + 1  # one more, because a compiler may wait for a file
TINY = "kernel/configs/tiny-base.config"  # scripts/kconfig/Makefile tinyconfig
AUTO_CONF = "include/config/auto.conf"
KCONFIG_FILE = re.compile(r"^\t(\S+) \\$", re.MULTILINE)
BUILDING = ".building-"
TICKS = "Kconfig.ticks"
CONFIGURED = ".skblab-configured"
DESCRIBED = "described.json"
CONCURRENT = ("CONFIG_PREEMPT", "CONFIG_PREEMPTION", "CONFIG_SMP")  # kernel/agent/agent.h

Progress = Callable[[str, int, int], None]
"""Called with the step, the number of files done, and about how many there are (0: unknown)."""


@dataclass(frozen=True)
class Request:
    """What to build: Debian's source of *series*, or *source*, a tree or a tarball; *config*: the user's fragments.

    *accept_uncorrected*: build a source also if it is unknown whether it has a fault of UML's.
    """

    series: str = recipe.DEFAULT_SERIES
    variant: str = "default"
    source: Path | None = None
    config: tuple[Path, ...] = ()
    accept_uncorrected: bool = False


def build_image(request: Request, progress: Progress = lambda *_: None) -> Image:
    """Build the image of a request, or return an image built from the same content.

    :raises MissingPrerequisite: a tool is not installed, or the source cannot be got
    :raises BuildFailed: with the compiler's own lines; or it is unknown whether the source has a fault of UML's
    """
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        raise MissingPrerequisite(f"building a kernel needs: {', '.join(absent)}", hint="make setup, or skblab doctor")
    source = find_source(request.series, request.source, lambda step: progress(step, 0, 0))
    wanted = recipe.recipe_for(source.series, request.variant, request.config)
    progress("reading the source", 0, 0)
    identity = f"{source.identity()} {wanted.key} {recipe.compiler()}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = images_dir() / f"{source.series}-{wanted.variant}-{key}"
    _sweep(target.parent)
    waiting = partial(progress, "waiting for another build of the same", 0, 0)
    with alone(target, waiting):
        if target.exists():
            image = Image.open(target)
            _refuse_unknown(image.corrections, wanted, request)
            os.utime(target / MANIFEST)  # labs take the newest image, so it counts as just built
            return image
        scratch = target.with_name(f"{BUILDING}{target.name}")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed while we waited
        scratch.mkdir()
        try:
            with _workshop(source, wanted, scratch, waiting) as workshop:
                _build(source, wanted, request, workshop, scratch, progress)
            (scratch / "image").rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Image.open(target)


@contextlib.contextmanager
def _workshop(source: Source, wanted: recipe.Recipe, scratch: Path, waiting: Callable[[], object]) -> Iterator[Path]:
    """Yield the build directory: for a tree, the last build's one, locked; for a tarball, the scratch directory."""
    if source.is_tarball:
        yield scratch
        return
    key = hashlib.sha256(str(source.path).encode()).hexdigest()[:12]
    workshop = builds_dir() / f"{source.path.name}-{wanted.variant}-{key}"
    workshop.mkdir(exist_ok=True)
    with alone(workshop, waiting):
        _begin_anew(workshop, f"{wanted.key} {recipe.compiler()}")
        yield workshop


def _begin_anew(workshop: Path, made_by: str) -> None:
    """Where the last build was by another recipe, configure and describe again; make compiles what that changes."""
    last = workshop / "recipe"
    if last.is_file() and last.read_text() == made_by:
        return
    for name in (f"obj/{CONFIGURED}", f"obj/{TICKS}", DESCRIBED):
        (workshop / name).unlink(missing_ok=True)
    last.write_text(made_by)


def _sweep(directory: Path) -> None:
    """Remove the directories of builds that were killed: their locks are free."""
    for scratch in directory.glob(f"{BUILDING}*"):
        descriptor = os.open(lock_of(directory / scratch.name.removeprefix(BUILDING)), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    for removed in directory.glob(f"{REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)


def _build(
    source: Source, wanted: recipe.Recipe, request: Request, workshop: Path, scratch: Path, progress: Progress
) -> None:
    """Build in *workshop*; the finished image is the directory ``image`` in *scratch*."""
    obj = workshop / "obj"
    obj.mkdir(exist_ok=True)
    whole = bool(wanted.own) or not source.of_debian
    tree = unpack(source, scratch, whole=whole, progress=lambda files: progress("unpacking the source", files, 0))
    findings = corrections.examine(tree, wanted.faults)
    found = {one.fault.name: {"outcome": one.outcome, "why": one.why} for one in findings}
    _refuse_unknown(found, wanted, request)
    image = scratch / "image"
    image.mkdir()
    _configure(tree, obj, wanted, progress)
    corrections.put_copies(tree, obj, findings)
    prefixes = f"-ffile-prefix-map={tree}=/skblab -ffile-prefix-map={obj}=/skblab/obj"
    flags = f"KCFLAGS={' '.join(recipe.FLAGS)} {prefixes}"
    kernel = image / KERNEL
    with ThreadPoolExecutor(max_workers=2) as beside:  # copies files while make links and gdb reads
        kept = beside.submit(module.keep_tree, tree, image / SOURCE)
        progress("compiling the kernel", 0, OBJECTS)
        if not whole:
            _make(tree, obj, progress, flags, "modules_prepare")
            kept.result()
            try:
                with headers.precompiled(
                    tree, obj, partial(_make, tree, obj, progress, flags, *headers.MAKE_VARIABLES)
                ):
                    _make(tree, obj, progress, flags, *headers.MAKE_VARIABLES, "vmlinux")
            except BuildFailed as error:  # a newer kernel may have a file that does not take them
                progress(f"compiling again, without precompiled headers: {error.found.splitlines()[0]}", 0, 0)
                _make(tree, obj, progress, flags, "vmlinux")
        else:
            _make(tree, obj, progress, flags, "modules_prepare", "vmlinux")
        progress("indexing functions", 0, 0)
        shutil.copyfile(obj / "vmlinux", kernel)
        kernel.chmod(0o755)
        indexed = beside.submit(_index, image, kernel, Described(workshop / DESCRIBED, obj))
        unwound = beside.submit(unwind.ensure_table, image, obj / "vmlinux")
        kept.result()
        prune.copy_used(tree, obj, image / SOURCE)
        module.keep_build(obj, image / SOURCE)
        module.build_agent(image, tree, obj, workshop / "agent")
        indexed.result()
        members.ensure_members(image, kernel)  # by gdb, which starts faster with its index
        unwound.result()
    digest_file(image / SOURCE).write_text(f"{digest(image / SOURCE)}  {SOURCE}\n")
    os.utime(kernel)  # or gdb warns for every file that the source is newer
    shutil.copyfile(obj / ".config", image / CONFIG)
    manifest = {
        "series": source.series,
        "variant": wanted.variant,
        "release": (obj / "include/config/kernel.release").read_text().strip(),
        "recipe": wanted.key,
        "corrections": found,
        "files": describe_files(image),
    }
    (image / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _refuse_unknown(found: dict[str, dict[str, str]], wanted: recipe.Recipe, request: Request) -> None:
    """Refuse a source of which it is unknown whether it has a fault, unless the request accepts that.

    :raises BuildFailed: with what happens in a kernel that has the fault
    """
    does = {fault.name: fault.does for fault in wanted.faults}
    unknown = {name: about["why"] for name, about in found.items() if about["outcome"] == "unknown"}
    if not unknown or request.accept_uncorrected:
        return
    raise BuildFailed(
        f"it is unknown whether this source has faults that skblab corrects: {', '.join(unknown)}",
        found="\n".join(f"{name}: {why}\n  if it has the fault, {does[name]}" for name, why in unknown.items()),
        hint="add what this source has to src/skblab/image/corrections/, or build it as it is: --accept-uncorrected",
    )


def _index(image: Path, kernel: Path, described: Described) -> None:
    debuginfo.add_gdb_index(kernel)
    debuginfo.build_index(kernel, image / INDEX, described)


def _configure(tree: Path, obj: Path, wanted: recipe.Recipe, progress: Progress) -> None:
    """Write .config: no option but those that tinyconfig begins with, then the fragments, then olddefconfig.

    :raises BuildFailed: olddefconfig dropped an option of the user's fragments
    """
    progress("configuring", 0, 0)
    configured, config = obj / CONFIGURED, obj / ".config"
    if configured.exists():
        if _asks_anew(tree, obj / AUTO_CONF):
            _make(tree, obj, progress, "olddefconfig")
        return
    options = recipe.wanted_options((*wanted.fragments, *wanted.own))
    if "CONFIG_HZ" in options:
        (obj / TICKS).write_text(with_ticks((tree / "Kconfig").read_text()))
    yes = obj / ".skblab-yes"
    yes.write_text((tree / TINY).read_text() + "CONFIG_SLAB_MERGE_DEFAULT=y\n")  # SLUB's own default
    _make(tree, obj, progress, f"KCONFIG_ALLCONFIG={yes}", "allnoconfig")
    lines = [f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in options.items()]
    kept = [line for line in config.read_text().splitlines() if not recipe.parse_config(line).keys() & options.keys()]
    config.write_text("\n".join([*kept, *lines, ""]))
    _make(tree, obj, progress, "olddefconfig")
    missing = recipe.refused(options, recipe.parse_config(config.read_text()))
    if own := [f"{name}={options[name]}" for name in missing if name in recipe.wanted_options(wanted.own)]:
        raise BuildFailed(
            f"this kernel does not take: {', '.join(own)}",
            found=f"asked for in {', '.join(map(str, wanted.own))}",
            hint="it has no such option, or the option depends on others: make menuconfig, / lists them",
        )
    if missing:
        progress(f"this kernel does not take: {', '.join(missing)}", 0, 0)
    _refuse_concurrency(config)
    configured.touch()


def with_ticks(kconfig: str) -> str:
    """Return the top of a kernel's Kconfig files with HZ as an option, 100 by default.

    arch/um/Kconfig has it without a prompt; of several definitions, the first one's default counts.
    """
    title, newline, rest = kconfig.partition("\nsource ")
    option = 'config HZ\n\tint "Ticks of the timer in a second"\n\trange 24 1000\n\tdefault 100\n'
    return f"{title}\n{option}{newline}{rest}"


def _refuse_concurrency(config: Path) -> None:
    """Refuse a kernel in which another task could preempt the agent, or another CPU run it at the same time.

    :raises BuildFailed: it is preemptible, or SMP
    """
    options = recipe.parse_config(config.read_text())
    if found := [f"{name}=y" for name in CONCURRENT if options.get(name) == "y"]:
        raise BuildFailed(
            "skblab's agent wants a kernel that is neither preemptible nor SMP",
            found=", ".join(found),
            hint="\n".join(("in a fragment, --config FILE:", *(f"# {name} is not set" for name in CONCURRENT))),
        )


def _asks_anew(tree: Path, auto_conf: Path) -> bool:
    """Return whether make will read the Kconfig files again and may ask for options that .config lacks.

    It does if one of them is newer than its last output (scripts/kconfig/preprocess.c lists them beside it).
    """
    try:
        written_s = auto_conf.stat().st_mtime
        listed = KCONFIG_FILE.findall(auto_conf.with_name(f"{auto_conf.name}.cmd").read_text())
        return not listed or any((tree / file).stat().st_mtime > written_s for file in listed)
    except OSError:  # the last make ended earlier, or a file is gone
        return True


def _make(tree: Path, obj: Path, progress: Progress, *arguments: str) -> None:
    """Run make; it ends when this process ends, in whatever way.

    :raises BuildFailed: with make's and the compiler's own lines
    """
    argv = ["make", f"-j{JOBS}", "-C", str(tree), f"O={obj}", "ARCH=um", *arguments]
    if (obj / TICKS).exists():
        argv.append(f"KBUILD_KCONFIG={obj / TICKS}")
    make = process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, guarded=True)
    assert make.stdout is not None
    said: list[str] = []
    done = 0
    try:
        for raw in make.stdout:
            line = raw.decode(errors="replace").rstrip()
            said.append(line)
            if COMPILING.match(line):
                done += 1
                progress("compiling the kernel", done, OBJECTS)
            elif LINKING.match(line):
                progress("linking the kernel", 0, 0)
        status = make.wait()
    finally:
        process.end(make)
    if status:
        raise BuildFailed(f"make {arguments[-1]} failed in {tree}", found=trouble(said))


def trouble(said: list[str]) -> str:
    """Return the lines of a failed build that say why, with the line before each for context."""
    chosen = sorted(
        {at for index, line in enumerate(said) if TROUBLE.search(line) for at in (index, index + 1, index + 2)}
    )
    lines = [said[at] for at in chosen if at < len(said)] or said[-SHOWN_LINES:]
    return "\n".join(lines[:SHOWN_LINES])
