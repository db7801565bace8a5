"""``struct sk_buff`` in gdb: find and read packets."""

from collections.abc import Iterator
from dataclasses import dataclass

import gdb

from skblab.debugger.inside.dump import hex_lines
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, summary

PROTOCOLS = {ETH_P_IP: "IPv4", ETH_P_ARP: "ARP", ETH_P_IPV6: "IPv6"}
SHOWN_BYTES = 96
PAGE_SHIFT = 12
DST_NOREF = 1  # include/linux/skbuff.h SKB_DST_NOREF
NOT_SET = 0xFFFF  # offset of a header that is not set: skb_transport_header_was_set()
IP_SUMMED = ("NONE", "UNNECESSARY", "COMPLETE", "PARTIAL")
REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")  # argument registers at a function's entry


def find(expression: str) -> gdb.Value:
    """Return the ``struct sk_buff *`` of a C expression in the selected frame; "" means ``skb``.

    A number or a ``void *`` is taken as an address.

    :raises gdb.GdbError: no such packet: why, in one line
    """
    expression = expression.strip() or "skb"
    try:
        value = gdb.parse_and_eval(expression)
    except gdb.error as error:
        raise gdb.GdbError(f"{expression}: {error}") from None
    if value.is_optimized_out:
        raise gdb.GdbError(f"{expression} is optimized out in this frame; skb-path says which frames have it")
    kind = value.type.strip_typedefs()
    wanted = gdb.lookup_type("struct sk_buff").pointer()
    if kind.code == gdb.TYPE_CODE_INT or str(kind) == "void *":
        value = value.cast(wanted)
    elif str(kind.unqualified()) not in {"struct sk_buff *", "const struct sk_buff *"}:
        raise gdb.GdbError(f"{expression} is a {value.type}, not a struct sk_buff *")
    if not int(value):
        raise gdb.GdbError(f"{expression} is NULL: no packet")
    try:
        whole = _fits_together(value)
    except gdb.error as error:
        raise gdb.GdbError(f"{expression}: {error}") from None
    if not whole:
        raise gdb.GdbError(f"{expression} points to no packet: its head, data, end and len do not fit together")
    return value


def packet_of(frame: gdb.Frame) -> int:
    """Return the address of a frame's packet, or 0: its first argument or variable of type ``struct sk_buff *``."""
    try:
        block: gdb.Block | None = frame.block()
    except RuntimeError:
        return 0
    found: list[int] = []
    while block is not None:
        for symbol in block:
            if (symbol.is_argument or symbol.is_variable) and str(symbol.type) == "struct sk_buff *":
                try:
                    value = symbol.value(frame)
                    address = 0 if value.is_optimized_out else int(value)
                    whole = address and _fits_together(value)
                except (gdb.error, gdb.MemoryError):
                    continue
                if whole:
                    found.insert(0, address) if symbol.is_argument else found.append(address)
        if block.function is not None:
            break
        block = block.superblock
    return found[0] if found else 0


def _fits_together(skb: gdb.Value) -> bool:
    """Whether this can be a packet: the last entry of a list walk is the list's head (list_for_each_entry())."""
    headroom, linear = int(skb["data"]) - int(skb["head"]), int(skb["len"]) - int(skb["data_len"])
    return headroom >= 0 and linear >= 0 and 0 < headroom + linear <= int(skb["end"])


@dataclass(frozen=True)
class Bytes:
    """A packet's first bytes and its length from its network header, and what could not be read."""

    data: bytes
    length: int
    missing: str


def read_bytes(skb: gdb.Value, wanted: int = SHOWN_BYTES) -> Bytes:
    """Read a packet from its network header, or from ``skb->data`` if that is not set; include fragments."""
    inferior = gdb.selected_inferior()
    start, linear_end = linear_of(skb)
    length = linear_end - start + int(skb["data_len"])
    if not 0 <= linear_end - start <= 1 << 20:
        return Bytes(b"", 0, "head, data and len do not fit together: is this a packet?")
    content = bytes(inferior.read_memory(start, min(linear_end - start, wanted))) if linear_end > start else b""
    shared = (skb["head"] + int(skb["end"])).cast(gdb.lookup_type("struct skb_shared_info").pointer())
    for number in range(min(int(shared["nr_frags"]), 17) if int(skb["data_len"]) else 0):
        if len(content) < wanted:
            address, size = _fragment(shared["frags"][number])
            content += bytes(inferior.read_memory(address, min(size, wanted - len(content))))
    missing = "" if len(content) >= min(wanted, length) else "the rest is in skb_shinfo(skb)->frag_list"
    return Bytes(content, length, missing)


