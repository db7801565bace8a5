"""pcap-filter(7) to classic BPF, by libpcap itself.

A filter matches the same packets inside a kernel as in an Ethernet capture. So it is compiled for Ethernet, and its
loads are moved to where the kernel has the packet's parts (include/uapi/linux/filter.h SKF_AD_OFF, SKF_LL_OFF). The
EtherType is ``skb->protocol``. Link addresses are read at the MAC header. All other offsets shrink by the 14 bytes of
the Ethernet header, because the program runs from the network header. The packet's length includes the 14 bytes.

libpcap asks the resolver of this machine for names. So names of a lab's machines become their addresses first, and
other names are refused; those of ports and protocols libpcap looks for in /etc/services and /etc/protocols.
"""

import ctypes
import ctypes.util
import functools
import ipaddress
import itertools
import re
import socket
import struct
from collections.abc import Mapping, Sequence

from skblab.errors import MissingPrerequisite, RuleError

DLT_EN10MB = 1
WHOLE_PACKET = 0x40000
NETMASK_UNKNOWN = 0xFFFFFFFF
INSTRUCTION_BYTES = 8
MOST_CHARACTERS = 2000  # libpcap's optimizer takes time cubic in the length: 2 s for 150 ports, 20 s for 300
MOST_INSTRUCTIONS = 4096  # include/uapi/linux/bpf_common.h BPF_MAXINSNS
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
LD_WORD_ABSOLUTE, LD_HALF_ABSOLUTE = 0x20, 0x28
LD_LENGTH, LDX_LENGTH, ADD, JUMP, JUMPS = 0x80, 0x81, 0x04, 0x05, 0x05
LOADS_OF_BYTES = {0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xB1}  # BPF_ABS and BPF_IND of each size, BPF_LDX | BPF_MSH
CLASS = 0x07
PROTOCOL = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
LINK_HEADER = 0xFFE00000  # SKF_LL_OFF
ETHERNET_BYTES, TYPE_AT = 14, 12
FARTHEST_JUMP = 255
ENCAPSULATED = re.compile(r"\b(vlan|mpls|pppoe[ds]|geneve)\b")  # libpcap looks for these headers in the packet's bytes
Instruction = tuple[int, int, int, int]

# As libpcap's scanner.l has them. A word is a keyword, a name, or a number with or without dots. The keyword host with
# nothing behind it is the machine.
TOKEN = re.compile(
    r"(?P<colons>(?=[0-9A-Fa-f:]*::|(?:[0-9A-Fa-f]+:){5})[0-9A-Fa-f:.]+)"
    r"|(?P<host>host)(?=\s*(?:\)|&&|\|\||\Z)|\s+(?:and|or)\b)"
    r"|(?P<word>[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?)|\\(?P<escaped>[^ !()\n\t]+)|\S"
)
NUMBER = r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)"
NUMBERS = re.compile(rf"{NUMBER}(?:\.{NUMBER}){{0,3}}")
MAC = re.compile(r"(?:[0-9A-Fa-f]{1,2}:){5}[0-9A-Fa-f]{1,2}")
CONNECTIVES = ("and", "or", "not")
NOT_OF_MACHINES = {"port", "portrange", "proto", "protochain"}
NOT_OF_ADDRESSES = {"net", "gateway", "ether", "link", "ppp", "slip", "fddi", "tr", "wlan"}
FAMILIES = {"ip": 4, "arp": 4, "rarp": 4, "ip6": 6}


class _Program(ctypes.Structure):
    """struct bpf_program (pcap/bpf.h)."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


@functools.cache
def _libpcap() -> ctypes.CDLL:
    name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise MissingPrerequisite(
            "no libpcap, which compiles filters", found=str(error), hint="apt-get install libpcap0.8"
        ) from None
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_geterr.restype = ctypes.c_char_p
    for function in ("pcap_close", "pcap_geterr", "pcap_compile", "pcap_freecode"):
        getattr(library, function).argtypes = None
    return library


def compile_filter(expression: str, machines: Mapping[str, Sequence[str]] | None = None) -> bytes:
    """Return the classic BPF program of a filter: instructions of 8 bytes, as in struct sock_filter; empty for none.

    :param machines: those that it may name, and their addresses
    :raises RuleError: libpcap does not understand it, or it cannot match a packet inside a kernel
    """
    if "\0" in expression:
        raise RuleError("a filter has no zero bytes", found=repr(expression))
    return _compiled(_with_addresses(expression, machines or {}))


def _with_addresses(expression: str, machines: Mapping[str, Sequence[str]]) -> str:
    """Return a filter with the addresses of machines instead of their names.

    What a name is, the last row of keywords says: of ports in ``port http or smtp``, of machines in ``src guest``.

    :raises RuleError: there is no such machine, or a machine's name cannot stand there
    """
    pieces, copied = [], 0
    row: list[str] = []
    in_row = False
    for token in TOKEN.finditer(expression):
        word, colons = token["word"], token["colons"]
        if colons and not _is_address(colons):
            raise RuleError(f"no address: {colons}", found=expression, hint="see pcap-filter(7)")
        is_number = word and NUMBERS.fullmatch(word)
        name = token["host"] or token["escaped"] or (word if word and not is_number and _is_name(word) else "")
        if word and not (name or is_number or word in CONNECTIVES):
            row = [*row, word] if in_row else [word]
            in_row = True
            continue
        in_row = False
        if name and not NOT_OF_MACHINES & {*row}:
            before = expression[copied : token.start()]
            found = " or ".join(_addresses(name, row, machines, expression))
            # In libpcap's grammar no parenthesis of names begins with another; "and" binds as "or" does, from the left.
            pieces += [before, found if before.rstrip().endswith("(") else f"({found})"]
            copied = token.end()
    return "".join([*pieces, expression[copied:]])


def _addresses(name: str, row: Sequence[str], machines: Mapping[str, Sequence[str]], expression: str) -> list[str]:
    """Return the addresses that a machine's name means behind a row of keywords."""
    if wrong := next((word for word in row if word in NOT_OF_ADDRESSES), ""):
        raise RuleError(
            f"{wrong} wants an address, not the name {name}", found=expression, hint="host NAME, or net 10.0.0.0/8"
        )
    family = next((FAMILIES[word] for word in row if word in FAMILIES), 0)
    there = [one for one in machines.get(name, ()) if family in {0, ipaddress.ip_address(one).version}]
    if not there:
        no_family = f"{name} has no IPv{family} address"
        raise RuleError(
            no_family if machines.get(name) else f"{name} is no word of a filter, and no machine of this lab",
            found=expression,
            hint=f"{' or '.join((*machines, 'an address'))}; see pcap-filter(7)",
        )
    return there


