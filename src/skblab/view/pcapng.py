"""A trace as pcapng: an interface for each function, a packet for each step, the kernel's facts as its comment.

Wireshark, tshark and all that is built on libpcap read it (draft-ietf-opsawg-pcapng). A packet's bytes are its first
ones as they were at the step, from its network header on. The Ethernet header before them is made up: it is empty but
for the protocol. Every interface has it, for libpcap refuses interfaces of different link types, and raw IP after the
first interface, too (sf-pcapng.c pcap_ng_next_packet()).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from skblab import files
from skblab.errors import TraceError
from skblab.trace.journey import is_readable
from skblab.trace.model import Kin, Step, Trace, TracedFunction
from skblab.trace.words import fields_of, kin_in_words, reason_in_words, value_in_words

LINKTYPE_ETHERNET = 1
SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER, VERSION = 0x1A2B3C4D, (1, 0)
COMMENT, NAME, DESCRIPTION, TIME_RESOLUTION = 1, 2, 3, 9
OS, APPLICATION = 3, 4
NANOSECONDS = b"\x09"
SNAP_BYTES = 262144
MOST, MOST_OPTION = 0xFFFFFFFF, 0xFFFF  # of 32 and of 16 bits


def write_pcapng(trace: Trace, path: Path) -> int:
    """Write the steps of network packets to a new file; return their number.

    :raises TraceError: no step has a network packet
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    steps = [step for step in trace.steps if is_readable(step)]
    if not steps:
        raise TraceError("no step of this trace has a network packet")
    with files.whole(path, new=True) as file:
        for block in _blocks(trace, steps):
            file.write(block)
    return len(steps)


def _blocks(trace: Trace, steps: list[Step]) -> Iterator[bytes]:
    clock = trace.about["clock"]
    to_realtime_ns = clock["realtime_ns"] - clock["monotonic_ns"]
    yield _block(
        SECTION,
        struct.pack("<IHHq", BYTE_ORDER, *VERSION, -1),
        [(OS, f"Linux {trace.about['release']}"), (APPLICATION, "skblab")],
    )
    interfaces: dict[str, int] = {}
    kin_of: dict[int, list[Kin]] = {}
    for kin in trace.kin:
        kin_of.setdefault(kin.call, []).append(kin)
    for step in steps:
        name = step.function.name
        if name not in interfaces:
            interfaces[name] = len(interfaces)
            yield _interface(step.function)
        header = bytes(12) + struct.pack(">H", step.protocol)
        data = header + step.data
        length = min(max(len(header) + step.length + step.data_offset, len(data)), MOST)
        at_ns = step.at_ns + to_realtime_ns
        body = struct.pack("<IIIII", interfaces[name], at_ns >> 32, at_ns & 0xFFFFFFFF, len(data), length)
        facts = comment(trace, step, kin_of.get(step.call, []))
        yield _block(PACKET, body + data + bytes(-len(data) % 4), [(COMMENT, facts)])


def comment(trace: Trace, step: Step, kin: list[Kin]) -> str:
    """Return the kernel's facts about a packet at a step, in one line."""
    said = [f"packet {step.packet}", f"skb {step.skb:#x}", f"len {step.length}"]
    if step.device:
        said.append(f"dev {step.device}")
    said += [f"{name} {value:#x}" for name, value in (("mark", step.mark), ("hash", step.hash)) if value]
    said += [f"{name} {value}" for name, value in fields_of(trace, step).items()]
    said.append(f"caller {step.caller:#x}")
    if step.took_ns is not None:
        said.append(f"took {step.took_ns} ns")
    if value := value_in_words(step):
        said.append(f"returned {value}")
    if reason := reason_in_words(trace, step):
        said.append(f"drop {reason}")
    if step.verdict:
        said.append(f"verdict {step.verdict}")
    said += [word for word, is_so in (("released", step.resumed), ("freed", step.freed)) if is_so]
    return ", ".join([*said, *(kin_in_words(one) for one in kin)])


def _interface(function: TracedFunction) -> bytes:
    return _block(
        INTERFACE,
        struct.pack("<HHI", LINKTYPE_ETHERNET, 0, SNAP_BYTES),
        [
            (NAME, function.name),
            (DESCRIPTION, f"{function.signature} {function.file}:{function.line}"),
            (TIME_RESOLUTION, NANOSECONDS),
        ],
    )


def _block(kind: int, body: bytes, options: list[tuple[int, str | bytes]]) -> bytes:
    """Return a block, with its size before and behind it."""
    packed = b""
    for code, value in options:
        content = value.encode()[:MOST_OPTION].decode(errors="ignore").encode() if isinstance(value, str) else value
        packed += struct.pack("<HH", code, len(content)) + content + bytes(-len(content) % 4)
    packed += struct.pack("<HH", 0, 0)
    size = 12 + len(body) + len(packed)
    return struct.pack("<II", kind, size) + body + packed + struct.pack("<I", size)
