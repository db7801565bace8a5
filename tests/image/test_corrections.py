"""The faults of User Mode Linux are corrected in the kernels that are booted here, and a source says which it has."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image import recipe
from skblab.image.corrections import FAULTS, Fault, examine, put_copies
from skblab.image.corrections.fault import Change, Correction
from skblab.image.image import SOURCE, Image
from skblab.image.recipe import SERIES, recipe_for
from skblab.image.store import find_image
from support import skblab

# An image keeps constants, but not the files that only generate them.
CONSTANTS = {"user-offsets.c": (Path("include/generated/user_constants.h"), "/* 12288 / sizeof(unsigned long) */")}
TIME = Path("arch/um/os-Linux/time.c")
IRQ = Path("arch/um/os-Linux/irq.c")
PATCH = Path(__file__).resolve().parents[2] / "docs/upstream/um-idle-lost-wakeups.patch"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.variant], ids=lambda one: one.name)
def test_each_is_corrected_in_the_kernels_that_have_it(fault: Fault) -> None:
    applied = set()
    for series in SERIES:
        image = find_image(series)
        sought = [one for one in recipe_for(series, "default").faults if one.name == fault.name]
        if not sought:  # it was never in such a kernel
            continue
        (finding,) = examine(image.path / SOURCE, sought)
        assert image.corrections[fault.name] == {"outcome": finding.outcome, "why": finding.why}
        assert finding.outcome in {"applied", "not needed"}
        for change in finding.changes:
            file, text = CONSTANTS.get(change.file.name, (change.file, change.new))
            assert text in (image.path / SOURCE / "obj" / file).read_text()
        applied.add(finding.changes)
    for correction in fault.corrections:
        assert correction.changes in applied  # or no kernel needs it any more


@pytest.fixture
def source(image: Image, tmp_path: Path) -> Path:
    """The files of the default kernel's source that corrections concern, to be changed."""
    files = {change.file for fault in FAULTS for one in fault.corrections for change in one.changes}
    for file in files | {sign.file for fault in FAULTS for sign in fault.absent}:
        if (image.path / SOURCE / file).is_file():
            (tmp_path / "source" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image.path / SOURCE / file, tmp_path / "source" / file)
    return tmp_path / "source"


def outcomes(source: Path) -> dict[str, str]:
    return {one.fault.name: one.outcome for one in examine(source, recipe_for("6.12", "default").faults)}


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda source: change(source / TIME, "timer_gettime(event_high_res_timer", "timer_gettime(another_timer"),
        lambda source: (source / TIME).unlink(),
    ],
    ids=["its text is another", "the file is gone"],
)
def test_a_source_in_which_no_correction_fits_is_unknown(source: Path, spoil: Callable[[Path], None]) -> None:
    assert set(outcomes(source).values()) == {"applied"}
    spoil(source)
    assert outcomes(source).pop("lost wake-ups") == "unknown"


def test_a_source_that_is_corrected_in_part_is_unknown(source: Path) -> None:
    change(
        source / "arch/um/os-Linux/signal.c", "static unsigned int signals_pending;", "unsigned int signals_pending;"
    )
    assert outcomes(source)["lost wake-ups"] == "unknown"


def test_a_source_that_is_corrected_needs_nothing(source: Path, tmp_path: Path) -> None:
    faults = recipe_for("6.12", "default").faults
    put_copies(source, source, examine(source, faults))
    assert set(outcomes(source).values()) == {"not needed"}
    obj = tmp_path / "obj"
    put_copies(source, obj, examine(source, faults))
    assert not list(obj.rglob("*.c"))


def test_a_copy_of_the_last_build_does_not_outlive_its_reason(source: Path, tmp_path: Path) -> None:
    """It would be compiled in place of what a developer has corrected since."""
    faults = recipe_for("6.12", "default").faults
    findings = examine(source, faults)
    put_copies(source, tmp_path / "obj", findings)
    assert (tmp_path / "obj" / IRQ).is_file()
    put_copies(source, tmp_path / "obj", [one for one in findings if one.fault.name != "lost wake-ups"])
    assert not (tmp_path / "obj" / IRQ).exists()
    assert (tmp_path / "obj/arch/um/kernel/tlb.c").is_file()


def test_the_image_says_which_there_are(every_image: Image) -> None:
    done = skblab("image", "build", "--series", every_image.series)
    assert done.stdout == f"{every_image.path}\n"
    said = dict(line.removeprefix("corrections ").split(": ") for line in done.stderr.splitlines())
    expected = {name: about["outcome"] for name, about in every_image.corrections.items()}
    assert {name: outcome for outcome, names in said.items() for name in names.split(", ")} == expected


def test_a_correction_for_newer_kernels_leaves_older_images_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {series: recipe_for(series, "default").key for series in ("6.12", "6.18")}
    newer = Correction((Change(TIME, "a", "b"),), since=(6, 13))
    more = [replace(fault, corrections=(*fault.corrections, newer)) for fault in FAULTS]
    monkeypatch.setattr(recipe, "FAULTS", (*more, Fault("another", "it is another", (newer,))))
    assert recipe_for("6.12", "default").key == keys["6.12"]
    assert recipe_for("6.18", "default").key != keys["6.18"]


def test_the_patch_for_upstream_is_the_correction(tmp_path: Path) -> None:
    """The text to be mailed applies to 7.3's own source, and makes the same of it."""
    image = find_image("7.3")
    (finding,) = (one for one in examine(image.path / SOURCE, recipe_for("7.3", "default").faults)
                  if one.fault.name == "lost wake-ups")  # fmt: skip
    files = sorted({change.file for change in finding.changes})
    patched, corrected = tmp_path / "patched", tmp_path / "corrected"
    for file in files:
        (patched / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image.path / SOURCE / file, patched / file)
    done = process.run(["git", "-C", patched, "apply", "--verbose", PATCH], timeout_s=10)
    assert done.returncode == 0, done.stderr
    put_copies(image.path / SOURCE, corrected, [finding])
    assert [(patched / file).read_text() for file in files] == [(corrected / file).read_text() for file in files]
