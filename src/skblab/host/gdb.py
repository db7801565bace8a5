"""Find the gdb to use: the wheel's GDB 18 if it is installed, else the system's."""

import functools
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from skblab.errors import MissingPrerequisite


@dataclass(frozen=True)
class Gdb:
    """How to start a gdb that has Python.

    ``argv`` is the command without skblab's options, ``env`` the whole environment that it needs.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    origin: str


def directory() -> Path | None:
    """Return the working directory for gdb: None for the current one, "/" if that has no name.

    gdb cannot find its own files from a working directory that was deleted or is hidden by another mount.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        return Path("/")
    return None


@functools.cache
def find_gdb() -> Gdb:
    """Return the gdb to use: the one that ``$SKBLAB_GDB`` names, else the wheel's, else the system's.

    The wheel's launcher is a Python script and costs the start of a second interpreter; this does the same without it.

    :raises MissingPrerequisite: there is no gdb
    """
    chosen = os.environ.get("SKBLAB_GDB")
    if find_spec("gdb_for_pwndbg") and not chosen:
        from gdb_for_pwndbg import gdb as wheel  # noqa: PLC0415 - only where it is installed

        try:
            wheel.check_lib_python()
        except (NotImplementedError, RuntimeError, OSError):
            pass  # without a shared libpython the wheel's gdb cannot run; the system's can
        else:
            env = os.environ | {
                "PYTHONNOUSERSITE": "1",
                "PYTHONHOME": f"{sys.prefix}:{sys.exec_prefix}",
                "PYTHONPATH": ":".join(path for path in sys.path if path),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            return Gdb((str(wheel.gdb_path), "--data-directory", str(wheel.data_path)), env, "wheel")
    system = shutil.which(chosen or "gdb")
    if system is None:
        what = f"SKBLAB_GDB={chosen}: no such program" if chosen else "no gdb: neither the wheel nor the system's"
        raise MissingPrerequisite(what, hint="unset SKBLAB_GDB" if chosen else "apt-get install gdb")
    package_root = Path(__file__).resolve().parents[2]
    return Gdb((system,), os.environ | {"PYTHONPATH": str(package_root)}, "system")
