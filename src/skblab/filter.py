"""pcap-filter(7) to classic BPF, by libpcap itself.

A filter runs on a packet's bytes from the network header on, so it is compiled for raw IP: what tcpdump has of
Ethernet, and ARP, it does not know.
"""

import ctypes
import ctypes.util
import functools

from skblab.errors import MissingPrerequisite, RuleError

DLT_RAW = 12
WHOLE_PACKET = 0x40000
NETMASK_UNKNOWN = 0xFFFFFFFF
INSTRUCTION_BYTES = 8


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

    :raises RuleError: libpcap does not understand it
    """
    if not expression:
        return b""
    library = _libpcap()
    handle = ctypes.c_void_p(library.pcap_open_dead(DLT_RAW, WHOLE_PACKET))
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
