"""What is different between two images: options, source files, functions."""

import difflib
import filecmp
from dataclasses import dataclass
from pathlib import Path

from skblab.image.image import Image
from skblab.image.recipe import parse_config

# Made by the build anew each time, or a copy of what is compared by itself.
NO_SOURCE = ("obj", "scripts")


@dataclass(frozen=True, slots=True)
class SourceChange:
    """A source file that both or one of two images were built from; lines that came and went."""

    file: str
    added: int
    removed: int
    patch: str


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """What is different. *options*: CONFIG_X -> its two values, ``n``: not set. Functions by their signatures."""

    options: dict[str, tuple[str, str]]
    sources: tuple[SourceChange, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.options or self.sources or self.new or self.gone)


def compare(old: Image, new: Image) -> ImageDifference:
    """Compare two images. A source file counts where a kernel was built from it; generated ones do not."""
    ours, theirs = (parse_config(image.config_text()) for image in (old, new))
    before, after = ({function.signature for function in image.functions.all()} for image in (old, new))
    return ImageDifference(
        options={
            name: (ours.get(name, "n"), theirs.get(name, "n"))
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name, "n") != theirs.get(name, "n")
        },
        sources=tuple(_source_changes(old.source, new.source)),
        new=tuple(sorted(after - before)),
        gone=tuple(sorted(before - after)),
    )


def _source_changes(old: Path, new: Path) -> list[SourceChange]:
    files = sorted(_files(old) | _files(new))
    return [
        _change(file, old / file, new / file)
        for file in files
        if not (_is_file(old / file) and _is_file(new / file) and filecmp.cmp(old / file, new / file, shallow=False))
    ]


def _files(source: Path) -> set[str]:
    found = set()
    for top in source.iterdir():
        if top.name not in NO_SOURCE:
            found |= {path for path in (top, *top.rglob("*")) if _is_file(path)}
    return {str(path.relative_to(source)) for path in found}


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _change(file: str, old: Path, new: Path) -> SourceChange:
    before, after = (
        path.read_text(errors="replace").splitlines(keepends=True) if _is_file(path) else [] for path in (old, new)
    )
    lines = list(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}"))
    return SourceChange(
        file,
        added=sum(line.startswith("+") for line in lines[2:]),
        removed=sum(line.startswith("-") for line in lines[2:]),
        patch="".join(lines),
    )
