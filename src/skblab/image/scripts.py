"""The kernel's own gdb commands (scripts/gdb, lx-...), prepared for an image when they are first needed."""

import shutil
import tempfile
from pathlib import Path

from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image.image import KERNEL, SOURCE
from skblab.image.module import build_module

DIRECTORY, LOADER = "gdb-scripts-2", "vmlinux-gdb.py"
TEMPLATE = "constants.py.in"
IN_GDB = Path(__file__).with_name("constants_in_gdb.py")
TIMEOUT_S = 120.0
# As in scripts/gdb/linux/Makefile; here in the directory of an external module.
KBUILD = """\
quiet_cmd_gen_constants_py = GEN     $@
      cmd_gen_constants_py = \\
	$(CPP) -E -x c -P $(c_flags) $< > $@ ;\\
	sed -i '1,/<!-- end-c-headers -->/d;' $@
always-y += constants.py
$(obj)/constants.py: $(src)/constants.py.in FORCE
	$(call if_changed,gen_constants_py)
"""


def ensure_scripts(image: Path) -> Path:
    """Return the file for gdb to source; make it first if it does not exist, because it needs generated constants.

    :raises BuildFailed: the compiler refused
    :raises OSError: the image has no such scripts, or its directory cannot be written
    """
    target = image / DIRECTORY
    if not target.is_dir():
        scripts = image / SOURCE / "scripts/gdb"
        with tempfile.TemporaryDirectory(dir=image, prefix=f".{DIRECTORY}-") as made:
            loader = Path(made, "all", LOADER)
            package = loader.parent / "scripts/gdb/linux"
            shutil.copytree(scripts / "linux", package)
            shutil.copyfile(scripts / LOADER, loader)
            kbuild = Path(made, "kbuild")
            kbuild.mkdir()
            kbuild.joinpath("Kbuild").write_text(KBUILD)
            shutil.copyfile(scripts / "linux" / TEMPLATE, kbuild / TEMPLATE)
            build_module(image, kbuild)
            constants = package / "constants.py"
            shutil.copyfile(kbuild / constants.name, constants)
            gdb = find_gdb()
            argv: list[process.Argument] = [*gdb.argv, "-nx", "-batch", "-x", IN_GDB, image / KERNEL]
            process.run(argv, env=gdb.env | {"SKBLAB_CONSTANTS": str(constants)}, timeout_s=TIMEOUT_S)
            if not target.is_dir():
                loader.parent.rename(target)
    return target / LOADER
