"""From the screen into gdb, around one packet, and back."""

import os

from skblab.host import process
from support import Person, eventually_nothing, remains


def test_the_kernel_stands_still_around_the_packet_and_goes_on() -> None:
    before = remains()
    person = Person("hold", "--", "ping", "-n", "-c", "2", "-W", "60", "guest")
    person.reads("seq 2")
    person.types(b"z")
    said = person.reads("(gdb) ")
    assert "skb 0x" in said
    assert "Temporary breakpoint 1, " in said
    assert "int icmp_rcv(struct sk_buff *skb)" in said
    person.types(b"print skb->len\n")
    person.reads("$1 = 64")
    person.types(b"quit\n")
    person.reads("icmp_seq=1 ttl=64 time=")
    person.types(b"q")
    assert person.program.wait(20) == 0
    process.end(person.program)
    os.close(person.terminal)
    assert eventually_nothing(before) == []
