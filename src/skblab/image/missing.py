"""Explain why a function cannot be stopped at: it does not exist, or it was inlined, and into which functions."""

import json
from pathlib import Path

from skblab.errors import UnknownFunction
from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image.image import Image
from skblab.image.index import Function

IN_GDB = Path(__file__).with_name("missing_in_gdb.py")
SHOWN = 4
# The link's driver receives by NAPI with GRO, which passes packets on in lists (net/core/gro.c gro_normal_list()).
# These functions are for single packets and the loopback device.
NOT_OF_THE_LINK = {"netif_receive_skb", "netif_receive_skb_core", "netif_rx", "netif_rx_internal", "process_backlog"}
OF_THE_LINK = ("gro_receive_skb", "napi_gro_receive")  # 7.3 inlines the second (include/linux/netdevice.h)


def find_function(image: Image, name: str) -> Function:
    """Return the function of a name.

    :raises UnknownFunction: no function of that name has code of its own; the error says where it went
    """
    found = image.functions.lookup(name)
    if found is None:
        raise explain_missing(image, name)
    return found


def explain_missing(image: Image, name: str) -> UnknownFunction:
    """Return the error for a name without code of its own in *image*, for the caller to raise."""
    clones = image.functions.names(f"{name}.*")
    if clones:
        return UnknownFunction(f"{name}() was cloned by the compiler in Linux {image.release}",
                               found=f"its code is in: {', '.join(clones)}", hint=f"stop at {clones[0]}")  # fmt: skip
    places = inlined_into(image, name)
    if places:
        passed = [function for function, _ in places if function not in NOT_OF_THE_LINK]
        return UnknownFunction(
            f"{name}() was inlined in Linux {image.release}: it has no entry of its own",
            found=in_words(places),
            hint=f"stop at {passed[0]}"
            if passed
            else f"stop at {of_the_link(image)}: packets of the link do not pass {places[0][0]}",
        )
    near = image.functions.near(name)
    return UnknownFunction(
        f'no function "{name}" in Linux {image.release}', found=f"near: {', '.join(near)}" if near else ""
    )


def of_the_link(image: Image) -> str:
    """Return the first function that gets each packet of the link."""
    return next(name for name in OF_THE_LINK if image.functions.lookup(name))


def in_words(places: list[tuple[str, str]]) -> str:
    """Return the places where a function was inlined as text."""
    listed = [f"{function}() ({where})" for function, where in places[:SHOWN]]
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return f"inlined into {', '.join(listed)}{more}"


def inlined_into(image: Image, name: str) -> list[tuple[str, str]]:
    """Return the functions into which a function was inlined, each with its "file:line"; gdb finds them on demand."""
    if not name.isidentifier():
        return []
    gdb = find_gdb()
    done = process.run(
        [*gdb.argv, "-nx", "-batch", "-x", IN_GDB, image.kernel], env=gdb.env | {"SKBLAB_FUNCTION": name}, timeout_s=60
    )
    places: list[tuple[str, str, int]] = json.loads(done.stdout or "[]")
    in_order = sorted(places, key=lambda place: place[1:])  # gdb's order depends on the build's paths
    return [(function, f"{file}:{line}") for function, file, line in in_order]
