"""Everything that reads pcapng reads ours, whatever was traced: tcpdump, tshark, capinfos, editcap, mergecap, scapy."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

import conversations
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.trace.journey import is_readable, journeys
from skblab.trace.model import Trace
from skblab.trace.reader import load
from skblab.trace.words import reason_in_words
from support import skblab

PROGRAM = Path(conversations.__file__).read_text()
ODD = 'a"<&é\x1b[31m\udcff'  # what Linux lets a device be called (net/core/dev.c dev_valid_name())
FIELDS = ("frame.interface_name", "frame.comment", "frame.time_epoch", "frame.len", "frame.cap_len", "frame.encap_type")
# A step has the packet as it is there, and while it is built or put together again its length is another: these have it
# whole, as it came or is to go.
FINISHED = ("ip_rcv", "ipv6_rcv", "arp_rcv", "ip_local_deliver_finish", "icmp_rcv", "udp_rcv", "tcp_v4_rcv",
            "ip_output", "ip6_output", "ip_finish_output2", "ip6_finish_output2")  # fmt: skip
SHOWN = 'a"<&é\x1b[31m\ufffd'
ETHERNET = "1"  # wiretap's WTAP_ENCAP_ETHERNET


def read(*argv: str | Path) -> str:
    done = process.run([*argv], timeout_s=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def counted(path: Path) -> int:
    """Return how many packets tcpdump reads; some of its lines are two, as VXLAN's."""
    return int(read("tcpdump", "--count", "-nr", path).split()[0])


@pytest.fixture(scope="module")
def lab(image: Image) -> Iterator[Lab]:
    with Lab(image=image, root="host", memory_mib=128) as lab:
        yield lab


