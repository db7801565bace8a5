"""Precompile the kernel's headers: three quarters of a kernel's compile time is parsing them again and again.

gcc takes a precompiled header only for the first include of a file, which in a kernel build is
``-include include/linux/compiler-version.h``, and only if no name in it is a macro on the command line (gcc's manual,
"Using Precompiled Headers"). kbuild's ``-DKBUILD_MODNAME=...`` differs from file to file. So kbuild is made to define
other names, and the header pastes them together, where gcc does not see them as one name.

A file that is compiled with other flags, or in another language, is compiled as without. This is only for a source of
Debian's that was unpacked for the build: a developer's tree is not written to, and its headers may have any content.
"""

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skblab.host import process

log = logging.getLogger(__name__)

FIRST = Path("include/linux/compiler-version.h")
# No header that uses KBUILD_MODNAME outside a macro, as net/tcp.h does (net/flow_offload.h).
HEADERS = (
    "linux/kconfig.h", "linux/compiler_types.h",  # kbuild's own, before the file's
    "linux/kernel.h", "linux/module.h", "linux/sched.h", "linux/mm.h", "linux/fs.h", "linux/slab.h", "linux/skbuff.h",
    "linux/netdevice.h", "linux/rtnetlink.h", "linux/inetdevice.h", "linux/seq_file.h", "linux/proc_fs.h", "net/sock.h",
    "net/ip.h", "net/ipv6.h", "net/udp.h", "net/route.h", "net/ip6_route.h", "net/netlink.h", "net/genetlink.h",
    "net/xfrm.h", "linux/netfilter.h", "net/addrconf.h",
)  # fmt: skip
# SKBLAB_PLAIN, where it is defined, keeps gcc from taking the precompiled header.
PASTED = """
#if !defined(KBUILD_MODNAME) && !defined(SKBLAB_PLAIN)
#define KBUILD_MODFILE SKBLAB_MOD ## FILE
#define KBUILD_BASENAME SKBLAB_BASE ## NAME
#define KBUILD_MODNAME SKBLAB_MOD ## NAME
#define __KBUILD_MODNAME SKBLAB__MOD ## NAME
#endif
"""
# scripts/Makefile.lib's, with other names. lib/sort.c has a parameter that is named as a macro of linux/minmax.h; 7.3's
# kernel/sched/core.c, softirq.c and rseq.c define macros before their first include, for headers.
PLAIN = "$(filter lib lib/% kernel kernel/sched,$(obj))"
MODNAME = "MODNAME=$(call name-fix,$(modname))"
_MODNAME = "_MODNAME=kmod_$(call name-fix-token,$(modname))"
BASENAME = "BASENAME=$(call name-fix,$(basetarget))"
MODFILE = "MODFILE=$(call stringify,$(modfile))"
MAKE_VARIABLES = (
    f"basename_flags=$(if {PLAIN},-DSKBLAB_PLAIN -DKBUILD_{BASENAME},-DSKBLAB_{BASENAME})",
    f"modname_flags=$(if {PLAIN},-DKBUILD_{MODNAME} -D__KBUILD{_MODNAME},-DSKBLAB_{MODNAME} -DSKBLAB_{_MODNAME})",
    f"modfile_flags=$(if {PLAIN},-DKBUILD_{MODFILE},-DSKBLAB_{MODFILE})",
)
SAMPLE = Path("net/core/utils.o")  # compiled with the flags of nearly all files


@contextmanager
def precompiled(tree: Path, obj: Path, make: Callable[[str], None]) -> Iterator[None]:
    """Have the files that *make* compiles meanwhile take a precompiled header; afterwards *tree* is as it was.

    :param make: makes a target in *obj*, with MAKE_VARIABLES
    """
    first = tree / FIRST
    text = first.read_text()
    gch = first.with_name(f"{first.name}.gch")
    _replace(first, text + PASTED)
    try:
        make(str(SAMPLE))
        _precompile(obj, gch)
        yield
    finally:
        gch.unlink(missing_ok=True)
        _replace(first, text)


def _replace(path: Path, text: str) -> None:
    """Replace a file, which may be a link to one that others have."""
    path.unlink()
    path.write_text(text)


def _precompile(obj: Path, gch: Path) -> None:
    """Compile the headers as the sample was compiled, which has written its command line."""
    all_headers = obj / "skblab-headers.h"
    all_headers.write_text("".join(f"#include <{name}>\n" for name in ("linux/compiler-version.h", *HEADERS)))
    record = (obj / SAMPLE.with_name(f".{SAMPLE.name}.cmd")).read_text().partition("\n")[0]
    sources = SAMPLE.with_suffix(".c")
    words = iter(shlex.split(record.partition(":=")[2]))
    command = []
    for word in words:
        if word in ("-include", "-o"):
            next(words)
        elif word != "-c" and not word.startswith(("-Wp,-MMD", "-DSKBLAB_")) and not word.endswith(f"/{sources}"):
            command.append(word)
    done = process.run([*command, "-x", "c-header", "-o", gch, all_headers], cwd=obj)
    if done.returncode:  # the build takes longer, and is the same
        gch.unlink(missing_ok=True)
        log.warning("the headers cannot be precompiled: %s", done.stderr)