def linear_of(skb: gdb.Value) -> tuple[int, int]:
    """Return where a packet's linear bytes begin, at its network header if that is set, and where they end.

    The network header is ``skb->network_header`` (include/linux/skbuff.h skb_network_header()), else ``skb->data``.
    """
    head, data = int(skb["head"]), int(skb["data"])
    end = data + int(skb["len"]) - int(skb["data_len"])
    network = head + int(skb["network_header"])
    return (network if head < network <= end else data), end


def _fragment(fragment: gdb.Value) -> tuple[int, int]:
    """Return the address and the size of a fragment.

    It is a struct bio_vec up to 6.9 and a struct skb_frag after that (include/linux/skbuff.h). A page lies at
    uml_physmem plus its page frame number times the page size (arch/um/include/shared/mem.h to_virt()).
    """
    old = fragment.type.strip_typedefs().tag == "bio_vec"
    page, size, offset = (
        int(fragment[name]) for name in (("bv_page", "bv_len", "bv_offset") if old else ("netmem", "len", "offset"))
    )
    number = (page - int(gdb.parse_and_eval("mem_map"))) // gdb.lookup_type("struct page").sizeof
    return int(gdb.parse_and_eval("uml_physmem")) + (number << PAGE_SHIFT) + offset, size


def line(skb: gdb.Value) -> str:
    """Return a packet in one line."""
    content = read_bytes(skb)
    return summary(content.data, protocol_of(skb), content.length) if not content.missing else content.missing


def protocol_of(skb: gdb.Value) -> int:
    """Return a packet's protocol in host order, from its ``__be16``."""
    number = int(skb["protocol"])
    return (number & 0xFF) << 8 | number >> 8


def device_name(skb: gdb.Value) -> str:
    """Return the name of a packet's device, or "".

    On a queue, another member of the union may occupy ``skb->dev`` (include/linux/skbuff.h struct sk_buff), so the
    pointer counts only if a network namespace lists the device.
    """
    if not (wanted := int(skb["dev"])):
        return ""
    for net in _entries("net_namespace_list", "struct net", "list"):
        for device in _entries(f"((struct net *){int(net)})->dev_base_head", "struct net_device", "dev_list"):
            if int(device) == wanted:
                return str(device.dereference()["name"].string(errors="replace"))
    return ""


def _entries(head: str, kind: str, member: str) -> Iterator[gdb.Value]:
    """Yield pointers to the entries of a kernel list (list_for_each_entry())."""
    offset = next(field for field in gdb.lookup_type(kind).fields() if field.name == member).bitpos // 8
    first = gdb.parse_and_eval(head)
    at = first["next"]
    while int(at) != int(first.address):
        yield gdb.parse_and_eval(f"({kind} *){int(at) - offset}")
        at = at.dereference()["next"]


def describe(skb: gdb.Value) -> list[str]:
    """Return a description of a packet, as lines.

    :raises gdb.MemoryError: its memory cannot be read
    """
    head, data = int(skb["head"]), int(skb["data"])
    protocol = protocol_of(skb)
    dst = int(skb["_skb_refdst"])
    headers = [
        f"{kind} {'not set' if offset == NOT_SET else f'{head + offset - data:+}'}"
        for kind in ("mac", "network", "transport")
        for offset in [int(skb[f"{kind}_header"])]
    ]
    content = read_bytes(skb)
    users, summed = int(skb["users"]["refs"]["counter"]), IP_SUMMED[int(skb["ip_summed"])]
    reference = " (no reference)" if dst & DST_NOREF else ""
    known = PROTOCOLS.get(protocol, "unknown")
    lines = [
        summary(content.data, protocol, content.length),
        f"  skb {int(skb):#x}  len {int(skb['len'])}  data_len {int(skb['data_len'])}  mark {int(skb['mark']):#x}",
        f"  dev {device_name(skb) or 'none'}  protocol {protocol:#06x} ({known})  ip_summed CHECKSUM_{summed}",
        f"  head {head:#x}  data +{data - head}  tail +{int(skb['tail'])}  end +{int(skb['end'])}",
        f"  headers, from data: {', '.join(headers)}",
        f"  users {users}  cloned {int(skb['cloned'])}  dst {dst & ~DST_NOREF:#x}{reference}  sk {int(skb['sk']):#x}",
    ]
    lines += [f"    {one}" for one in hex_lines(content.data)]
    rest = content.length - len(content.data)
    return [*lines, f"    {content.missing or f'{rest} more bytes'}"] if rest > 0 or content.missing else lines
