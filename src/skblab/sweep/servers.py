"""The servers of a guest: where it listens, as /proc/net/tcp and /proc/net/udp have it."""

import contextlib

from skblab.errors import GuestCommandFailed
from skblab.lab import Lab

FILES = ("tcp", "udp", "tcp6", "udp6")
STATES = {"0A": "tcp", "07": "udp"}  # include/net/tcp_states.h: TCP_LISTEN; TCP_CLOSE, of a UDP socket without a peer
FIRST_CHOSEN = 32768  # by the kernel, for clients (net.ipv4.ip_local_port_range)


def listening(lab: Lab) -> tuple[str, ...]:
    """Return where a guest and its nodes listen: ``guest tcp 80``.

    :raises subprocess.TimeoutExpired: it does not answer
    """
    found: set[str] = set()
    for node in ("", *lab.spec.nodes):
        for file in FILES:
            with contextlib.suppress(GuestCommandFailed):  # a kernel without IPv6, a disk without /proc
                said = lab.guest.read(f"/proc/self/net/{file}", node=node, timeout_s=10).decode()
                found.update(f"{node or 'guest'} {one}" for one in parse(said))
    return tuple(sorted(found))


def parse(text: str) -> set[str]:
    """Return where these files say that somebody listens: ``tcp 80``."""
    found = set()
    for line in text.splitlines():
        _, address, _, state, *_ = [*line.split(), "", "", "", ""]
        port = address.rpartition(":")[2]
        if state in STATES and 0 < int(port, 16) < FIRST_CHOSEN:
            found.add(f"{STATES[state]} {int(port, 16)}")
    return found
