"""A lab's description is data: checked where it is made, the same in another process."""

import dataclasses
import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from skblab import strategies
from skblab.errors import UsageError
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.saved import SavedRun
from skblab.spec import LabFields, LabSpec
from skblab.sweep.cell import Scenario
from skblab.trace.tracer import TraceSpec


@pytest.mark.parametrize("fields", [{}, {"root": "host", "commands": ["x"]}, {"link": "veth"}, {"link": ["a,tap", "b"]},
                                    {"image": Path("here")}, {"kernel_arguments": ["a=b"]}])  # fmt: skip
def test_it_is_pickled(fields: LabFields) -> None:
    spec = LabSpec(**fields)
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert hash(again) == hash(spec)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LabSpec().root = "host"  # type: ignore[misc]


def test_an_open_image_is_named_by_its_directory(image: Image) -> None:
    assert image.functions.all()  # a connection to a database, which cannot be pickled
    spec = LabSpec(image=image)
    assert pickle.loads(pickle.dumps(spec)).image_path == image.path


def test_paths_are_the_same_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    spec, disks = LabSpec(root="root"), LabSpec(disks=["a.cow,b.ext4"])
    monkeypatch.chdir("/")
    assert spec.root_directory == tmp_path / "root"
    assert [(one.file, one.backing) for one in disks.parsed_disks()] == [(tmp_path / "a.cow", tmp_path / "b.ext4")]


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "host", "disks": ["a"]}, {"root": "/nonesuch"}, {"steps_bytes": 3 << 20}, {"steps_bytes": 1 << 40},
        {"consoles": 16}, {"consoles": -1}, {"lease_s": -1.0}, {"lease_s": 1e9}, {"commands": ["x"]},
        {"root": "x" * 300}, {"root": "a\0b"}, {"root": "\ud800"}, {"modules": ["x" * 300]}, {"modules": ["a\0b"]},
        {"modules": ["/nonesuch.ko"]}, {"time": "vrtual"}, {"clock": "x"}, {"memory_mib": "64"}, {"memory_mib": 64.5},
        {"root": "host", "commands": "x"}, {"kernel_arguments": "quiet"}, {"modules": "x"}, {"disks": "x"},
        {"time": "virtual", "nodes": "a"}, {"disks": ["a,b,c"]}, {"from_boot": True, "root": "host", "commands": ["x"]},
    ],
)  # fmt: skip
def test_it_is_checked_where_it_is_made(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LabSpec(**fields)
    with pytest.raises(UsageError):
        Lab(**fields)


def test_a_labs_keywords_are_its_fields() -> None:
    assert get_type_hints(LabFields) == get_type_hints(LabSpec)


def test_a_lab_is_started_from_it(image: Image) -> None:
    spec = LabSpec(image=image, root="host")
    with spec.start(f"of-a-spec-{os.getpid()}") as lab:
        assert lab.spec is spec
        assert lab.guest.run(["cat", "/proc/sys/kernel/osrelease"]).stdout.strip() == image.release
    with pytest.raises(UsageError, match="by a LabSpec or by its fields"):
        Lab(spec=spec, root="host")


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"cannot use .*/loop") as refused:
        LabSpec(root=str(tmp_path / "loop"))
    assert refused.value.found == os.strerror(errno.ELOOP)


@pytest.mark.parametrize(
    "made",
    [
        lambda: TraceSpec(patterns="ip_rcv"),
        lambda: TraceSpec(fields="mark"),
        lambda: Scenario(spec=LabSpec(time="virtual"), client="curl"),  # type: ignore[arg-type]
        lambda: Scenario(spec=LabSpec(time="virtual"), client=("curl",), at="ip_rcv"),  # type: ignore[arg-type]
        lambda: SavedRun(spec=LabSpec(), client=("ping",), rules="icmp_rcv = drop"),  # type: ignore[arg-type]
        lambda: strategies.faults("ip_rcv"),
    ],
)
def test_a_string_is_no_list(made: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="is a list, not one string"):
        made()
