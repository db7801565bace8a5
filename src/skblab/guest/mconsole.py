"""UML's management console: datagrams to and from the guest kernel (arch/um/drivers/mconsole.h)."""

import enum
import socket
import struct
from dataclasses import dataclass

MAGIC = 0xCAFEBABE
VERSION = 2
REQUEST = struct.Struct("<III512s")
REPLY_HEAD = struct.Struct("<III")
NOTIFY_HEAD = struct.Struct("<IIiI")


class Kind(enum.IntEnum):
    """What a notification tells (enum in mconsole.h)."""

    SOCKET = 0
    PANIC = 1
    HANG = 2
    USER = 3


@dataclass(frozen=True, slots=True)
class Notification:
    """One datagram from the guest kernel: it opened its mconsole, it panics, or a process wrote to /proc/mconsole."""

    kind: Kind
    text: str


def parse_notification(datagram: bytes) -> Notification:
    """Decode one notification.

    :raises ValueError: not one
    """
    if len(datagram) < NOTIFY_HEAD.size:
        raise ValueError(f"mconsole notification of {len(datagram)} bytes")
    magic, version, kind, length = NOTIFY_HEAD.unpack_from(datagram)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"mconsole notification with magic {magic:#x}, version {version}")
    data = datagram[NOTIFY_HEAD.size : NOTIFY_HEAD.size + length]
    return Notification(Kind(kind), data.rstrip(b"\0").decode(errors="replace"))


def command(channel: socket.socket, text: str, *, timeout_s: float = 5.0) -> tuple[bool, str]:
    """Send one command and return whether it was done, and the answer's text.

    *channel* is a bound datagram socket connected to the guest's mconsole.

    :raises TimeoutError: no answer; a guest that is stopped gives none
    """
    channel.settimeout(timeout_s)
    channel.send(REQUEST.pack(MAGIC, VERSION, len(text), text.encode()))
    answer = []
    while True:
        datagram = channel.recv(1 << 16)
        error, more, length = REPLY_HEAD.unpack_from(datagram)
        answer.append(datagram[REPLY_HEAD.size : REPLY_HEAD.size + length].rstrip(b"\0").decode(errors="replace"))
        if not more:
            return not error, "".join(answer)
