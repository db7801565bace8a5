"""What ``make setup`` says without apt, or with an old Python; and no service that it installs starts."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from skblab.host import process
from support import unshared

CHECKOUT = Path(__file__).resolve().parents[1]
SETUP = CHECKOUT / "tools" / "setup"
PROGRAMS = ("sh", "dirname", "id", "gcc", "ld", "make", "objcopy", "bison", "bc", "xz", "setpriv", "ping")

# A package with a service, and one that was there before; what asks the policy, and what would have it start at boot.
APT = """
[ "$1" = install ] || exit 0
/usr/sbin/policy-rc.d new start
echo "the policy says $?"
touch /lib/systemd/system/new.service /lib/systemd/system/new@.service /etc/init.d/new
exit 7
"""
SAYS = 'echo "$(basename "$0") $*"'


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a distribution without apt, and without flex."""
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, name
        (tmp_path / name).symlink_to(found)
    (tmp_path / "python3").symlink_to(sys.executable)
    return {"PATH": str(tmp_path), "HOME": str(tmp_path)}


def test_without_apt_it_names_the_packages_and_stops(elsewhere: dict[str, str]) -> None:
    done = process.run(["sh", SETUP], env=elsewhere, timeout_s=30)
    assert done.returncode == 1
    assert "there is no apt-get here, and these programs are missing: flex" in done.stderr
    assert "install the packages that contain them" in done.stderr


def test_an_old_python_is_refused(elsewhere: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = process.run(["sh", SETUP], env=elsewhere | {"PYTHON": str(old)}, timeout_s=30)
    assert done.returncode == 1
    assert "is not Python 3.11 or newer" in done.stderr
    assert "make setup PYTHON=" in done.stderr


def test_what_only_developers_need_comes_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".uv").symlink_to(CHECKOUT / ".uv")
    for name in ("tools", "src", "kernel"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        shutil.copyfile(CHECKOUT / name, tmp_path / name)
    tools = [tmp_path / ".venv/bin" / name for name in ("skblab", "pytest")]
    for words, made, there in (
        (["--no-dev"], "setup: making .venv\n", [True, False]),
        (["--no-dev"], "", [True, False]),
        ([], "setup: making .venv\n", [True, True]),
        (["--no-dev"], "", [True, True]),
    ):
        done = process.run(["sh", tmp_path / "tools/setup", *words], timeout_s=100)
        assert (done.returncode, done.stdout) == (0, made), done.stderr
        assert [tool.exists() for tool in tools] == there


def installed(tmp_path: Path, *before: str) -> str:
    """Install a package that is not there, where apt is a script; return what is said."""
    for name in ("bin", "tools", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copyfile(SETUP, tmp_path / "tools/setup")
    scripts = {"apt-get": APT, "dpkg-query": "", "deb-systemd-helper": SAYS, "update-rc.d": SAYS}
    for name, script in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    places = [f"mount -t tmpfs none {place}" for place in ("/usr/sbin", "/lib/systemd/system", "/etc/init.d")]
    path = f"export PATH={tmp_path}/bin:/usr/bin:/bin PYTHON={sys.executable}"
    done = unshared(
        *places, path, "touch /lib/systemd/system/newer.service", *before,
        then=["sh", "-c", f"sh {tmp_path}/tools/setup server 2>&1; ls /usr/sbin /etc/init.d"],
    )  # fmt: skip
    return done.stdout + done.stderr


def test_no_service_of_a_new_package_starts(tmp_path: Path) -> None:
    """Neither now nor at the next boot; and nothing of that stays, where apt fails, too."""
    said = installed(tmp_path, f"sed -i 's,>/dev/null 2>&1 # of those,# of those,' {tmp_path}/tools/setup")
    assert "the policy says 101" in said
    assert said.endswith("/usr/sbin:\n")
    assert re.findall(r"^(?:deb-systemd-helper|update-rc.d) .*$", said, re.MULTILINE) == [
        "update-rc.d new disable",
        "deb-systemd-helper disable new.service",
    ]


def test_a_policy_of_this_machine_that_lets_services_start(tmp_path: Path) -> None:
    said = installed(tmp_path, "echo exit 0 >/usr/sbin/policy-rc.d", "chmod 755 /usr/sbin/policy-rc.d")
    assert "lets services start; install these packages yourself: " in said
    assert "the policy says" not in said
    assert "policy-rc.d" in said.partition("/usr/sbin:")[2]
