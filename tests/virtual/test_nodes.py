"""Virtual time: several machines in one kernel, and what cannot be in virtual time says so."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skblab.errors import GuestCommandFailed, RuleError, UsageError
from skblab.host import registry
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabFields, LabSpec
from support import skblab

SERVE = "cd /; exec python3 -m http.server 80"


@pytest.fixture(scope="module")
def lab(image: Image) -> Iterator[Lab]:
    with LabSpec(image=image, time="virtual", nodes=["a", "b"], commands=[f"a:{SERVE}"]).start() as lab:
        yield lab


def test_each_node_has_a_name_an_address_and_a_way_to_each(lab: Lab) -> None:
    hostname = Path("/etc/hostname").read_text()
    assert lab.run(["curl", "-s", "http://a/etc/hostname"]).stdout == hostname
    assert lab.guest.run(["curl", "-s", "http://a/etc/hostname"]).stdout == hostname
    with lab.guest.popen(["curl", "-s", "-o/dev/null", "http://a/etc/hostname"], node="b") as client:
        assert client.wait() == 0
    assert "192.168.10.3 " in lab.run(["getent", "ahostsv4", "b"]).stdout
    assert lab.guest.run(["curl", "-s", "http://b/"]).returncode == 7  # nobody listens there
    assert set(lab.guest.run(["ip", "netns"]).stdout.split()) >= {"host", "a", "b"}


def test_a_frame_between_two_nodes_passes_the_hosts_bridge(lab: Lab) -> None:
    with lab.probe("br_handle_frame_finish", "icmp") as passed:
        with lab.guest.popen(["ping", "-c1", "b"], node="a") as client:
            assert client.wait() == 0
        assert len(passed.take_all()) == 2


def test_a_filter_names_the_nodes(lab: Lab) -> None:
    with lab.probe("br_handle_frame_finish", "icmp and src b") as sent, lab.probe("icmp_rcv", "dst a") as received:
        with lab.guest.popen(["ping", "-c1", "b"], node="a") as client:
            assert client.wait() == 0
        for hits in (sent.take_all(), received.take_all()):
            assert ["192.168.10.3 > 192.168.10.2" in hit.packet.summary() for hit in hits] == [True]
        sent.refilter("icmp and src a")
        with pytest.raises(RuleError, match="no machine of this lab") as caught:
            sent.refilter("icmp and src c")
        assert caught.value.hint.startswith("guest or host or a or b or an address")


def test_a_node_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(GuestCommandFailed, match="on that node"):
        lab.guest.popen(["true"], node="c")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"disks": ["x.ext4"]}, "a disk answers in real time"),
        ({"from_boot": True}, "takes real time"),
        ({"link": "veth"}, "the link is inside the guest"),
        ({"seed": -1}, "no seed"),
        ({"nodes": ["a", "a"]}, "two nodes are called a"),
        ({"nodes": ["guest"]}, "two nodes are called guest"),
        ({"nodes": ["A!"]}, "no name for a node"),
        ({"nodes": [f"n{number}" for number in range(17)]}, "17 nodes"),
        ({"clock": "frozen"}, "the clock is ours"),
        ({"time": "real", "seed": 7}, "are for virtual time"),
        ({"time": "real", "nodes": ["a"]}, "are for virtual time"),
    ],
)
def test_what_cannot_be(fields: LabFields, says: str) -> None:
    virtual: LabFields = {"time": "virtual"}
    with pytest.raises(UsageError, match=says):
        LabSpec(**(virtual | fields))


def test_what_a_lab_in_virtual_time_has_not(lab: Lab) -> None:
    with pytest.raises(UsageError, match="the host side is in the guest"):
        lab.socket()
    with pytest.raises(UsageError, match="takes real time"):
        lab.gdb_prompt()


def test_a_lab_in_real_time_has_no_clock_of_ours(shared_lab: Lab) -> None:
    with pytest.raises(UsageError, match="this machine's clock"):
        _ = shared_lab.clock


def test_held_pings(every_image: Image) -> None:
    done = skblab("ping", "--image", every_image.name, "--time", "virtual", "--holds", "3.1,4.7,23.8", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert [round(stop["held_s"], 4) for stop in result["stops"]] == [3.1, 4.7, 23.8]
    for stop in result["stops"]:
        assert stop["rtt_ms"] / 1e3 == pytest.approx(stop["held_s"], abs=1.5e-6)


def test_a_run_that_is_the_same_twice_and_one_that_is_not() -> None:
    done = skblab("check-determinism", "--seed", "7", "-g", SERVE, "--", "curl", "-s", "guest/etc/hostname")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"the runs are the same: packets \d+, .*\n", done.stdout)
    labs = str(registry.registry_dir())  # this machine's files are outside: here, the names of the two labs
    again = skblab("check-determinism", "--json", "--", "ls", labs)
    assert again.returncode == 1
    result = json.loads(again.stdout)
    assert (result["same"], result["difference"]["what"]) == (False, "lines of output")
    assert "lab-" in result["difference"]["first"]
