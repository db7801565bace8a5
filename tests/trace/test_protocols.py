"""Every protocol with a live socket is followed through a kernel, from sender to reader, and the guest lives on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import conversations
from skblab.guest.exec import Command
from skblab.image.recipe import SERIES
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.trace.words import fields_of

PROGRAM = Path(conversations.__file__).read_text()
READ_UDP = {"udp_queue_rcv_skb", "skb_consume_udp", "skb_release_data"}
READ_UDP6 = {"udpv6_queue_rcv_skb", "skb_consume_udp", "skb_release_data"}

# Of each conversation: what its packets have to pass.
WAYS: dict[str, set[str]] = {
    "udp": {"ip_send_skb", "__dev_queue_xmit", "ip_rcv", *READ_UDP},
    "udp6": {"ip6_send_skb", "__dev_queue_xmit", "ipv6_rcv", *READ_UDP6},
    "closing": {"ip_rcv", *READ_UDP},
    "segmented": {"ip_rcv", *READ_UDP},
    "multicast": {"ip_mc_validate_source", *READ_UDP},
    "fragments": {"ip_do_fragment", "ip_defrag", "inet_frag_reasm_finish", *READ_UDP},
    "fragments6": {"ip6_fragment", "ipv6_frag_rcv", "inet_frag_reasm_finish", *READ_UDP6},
    "tcp": {"tcp_conn_request", "tcp_rcv_established", "tcp_queue_rcv", "skb_copy_datagram_iter"},
    "tcp6": {"tcp_conn_request", "tcp_v6_rcv", "tcp_rcv_established", "skb_copy_datagram_iter"},
    "ping": {"ping_rcv", "icmp_reply", "skb_copy_datagram_iter"},
    "raw": {"raw_rcv", "icmp_rcv", "skb_copy_datagram_iter"},
    "packet": {"packet_rcv", "skb_copy_datagram_iter"},
    "unix": {"unix_stream_read_actor", "unix_scm_to_skb", "skb_copy_datagram_from_iter"},
    "netlink": {"netlink_rcv_skb", "rtnetlink_rcv_msg"},
    "unreachable": {"__icmp_send", "icmp_unreach", "tcp_v6_send_reset"},
    "vlan": {"vlan_dev_hard_start_xmit", "vlan_do_receive", *READ_UDP},
    "vxlan": {"vxlan_xmit", "vxlan_rcv", "br_handle_frame", *READ_UDP},
    "ipip": {"ipip_tunnel_xmit", "ipip_rcv", *READ_UDP},
}


def test_every_conversation_has_its_way() -> None:
    assert WAYS.keys() == conversations.CONVERSATIONS.keys()


class Talk:
    """A guest with two namespaces, and what goes on between them."""

    def __init__(self, lab: Lab, program: Command) -> None:
        self.lab = lab
        self._program = program

    def __call__(self, conversation: str) -> str:
        """Have one, and return what came of it."""
        assert self._program.stdin
        assert self._program.stdout
        if conversation:
            self._program.stdin.write(f"{conversation}\n".encode())
            self._program.stdin.flush()
        return self._program.stdout.readline().decode().strip()


@pytest.fixture(scope="module", params=[*SERIES, "kasan"])
def talk(request: pytest.FixtureRequest) -> Iterator[Talk]:
    kasan = request.param == "kasan"
    image = find_image(variant="kasan") if kasan else find_image(request.param)
    with Lab(image=image, root="host", memory_mib=384 if kasan else 128, boot_timeout_s=60) as lab:
        argv = ["python3", "-c", PROGRAM, PROGRAM]
        with lab.guest.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            talk = Talk(lab, program)
            assert talk("") == "ready"
            yield talk
            program.kill()


@pytest.mark.parametrize("conversation", WAYS)
def test_a_conversation_is_followed(talk: Talk, conversation: str) -> None:
    with talk.lab.trace() as tracer:
        assert talk(conversation) == "done"
    trace = tracer.trace()
    assert trace.whole
    assert WAYS[conversation] - {step.function.name for step in trace.steps} == set()


def test_a_field_is_followed_only_where_it_leads(talk: Talk) -> None:
    """On a socket's queue, among fragments, among what TCP may send again, a member's place is another's."""
    names = ["skb->dev->name", "skb->dev->nd_net.net->ifindex", "skb->sk->sk_mark", "skb->next->len",
             "skb->prev->dev->mtu", "skb->sk->sk_socket->file->f_flags"]  # fmt: skip
    with talk.lab.trace(fields=names) as tracer:
        assert [talk(one) for one in ("udp", "fragments", "tcp", "unix")] == ["done"] * 4
    trace = tracer.trace()
    devices = {fields_of(trace, step)["skb->dev->name"] for step in trace.steps if step.packet}
    there = {step.device for step in trace.steps}  # those of other conversations, too, that still say something
    assert {"br0"} <= devices <= {"", "lo", "br0", "v0", "v1", "vec0", *there}
