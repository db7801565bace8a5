"""The host side of a lab's link: a tap, or a veth pair with a packet socket on its guest end.

A part of the lab's first process (lab_init.py), so it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

TUNSETIFF = 0x400454CA
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
SIOCGIFHWADDR = 0x8927
SOL_PACKET, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 263, 20, 23
ETH_P_ALL = 0x0003
JUMBO = 9000  # largest MTU of the guest's device (image/corrections/vector.py)
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP = 4, 20, 0x301
PACKET_SHOW_INFO, PACKET_SHOW_MEMINFO = 0x01, 0x10  # linux/packet_diag.h
PACKET_DIAG_INFO, PACKET_DIAG_MEMINFO, SK_MEMINFO_DROPS = 0, 6, 8
TX_DROPPED = 11  # column of a device's line in /proc/net/dev

libc = ctypes.CDLL(None, use_errno=True)

# Otherwise IPv6 sends duplicate address detection, router solicitations and repeated MLD reports
# (Documentation/networking/ip-sysctl.rst).
QUIET = (
    ("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", "1"),
    ("/proc/sys/net/ipv6/conf/{}/router_solicitations", "0"),
    ("/proc/sys/net/ipv6/conf/{}/mldv2_unsolicited_report_interval", "1"),
    ("/proc/sys/net/ipv6/mld_qrv", "1"),
)


class SetUpError(Exception):
    """This machine refused a step of the set-up; ``reply`` has the step, the errno and the detail."""

    def __init__(self, step: str, number: int, detail: str = "") -> None:
        super().__init__(step)
        self.reply = {"error": step, "errno": number, "detail": detail or os.strerror(number)}


def check(step: str, result: int) -> None:
    """Raise SetUpError unless a libc call succeeded."""
    if result < 0:
        raise SetUpError(step, ctypes.get_errno())


def read_file(path: str) -> str:
    """Return a small file's text, or "" if it does not exist."""
    try:
        with open(path) as file:  # noqa: PTH123 - this module imports little
            return file.read()
    except FileNotFoundError:
        return ""


def write_file(path: str, text: str) -> None:
    """Write a small file in one system call."""
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)


