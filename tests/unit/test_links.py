"""The grammar of a guest's links."""

import pytest

from skblab.errors import UsageError
from skblab.host.link import in_net
from skblab.host.links import MOST, Addresses, parse


def test_nothing_said_is_one_link() -> None:
    (link,) = parse([])
    assert (link.name, link.kind, link.on) == ("skb0", "auto", "")
    assert link.addresses == Addresses()


def test_names_kinds_and_addresses() -> None:
    first, second, third = parse(["tap", "wan,veth,guest=10.0.0.1/8,guest=fd00::1/64,host=10.0.0.2/8", "on=web"])
    assert (first.name, first.kind) == ("skb0", "tap")
    assert (second.name, second.kind) == ("wan", "veth")
    assert second.addresses == Addresses(("10.0.0.1/8", "fd00::1/64"), ("10.0.0.2/8",))
    assert (third.on, third.addresses) == ("web", Addresses((), ()))
    assert parse(["auto", "auto"])[1].addresses.host == ("192.168.11.254/24", "fd00:11::254/64")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["carrier-pigeon"], "no such kind of link"),
        (["lan,carrier"], "no such kind of link"),
        (["on="], "no such kind of link"),
        (["longer_than_a_device"], "no such kind of link"),
        (["guest=10.0.0.1,host=10.0.0.2"], "no prefix length: 10.0.0.1"),
        (["guest=10.0.0/8"], "no address: 10.0.0/8"),
        (["guest=10.0.0.1/8"], "no address of the host side"),
        (["on=web,host=10.0.0.1/8"], "the host side is web's"),
        (["lan", "lan"], "two links are called lan"),
        (["tap"] * (MOST + 1), "9 links"),
    ],
)
def test_what_makes_no_sense(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(texts)


def test_the_next_address_of_a_net() -> None:
    assert in_net("192.168.10.254/24", 2) == "192.168.10.2/24"
    assert in_net("fd00:10::254/64", 17) == "fd00:10::11/64"
