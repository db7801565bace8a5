"""Parse a guest's links: ``lan,veth,guest=192.168.20.1/24``; ``on=web`` is the switch of another lab."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from skblab.errors import UsageError

KINDS = ("auto", "tap", "veth")
NAME = re.compile(r"[a-z][a-z0-9_]{0,9}")  # with its suffix, a network device's name (IFNAMSIZ)
MOST = 8  # kernel/init/link.c MOST_LINKS
GRAMMAR = "[NAME][,tap|veth][,guest=ADDRESS/LENGTH][,host=ADDRESS/LENGTH], or on=LAB[,guest=ADDRESS/LENGTH]"


@dataclass(frozen=True)
class Addresses:
    """The addresses of the link's two ends, one of each family, with prefix length: 192.168.10.254/24."""

    guest: tuple[str, ...] = ("192.168.10.1/24", "fd00:10::1/64")
    host: tuple[str, ...] = ("192.168.10.254/24", "fd00:10::254/64")

    @classmethod
    def of(cls, number: int) -> "Addresses":
        """Return the default addresses of a guest's link by number, from 0: 192.168.10.0/24, 192.168.11.0/24, ..."""
        net = 10 + number
        return cls((f"192.168.{net}.1/24", f"fd00:{net}::1/64"), (f"192.168.{net}.254/24", f"fd00:{net}::254/64"))

    def hosts_file(self) -> str:
        """Return lines for /etc/hosts by which clients find ``guest`` and ``host``."""
        names = ((self.guest, "guest"), (self.host, "host"))
        return "\n".join(f"{address.split('/')[0]} {name}" for addresses, name in names for address in addresses)


@dataclass(frozen=True)
class Wanted:
    """A link to make: a device of the lab's own host side, or a port *on* another lab's switch."""

    name: str
    kind: str
    addresses: Addresses
    on: str = ""


def parse(texts: Sequence[str]) -> list[Wanted]:
    """Return the links that texts describe, in the order of the guest's devices: vec0, vec1, ...

    :raises UsageError: one is wrong: how, and the grammar
    """
    if len(texts) > MOST:
        raise UsageError(f"{len(texts)} links", found=f"a guest has {MOST} at most")
    links = [_parse(text, number) for number, text in enumerate(texts or ["auto"])]
    names = [link.name for link in links]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"two links are called {twice}", hint=f"--link {GRAMMAR}")
    return links


def _parse(text: str, number: int) -> Wanted:
    name, kind, on = f"skb{number}", "auto", ""
    given: dict[str, list[str]] = {"guest": [], "host": []}
    for place, word in enumerate(text.split(",")):
        key, found, value = word.partition("=")
        if word in KINDS:
            kind = word
        elif found and key == "on" and value:
            on = value
        elif found and key in given:
            given[key].append(_address(value))
        elif place == 0 and NAME.fullmatch(word):
            name = word
        else:
            raise UsageError(f"no such kind of link: {text!r}", found=f"at {word!r}", hint=f"--link {GRAMMAR}")
    if on and given["host"]:
        raise UsageError(f"on {on}'s switch the host side is {on}'s", hint=f"--link on={on},guest=ADDRESS/LENGTH")
    default = Addresses((), ()) if on else Addresses.of(number)
    if given["guest"] and not on and not given["host"]:
        raise UsageError(f"the link {text!r} has no address of the host side", hint="host=ADDRESS/LENGTH as well")
    return Wanted(
        name, kind, Addresses(tuple(given["guest"]) or default.guest, tuple(given["host"]) or default.host), on
    )


def _address(text: str) -> str:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise UsageError(f"no address: {text}", found=str(error), hint="192.168.20.1/24") from None
    if "/" not in text:
        raise UsageError(f"no prefix length: {text}", hint=f"{text}/24" if interface.version == 4 else f"{text}/64")
    return text
