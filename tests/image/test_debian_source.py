"""A kernel's source is got from Debian's archive, signed, and this machine stays as it is."""

from pathlib import Path

import pytest

from skblab.errors import MissingPrerequisite, UsageError
from skblab.host import process
from skblab.image import debian
from skblab.image.debian import SUITES, get_source
from skblab.image.source import find_source
from support import skblab

OF_APT = (Path("/etc/apt"), Path("/var/lib/apt"), Path("/var/cache/apt"), Path("/var/lib/dpkg/status"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def machines_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine whose apt uses this mirror, and a repository that is not Debian's before it."""
    mirror = debian.DEBIANS_OWN.replace(".org", ".org:80")
    (tmp_path / "sources.list").write_text(
        f"deb [trusted=yes] file:{tmp_path}/another stable main\ndeb {mirror} bookworm main\n"
    )
    (tmp_path / "apt.conf").write_text(f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "-";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return mirror


def state_of_apt() -> dict[Path, tuple[int, int]]:
    paths = [path for one in OF_APT for path in (one, *one.rglob("*"))]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_source_is_got_once_and_kept(cache: Path, machines_mirror: str) -> None:
    before = state_of_apt()
    said: list[str] = []
    path = get_source("7.3", said.append)
    assert said[1:] == [f"getting linux-source-7.3 of {SUITES[0]}, to {cache / 'sources'}"]
    assert said[0].startswith(f"asking {machines_mirror} for kernels of Debian's {SUITES[0]}; ")
    assert process.run(["xz", "--list", path]).returncode == 0
    assert find_source("7.3").path == path
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert get_source("7.3", said.append) == path
    assert len(said) == 2  # the second time nothing is got
    assert state_of_apt() == before


@pytest.mark.timeout(300)
def test_a_kernel_that_debian_does_not_have(cache: Path) -> None:
    done = skblab("image", "build", "--series", "5.99", timeout_s=250)
    assert done.returncode == 3
    assert "Debian has no source of Linux 5.99\n  it has: " in done.stderr
    assert all(f"6.12 ({SUITES[1]})" in line for line in done.stderr.splitlines() if "it has" in line)
    assert "--source" in done.stderr
    assert list((cache / "sources").iterdir()) == []


def test_a_signature_that_is_not_debians_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where this machine's own apt asks for no signature."""
    (tmp_path / "apt.conf").write_text(
        'Acquire::AllowInsecureRepositories "true";\nAPT::Get::AllowUnauthenticated "true";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(debian, "KEYRING", Path("/usr/share/keyrings/debian-archive-removed-keys.gpg"))
    with pytest.raises(MissingPrerequisite, match="cannot get a kernel's source") as caught:
        get_source("7.3")
    assert "NO_PUBKEY" in caught.value.found
    assert list((cache / "sources").iterdir()) == []


def test_without_debians_keyring_nothing_is_got(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "KEYRING", Path("/nonexistent/keyring.gpg"))
    with pytest.raises(MissingPrerequisite, match="Debian's signature cannot be checked"):
        get_source("7.3")
    assert not cache.exists()


@pytest.mark.parametrize("series", ["newest", "../6.12", "6.12.117"])
def test_what_is_no_series(cache: Path, series: str) -> None:
    with pytest.raises(UsageError, match="no kernel series"):
        get_source(series)
    assert not cache.exists()
