"""Process 1 of a lab survives every message."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fuzz import EXAMPLES
from skblab.errors import SkblabError, UsageError
from skblab.host import lab_init, registry
from skblab.host.namespace import JoinedNamespaces
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.lab import Lab
from support import cpu_ticks, skblab

LET_IN = 4
MANY_WORDS = tuple(map(str, range(1, 15001)))
OPERATIONS = sorted(name.removeprefix("do_") for name in vars(lab_init.LabInit) if name.startswith("do_"))
NAMES = ("about", "addresses", "argv", "device", "family", "kind", "lines", "name", "program", "protocol", "sees",
         "stopped", "who")  # fmt: skip
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20) | some.sampled_from(
        ["tap", "veth", "192.168.77.1/24", "ip", "link show"]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
REQUESTS = some.builds(
    lambda op, more: json.dumps({"op": op, **more}).encode(),
    some.sampled_from([op for op in OPERATIONS if op != "end"]) | some.text(max_size=10),
    some.dictionaries(some.sampled_from(NAMES) | some.text(max_size=8), VALUES, max_size=6),
)
DATAGRAMS = REQUESTS | VALUES.map(json.dumps).map(str.encode) | some.binary(min_size=1, max_size=200)


@pytest.fixture(scope="module")
def name(image: Image) -> Iterator[str]:
    """The name of a lab that is up."""
    with Lab(f"messages-{os.getpid()}", image=image) as lab:
        lab.keep()
    yield lab.name
    with Lab.join(lab.name) as joined:
        joined.end()


def answer_to(name: str, *datagrams: bytes, fds: int = 0) -> dict[str, object]:
    """Send datagrams on a new connection; return the answer to the last one."""
    with closing(registry.connect(name)) as control:
        control.settimeout(20)
        for datagram in datagrams:
            with Path(os.devnull).open("rb") as null:
                socket.send_fds(control, [datagram], [null.fileno()] * fds)
            try:
                data, given, _, _ = socket.recv_fds(control, 1 << 17, 64)
            except TimeoutError:
                pytest.fail(f"process 1 does not answer {datagram!r}: {what_it_does(name)}")
            for descriptor in given:
                os.close(descriptor)
        answer: dict[str, object] = json.loads(data)
        return answer


def what_it_does(name: str) -> dict[str, str]:
    """Return what process 1 of a lab does, or waits for, and what its children are."""
    pid = next(owner.init_pid for owner in registry.running() if owner.name == name)
    about = {one: Path(f"/proc/{pid}/{one}") for one in ("stat", "wchan", "syscall", "stack")}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return {one: path.read_text().strip() for one, path in about.items()} | {"children": repr(commands)}


@given(datagrams=some.lists(DATAGRAMS, min_size=1, max_size=5), fds=some.integers(0, 5))
@settings(max_examples=max(EXAMPLES, 300))
def test_arbitrary_messages(name: str, datagrams: list[bytes], fds: int) -> None:
    answer_to(name, *datagrams, fds=fds)
    assert answer_to(name, b'{"op": "status"}') == {"status": None}


@pytest.mark.parametrize(
    ("datagram", "says"),
    [
        (b'{"op": "nonsense"}', "no such request"),
        (b'{"op": "status", "more": 1}', "unexpected keyword argument"),
        (b"{}", "KeyError"),
        (b"[" * 60000, "Error"),
        (b"not JSON", "JSONDecodeError"),
        (json.dumps({"op": "status", "x": "y" * (1 << 16)}).encode(), "more than 65536 bytes"),
    ],
    ids=["unknown", "unknown argument", "empty", "deep", "no JSON", "too long"],
)
def test_what_is_no_request_is_answered(name: str, datagram: bytes, says: str) -> None:
    answer = answer_to(name, datagram)
    assert answer["error"] == "request"
    assert says in str(answer["detail"])
    with JoinedNamespaces(name) as namespaces, pytest.raises(SkblabError, match="refuses a request"):
        namespaces.request("nonsense")


def ask_without_end(control: socket.socket) -> None:
    while True:
        control.send(b'{"op": "status"}')


def test_a_controller_that_reads_no_answers_holds_up_nobody(name: str) -> None:
    with closing(registry.connect(name)) as deaf:
        deaf.settimeout(20)
        with pytest.raises(ConnectionError):  # process 1 hangs up
            ask_without_end(deaf)
        assert answer_to(name, b'{"op": "status"}') == {"status": None}


def descriptors(pid: int) -> list[int]:
    """Return the descriptors that a process has."""
    return [int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()]


def test_those_who_have_left_keep_no_descriptor(name: str) -> None:
    with JoinedNamespaces(name) as namespaces:
        pid = namespaces.pid
        before = len(descriptors(pid))
    for _ in range(50):
        answer_to(name, b'{"op": "join"}')
        answer_to(name, b'{"op": "notifications"}')
    with JoinedNamespaces(name):
        assert len(descriptors(pid)) < before + 10  # it may not have looked at the last ones yet


def test_who_finds_no_descriptor_left_waits_for_one(name: str) -> None:
    with JoinedNamespaces(name) as namespaces, ExitStack() as stack:
        pid = namespaces.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(descriptors(pid)) + 1 + LET_IN, limits[1]))
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limits)
        let_in = [asking(name, stack) for _ in range(20 * LET_IN)]  # some of them
        late = asking(name, stack)
        namespaces.request("status")
        used = cpu_ticks(pid)
        assert not wait([late], 0.3)
        assert cpu_ticks(pid) - used < 10, "process 1 does not wait, it asks again and again"
        for one in let_in:
            one.close()
        assert json.loads(late.recv(100)) == {"status": None}


def asking(name: str, stack: ExitStack) -> socket.socket:
    """Return a connection that has asked for something, closed with a stack."""
    control = stack.enter_context(closing(registry.connect(name)))
    control.settimeout(20)
    control.send(b'{"op": "status"}')
    return control


def test_a_command_line_of_any_length(name: str) -> None:
    done = skblab("run", "--allow-unfired", "--lab", name, "-r", "icmp_rcv = trace", "--", "true", *MANY_WORDS)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    done = skblab("run", "--", "true", *MANY_WORDS)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert answer_to(name, b'{"op": "status"}') == {"status": None}


def test_a_request_that_is_too_long_is_not_sent(name: str) -> None:
    with JoinedNamespaces(name) as namespaces:
        with pytest.raises(UsageError, match="a request of"):
            namespaces.ip(*["link show"] * 10000)
        namespaces.request("status")


def test_a_lab_of_another_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_init, "VERSION", lab_init.VERSION + 1)
    with pytest.raises(SkblabError, match="another version of skblab") as caught, Lab.join(name):
        pass
    assert f"skblab down {name}" in caught.value.hint
    with JoinedNamespaces(name, to_end=True) as namespaces:
        assert namespaces.pid
