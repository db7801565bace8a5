"""What depends on the kernel's own numbers and layouts, on each series."""

import subprocess

import pytest

from skblab.host import process
from skblab.image.reasons import drop_reason
from skblab.lab import Lab


@pytest.mark.parametrize("size", [10, 56, 300])
def test_an_edit_over_ipv6(every_lab: Lab, size: int) -> None:
    with every_lab.hold("icmpv6_rcv", "ip6[40] == 128") as held:
        client = every_lab.popen(["ping", "-6", "-n", "-c", "1", "-W", "5", "guest"], stdout=subprocess.PIPE)
        (packet,) = held.take(1)
        difference = packet.edit(lambda _: b"z" * size)
        packet.release()
        said = process.finish(client, timeout_s=20).stdout
    assert f"{size + 8} bytes from" in said
    assert "icmpv6echorequest.cksum: " in difference
    assert ("ipv6.plen: " in difference) == (size != 56)


@pytest.mark.parametrize("name", ["NOT_SPECIFIED", "NO_SOCKET", "IP_CSUM", "TCP_RESET"])
def test_drop_reasons_are_the_kernels_own_numbers(every_lab: Lab, name: str) -> None:
    with every_lab.debugger() as gdb:
        assert int(gdb.evaluate(f"(int)SKB_DROP_REASON_{name}")) == drop_reason(every_lab.image, name)