def _is_address(text: str) -> bool:
    try:
        return bool(MAC.fullmatch(text) or ipaddress.IPv6Address(text))
    except ValueError:
        return False


@functools.lru_cache(maxsize=1024)
def _is_name(word: str) -> bool:
    """Whether a word is a name, which may be a port's, and not a keyword of libpcap's, of which some are numbers."""
    try:
        _compile(f"port {word}")
        socket.getservbyname(word)
    except RuleError as error:
        return "unknown port" in error.found
    except OSError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _compiled(expression: str) -> bytes:
    if not expression:
        return b""
    if len(expression) > MOST_CHARACTERS:
        raise RuleError("the filter is too long", found=f"{len(expression)} characters, {MOST_CHARACTERS} at most")
    if found := ENCAPSULATED.search(expression):
        raise RuleError(
            f"{found.group()} in a filter",
            found=f"{expression}\nthe kernel keeps that header apart from the packet's bytes",
            hint="filter on the inner packet",
        )
    program = list(INSTRUCTION.iter_unpack(_compile(expression)))
    if any(code == JUMP and k >> 31 for code, _, _, k in program):
        raise RuleError("a filter with a loop", found=f"{expression}\nclassic BPF has no loops, and protochain is one")
    moved = [_moved(*one) for one in program]
    return b"".join(INSTRUCTION.pack(*one) for one in _with_whole_lengths(moved, expression))


def _moved(code: int, if_true: int, if_false: int, k: int) -> Instruction:
    """Return an instruction compiled for Ethernet as one for a packet that begins at its network header."""
    if code in LOADS_OF_BYTES:
        if code == LD_HALF_ABSOLUTE and k == TYPE_AT:
            return LD_WORD_ABSOLUTE, if_true, if_false, PROTOCOL
        k = k - ETHERNET_BYTES if k >= ETHERNET_BYTES else k + LINK_HEADER
    return code, if_true, if_false, k


def _with_whole_lengths(program: list[Instruction], expression: str) -> list[Instruction]:
    """Add the 14 bytes of the link's header after each load of the packet's length; lengthen the jumps over it."""
    places = list(itertools.accumulate((1 + (code == LD_LENGTH) for code, *_ in program), initial=0))

    def over(at: int, distance: int) -> int:
        return places[at + 1 + distance] - places[at + 1]

    whole: list[Instruction] = []
    for at, (code, if_true, if_false, k) in enumerate(program):
        if code & CLASS == JUMPS and code != JUMP:
            whole.append((code, over(at, if_true), over(at, if_false), k))
        else:
            whole.append((code, if_true, if_false, over(at, k) if code == JUMP else k))
        if code == LD_LENGTH:
            whole.append((ADD, 0, 0, ETHERNET_BYTES))
    if any(max(one[1:3]) > FARTHEST_JUMP for one in whole) or any(code == LDX_LENGTH for code, *_ in program):
        raise RuleError("the filter is too long to use len, less or greater", found=expression, hint="two rules")
    return whole


def _compile(expression: str) -> bytes:
    library = _libpcap()
    handle = ctypes.c_void_p(library.pcap_open_dead(DLT_EN10MB, WHOLE_PACKET))
    program = _Program()
    try:
        text = ctypes.c_char_p(expression.encode(errors="backslashreplace"))
        if library.pcap_compile(handle, ctypes.byref(program), text, 1, ctypes.c_uint(NETMASK_UNKNOWN)):
            reason = library.pcap_geterr(handle).decode(errors="replace")
            raise RuleError(
                "libpcap does not understand the filter", found=f"{expression}\n{reason}", hint="see pcap-filter(7)"
            )
        code = ctypes.string_at(program.instructions, program.length * INSTRUCTION_BYTES)
        library.pcap_freecode(ctypes.byref(program))
        if program.length > MOST_INSTRUCTIONS:
            raise RuleError(
                "the filter is too long", found=f"{program.length} instructions, {MOST_INSTRUCTIONS} at most"
            )
        return code
    finally:
        library.pcap_close(handle)