@pytest.fixture(scope="module")
def file(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of all that two namespaces have to say to one another, some of it held, edited and dropped."""
    path = tmp_path_factory.mktemp("readers") / "run.skblab"
    with lab.guest.popen(["python3", "-c", PROGRAM, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == b"ready\n"
        lab.guest.run(["ip", "link", "set", "vec0", "down"], check=True)
        lab.guest.run(["ip", "link", "set", "vec0", "name", ODD], check=True)
        lab.guest.run(["ip", "link", "set", ODD, "up"], check=True)
        with lab.trace(to=path, about={"command": ["{{data}}", "\udcff<"]}) as tracer:
            for name in conversations.CONVERSATIONS:
                program.stdin.write(f"{name}\n".encode())
                program.stdin.flush()
                assert program.stdout.readline() == b"done\n", name
            with lab.rule("icmp_rcv = edit ip.tos=4 @1"), lab.rule("ip_rcv = delay 5ms"):
                answered = lab.run(["ping", "-n", "-c", "2", "-i", "0.1", "-s", "3000", "guest"])
                assert answered.returncode == 0, answered.stdout
            with lab.rule("icmp_rcv = drop NOT_SPECIFIED"):
                lab.run(["ping", "-n", "-c", "1", "-W", "0.2", "guest"])
            lab.run(["ping", "-n", "-6", "-c", "1", "guest"])
            tracer.end(status=0)
        program.kill()
    return path


@pytest.fixture(scope="module")
def trace(file: Path) -> Trace:
    return load(file)


@pytest.fixture(scope="module")
def pcapng(file: Path) -> Path:
    path = file.with_suffix(".pcapng")
    done = skblab("export", str(file), "--pcapng", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_all_of_them_count_the_same(trace: Trace, pcapng: Path, tmp_path: Path) -> None:
    steps = [step for step in trace.steps if is_readable(step)]
    functions = {step.function.name for step in steps}
    assert len(functions) > 250
    assert counted(pcapng) == len(steps)
    said = read("capinfos", "-M", pcapng)
    assert int(re.findall(r"Number of packets: +(\d+)", said)[0]) == len(steps)
    assert int(re.findall(r"Number of interfaces in file: +(\d+)", said)[0]) == len(functions)
    assert "File timestamp precision:  nanoseconds (9)" in said
    assert "Strict time order:   True" in said
    read("editcap", "-F", "nsecpcap", pcapng, tmp_path / "one.pcap")
    assert counted(tmp_path / "one.pcap") == len(steps)
    read("mergecap", "-w", tmp_path / "two.pcapng", pcapng, pcapng)
    assert counted(tmp_path / "two.pcapng") == 2 * len(steps)
    with RawPcapNgReader(str(pcapng)) as packets:
        assert [data[14:] for data, _ in packets] == [step.data for step in steps]


def test_wireshark_dissects_what_we_claim(trace: Trace, pcapng: Path) -> None:
    rows = [
        line.split("\t")
        for line in read(
            "tshark", "-nr", pcapng, "-T", "fields", *(word for name in FIELDS for word in ("-e", name))
        ).splitlines()
    ]
    steps = [step for step in trace.steps if is_readable(step)]
    clock = trace.about["clock"]
    shift_ns = clock["realtime_ns"] - clock["monotonic_ns"]
    for row, step in zip(rows, steps, strict=True):
        assert row[0] == step.function.name
        assert row[1].startswith(f"packet {step.packet}, skb {step.skb:#x}, len {step.length}")
        assert int(row[2].replace(".", "")) == step.at_ns + shift_ns
        assert int(row[4]) == 14 + len(step.data) <= int(row[3])
        assert row[5] == ETHERNET
        reason = reason_in_words(trace, step)
        assert (f", drop {reason}" in row[1]) == bool(reason)
    drops = Counter(reason for step in steps if (reason := reason_in_words(trace, step)))
    assert drops["NOT_SPECIFIED"] >= 1
    assert any(int(row[3]) > 1514 for row in rows)  # GSO
    assert any("verdict edit" in row[1] for row in rows)
    assert any(f", dev {SHOWN}," in row[1] for row in rows)


def test_what_came_or_is_to_go_is_not_malformed(pcapng: Path) -> None:
    rows = read("tshark", "-nr", pcapng, "-T", "fields", "-e", "frame.interface_name", "-e", "_ws.malformed")
    said = Counter(tuple(line.split("\t")) for line in rows.splitlines())
    assert {function for function, _ in said} > set(FINISHED)
    malformed = {function for function, wrong in said if wrong}
    assert "ip6_send_skb" in malformed  # net/ipv6/output_core.c __ip6_local_out() writes the length
    assert malformed & set(FINISHED) == set()


def test_the_protocols_are_there(pcapng: Path) -> None:
    said = read("tshark", "-nr", pcapng, "-q", "-z", "io,phs")
    for protocol in ("arp", "ip", "ipv6", "icmp", "icmpv6", "tcp", "udp", "vxlan"):
        assert re.search(rf"^ +{protocol} ", said, re.MULTILINE), protocol


def test_a_trace_without_packets_is_no_file(lab: Lab, tmp_path: Path) -> None:
    with lab.trace(to=tmp_path / "t", filter="tcp port 9") as tracer:
        tracer.end(status=0)
    done = skblab("export", str(tmp_path / "t"), "--pcapng", str(tmp_path / "p"))
    assert (done.returncode, "no step of this trace has a network packet" in done.stderr) == (2, True)
    assert not (tmp_path / "p").exists()


def test_json_lines_are_read_by_python_and_by_jq(file: Path, trace: Trace, tmp_path: Path) -> None:
    done = skblab("show", str(file), "--json")
    assert done.returncode == 0, done.stderr
    (tmp_path / "lines").write_text(done.stdout)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    told = [(row["function"], row["device"]) for row in rows if row["type"] == "step" and row["packet"]]
    assert told == [(step.function.name, step.device) for step in trace.steps if step.packet]
    steps = 'select(.type == "step" and .packet > 0) | [.function, .device] | @json'
    said = read("jq", "-r", steps, tmp_path / "lines").splitlines()
    assert [tuple(json.loads(line)) for line in said] == told


def test_the_text_has_a_line_for_each_call(file: Path, trace: Trace, tmp_path: Path) -> None:
    """As awk reads it."""
    shown = [call.step.function.name for one in journeys(trace) for _, call in one.walk()]
    (tmp_path / "tree").write_text(skblab("show", str(file), "--all").stdout)
    counting = r"/^ +[0-9.]+ .*[a-z0-9_.]\(\)/ { count++ } END { print count }"
    assert int(read("awk", counting, tmp_path / "tree")) == len(shown)


class Page(HTMLParser):
    """What a reader without a script finds in a page: is every element closed, and where is the data?"""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.is_data = False
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "input", "br", "link", "!doctype"}:
            self.open.append(tag)
        self.is_data = ("type", "application/json") in attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data if self.is_data and self.open[-1:] == ["script"] else ""


def test_the_page_is_html_and_has_every_step(file: Path, trace: Trace, tmp_path: Path) -> None:
    """Beside a browser (test_page.py)."""
    done = skblab("export", str(file), "--html", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = Page()
    page.feed((tmp_path / "page.html").read_text())
    page.close()
    assert page.open == []
    steps = json.loads(page.data)["steps"]
    shown = [call.step for one in journeys(trace) if one.is_of_network for _, call in one.walk()]
    assert len(steps["at"]) == len(shown)