def ip(*lines: str, program: str = "ip") -> None:
    """Run a batch of iproute2 commands in the lab's network namespace."""
    batch, output = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("batch", "output"))
    actions = [(os.POSIX_SPAWN_DUP2, batch, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    try:
        os.write(batch, "\n".join(lines).encode())
        os.lseek(batch, 0, os.SEEK_SET)
        environment = {"PATH": os.environ["PATH"]}
        pid = os.posix_spawnp(program, [program, "-batch", "-"], environment, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = os.pread(output, 4096, 0).decode(errors="replace").strip()
    except FileNotFoundError as error:
        raise SetUpError(f"{program} (iproute2)", errno.ENOENT) from error
    finally:
        os.close(batch)
        os.close(output)
    if status:
        raise SetUpError(program, errno.EIO, said)


def open_tap(device: str) -> int:
    """Make a tap device and return its descriptor; the device exists while the descriptor is open."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def open_raw(device: str) -> int:
    """Open a packet socket on a device that receives incoming frames, not the frames that it sends (packet(7))."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it receives nothing before bind()
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    raw.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    raw.bind((device, ETH_P_ALL))
    return raw.detach()


def compute_checksums(device: str) -> None:
    """Turn off checksum and segmentation offload: the link carries no virtio header that would announce them."""
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


def sockets_drops(index: int) -> int:
    """Return how many frames a device's full packet sockets dropped; 0 if the kernel has no packet_diag."""
    request = struct.pack("=BBHIIII", socket.AF_PACKET, 0, 0, 0, PACKET_SHOW_INFO | PACKET_SHOW_MEMINFO, 0, 0)
    head = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0)
    drops = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
        diag.send(head + request)
        while True:
            answer = diag.recv(1 << 16)
            while answer:
                size, kind = struct.unpack_from("=IH", answer)
                if kind != SOCK_DIAG_BY_FAMILY:  # NLMSG_DONE, or an error
                    return drops
                found = attributes(answer[32:size])
                if struct.unpack_from("=I", found[PACKET_DIAG_INFO])[0] == index:
                    drops += struct.unpack_from("=9I", found[PACKET_DIAG_MEMINFO])[SK_MEMINFO_DROPS]
                answer = answer[-(-size // 4) * 4 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes of a netlink message."""
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:size]
        data = data[-(-size // 4) * 4 :]
    return found


def hardware_address(device: str) -> str:
    """Return a device's hardware address, by netlink: the lab's /sys is the machine's and does not have the device."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, SIOCGIFHWADDR, struct.pack("16s24x", device.encode()))
    return reply[18:24].hex(":")


class Link:
    """The link: a tap if /dev/net/tun can be opened, else a veth pair with a packet socket on its guest end.

    Either way the guest gets one descriptor, ``guest_fd``, for its vector device's fd transport: bare Ethernet frames.
    """

    def __init__(self, kind: str, device: str) -> None:
        self.device = device
        self.addresses: list[str] = []
        self.guest_fd = -1
        self.why_not_tap = ""
        if kind != "veth":
            try:
                self.guest_fd = open_tap(device)
            except OSError as error:
                self.why_not_tap = f"/dev/net/tun: {os.strerror(error.errno or 0)}"
                if kind == "tap":
                    raise SetUpError("tap", error.errno or 0, self.why_not_tap) from error
        self.kind = "veth" if self.guest_fd < 0 else "tap"
        if self.kind == "veth":
            ip(f"link add {device} type veth peer name {device}-g mtu {JUMBO}", f"link set {device}-g up")
            self.guest_fd = open_raw(f"{device}-g")
            compute_checksums(device)
        ends = [device] if self.kind == "tap" else [device, f"{device}-g"]
        self.indexes = [socket.if_nametoindex(end) for end in ends]  # their names may change

    def drops(self) -> tuple[int, int]:
        """Return how many frames the host side has dropped: for the guest, and from it.

        A frame from the guest that a tap refuses is an error of the guest's send, and the guest counts it.
        """
        lines = (line.split(":") for line in read_file("/proc/net/dev").splitlines()[2:])
        dropped = {name.strip(): int(numbers.split()[TX_DROPPED]) for name, numbers in lines}
        names = dict(socket.if_nameindex())
        for_guest, from_guest = (dropped.get(names.get(index, ""), 0) for index in (*self.indexes, 0)[:2])
        return for_guest + sum(sockets_drops(index) for index in self.indexes[1:]), from_guest

    def bring_up(self, addresses: list[str]) -> None:
        """Give the host side its addresses and bring it up, and lo.

        It is up before the guest opens its side: a vector device that transmits into a link that is down stays in error
        (arch/um/drivers/vector_kern.c, ``in_error``). Neighbour entries do not expire: a stopped guest answers no ARP,
        and its clients have to wait for it instead of getting EHOSTUNREACH. The link is quiet: all packets on it are
        clients' own.
        """
        device = self.device
        self.addresses = addresses
        for path, text in QUIET:
            if os.access(path.format(device), os.F_OK):  # absent without IPv6
                write_file(path.format(device), text)
        lines = ["link set lo up"]
        lines += [f"address add {address} dev {device}" + " nodad" * (":" in address) for address in addresses]
        lines += [f"link set {device} up"]
        lines += [
            f"ntable change name {table} dev {device} base_reachable 3600000" for table in ("arp_cache", "ndisc_cache")
        ]
        ip(*lines)


def in_net(address: str, host: int) -> str:
    """Return an address with another last byte, or last IPv6 group: 192.168.10.254/24, 2 -> 192.168.10.2/24."""
    text, _, length = address.partition("/")
    separator = ":" if ":" in text else "."
    return f"{text.rpartition(separator)[0]}{separator}{host:{'x' if separator == ':' else 'd'}}/{length}"


class Switch:
    """A bridge that replaces a link's device: it has the host side's addresses, and the link is its first port.

    It keeps the device's name for clients and tcpdump, and its hardware address for the guest.
    """

    def __init__(self, link: Link) -> None:
        self.name, self.addresses = link.device, link.addresses
        self.ports = 1
        hardware = hardware_address(link.device)
        port = link.device = f"{self.name}-p1"
        lines = [
            f"link set {self.name} down",
            f"address flush dev {self.name}",
            f"link set {self.name} name {port}",
            f"link add {self.name} address {hardware} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {port} master {self.name}",
            f"link set {port} up",
        ]
        ip(*lines)
        for path, text in QUIET:
            for device in (self.name, port):
                if os.access(path.format(device), os.F_OK):
                    write_file(path.format(device), text)
        ip(
            *(f"address add {address} dev {self.name}" + " nodad" * (":" in address) for address in self.addresses),
            f"link set {self.name} up",
        )

    def plug(self, kind: str, addresses: list[str]) -> tuple[Link, list[str]]:
        """Return a new port of the switch, and its guest's addresses: those given, or the next free ones."""
        self.ports += 1
        link = Link(kind, f"{self.name}-p{self.ports}")
        try:
            ip(f"link set {link.device} master {self.name}", f"link set {link.device} up")
        except SetUpError:
            os.close(link.guest_fd)
            raise
        return link, list(addresses) or [in_net(address, self.ports) for address in self.addresses]
