"""pcap-filter(7) to classic BPF, by libpcap itself.

A filter runs on a packet's bytes from the network header on, so it is compiled for raw IP. One that speaks of ARP or
of Ethernet is compiled for Ethernet, and its loads are moved: the type is the kernel's own ``skb->protocol``, addresses
are where the kernel has put the link's header, and everything else lies 14 bytes nearer
(include/uapi/linux/filter.h SKF_AD_OFF, SKF_LL_OFF).
"""

import ctypes
import ctypes.util
import functools
import re
import struct

from skblab.errors import MissingPrerequisite, RuleError

DLT_EN10MB, DLT_RAW = 1, 12
WHOLE_PACKET = 0x40000
NETMASK_UNKNOWN = 0xFFFFFFFF
INSTRUCTION_BYTES = 8
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
LD_WORD_ABSOLUTE, LD_HALF_ABSOLUTE = 0x20, 0x28
LOADS_OF_BYTES = {0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xB1}  # BPF_ABS and BPF_IND of each size, BPF_LDX | BPF_MSH
PROTOCOL = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
LINK_HEADER = 0xFFE00000  # SKF_LL_OFF
ETHERNET_BYTES, TYPE_AT = 14, 12
OF_ETHERNET = re.compile(r"\b(r?arp|ether|broadcast|multicast)\b")
SHIFTED = re.compile(r"\b(vlan|mpls|pppoe[ds]|geneve)\b")  # libpcap takes the headers behind these for moved


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
            "no libpcap, which compiles filters", found=str(error), mend="apt-get install libpcap0.8"
        ) from None
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_geterr.restype = ctypes.c_char_p
    for function in ("pcap_close", "pcap_geterr", "pcap_compile", "pcap_freecode"):
        getattr(library, function).argtypes = None
    return library


@functools.lru_cache(maxsize=256)
def compile_filter(expression: str) -> bytes:
    """Return the classic BPF program of a filter: instructions of 8 bytes, as in struct sock_filter; empty for none.

    :raises RuleError: libpcap does not understand it, or it cannot be said of a packet inside a kernel
    """
    if not expression:
        return b""
    if not OF_ETHERNET.search(expression):
        return _compile(expression, DLT_RAW)
    if shifted := SHIFTED.search(expression):
        raise RuleError(
            f"{shifted.group()} beside ARP or Ethernet in a filter", found=expression, mend="two rules, or two traces"
        )
    code = _compile(expression, DLT_EN10MB)
    return b"".join(INSTRUCTION.pack(*_moved(*one)) for one in INSTRUCTION.iter_unpack(code))


def _moved(code: int, if_true: int, if_false: int, k: int) -> tuple[int, int, int, int]:
    """Return an instruction for Ethernet as one for a packet that begins with its network header."""
    if code in LOADS_OF_BYTES:
        if code == LD_HALF_ABSOLUTE and k == TYPE_AT:
            return LD_WORD_ABSOLUTE, if_true, if_false, PROTOCOL
        k = k - ETHERNET_BYTES if k >= ETHERNET_BYTES else k + LINK_HEADER
    return code, if_true, if_false, k


def _compile(expression: str, link_type: int) -> bytes:
    library = _libpcap()
    handle = ctypes.c_void_p(library.pcap_open_dead(link_type, WHOLE_PACKET))
    program = _Program()
    try:
        text = ctypes.c_char_p(expression.encode())
        if library.pcap_compile(handle, ctypes.byref(program), text, 1, ctypes.c_uint(NETMASK_UNKNOWN)):
            reason = library.pcap_geterr(handle).decode(errors="replace")
            raise RuleError(
                "libpcap does not understand the filter", found=f"{expression}\n{reason}", mend="see pcap-filter(7)"
            )
        code = ctypes.string_at(program.instructions, program.length * INSTRUCTION_BYTES)
        library.pcap_freecode(ctypes.byref(program))
        return code
    finally:
        library.pcap_close(handle)
