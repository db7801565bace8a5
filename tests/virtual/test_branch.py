"""A branch: a lab that begins where another is. Both go on as if the other were not there."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from skblab.agent.packets import State
from skblab.branch import CannotBranch
from skblab.errors import GuestLost, SkblabError, UsageError
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.session import Session
from skblab.spec import LabSpec
from support import eventually, eventually_nothing, open_files, remains

HTTP = "python3 -m http.server 80"
FETCH = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total} %{local_port}", "http://guest/etc/hostname"]

# Threads, children and mappings of many kinds that look again at what they had before: at their memory and registers.
LOOKS_AGAIN = """
import ctypes, hashlib, mmap, os, socket, struct, threading, time
private, shared = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), mmap.mmap(-1, 1 << 20)
file = open("/tmp/file", "w+b"); file.write(os.urandom(1 << 16)); file.flush()
mapped, read_only = mmap.mmap(file.fileno(), 0), mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
private[:], mapped[:4096] = os.urandom(len(private)), b"m" * 4096
forked = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); forked[:] = private[:]
local, pi, said = threading.local(), 3.0, []
ours, theirs = socket.socketpair()
def digest(*ones): return hashlib.sha256(b"".join(bytes(one[:]) for one in ones)).hexdigest()[:12]
if os.fork() == 0:
    before = digest(forked, shared, mapped); forked[7] = 7
    while True:
        asked = ours.recv(9); value = 1.0
        for number in range(1, 50): value = value * 1.000001 + number / 7
        ours.send(f"{before == digest(private, shared, mapped)} {digest(forked)} {value!r}".encode())
def other(number):
    local.number = number; value = number * 1.1
    while True:
        time.sleep(0.05); value += local.number / 3; said.append((number, value))
for number in range(4): threading.Thread(target=other, args=(number,), daemon=True).start()
server = socket.create_server(("", 80))
while True:
    one, _ = server.accept()
    theirs.send(b"look"); answer = theirs.recv(200).decode()
    seen = digest(private, shared, mapped, read_only), forked[7], answer, said[-9:], time.time()
    one.sendall(f"{seen}\\n".encode())
    shared[1] = (shared[1] + 1) % 256; mapped[9] = (mapped[9] + 1) % 256; one.close()
"""
# Python opens its child's maps, which keeps the address space; the child ends.
UNSEEN = """python3 -c '
import os, time
child = os.fork()
if child == 0:
    time.sleep(0.2); os._exit(0)
file = open(f"/proc/{child}/maps"); file.read(1)
os.waitpid(child, 0); time.sleep(50); file.close()' & sleep 1"""
ASKS = """
import socket, time
for _ in range(4):
    one = socket.create_connection(("guest", 80)); print(one.makefile().read(), end=""); time.sleep(0.3)
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = remains()
    yield
    assert eventually_nothing(before) == []


def spec(image: Image, *commands: str, **fields: object) -> LabSpec:
    return LabSpec(image=image, time="virtual", commands=commands, **fields)  # type: ignore[arg-type]


def test_the_first_example(image: Image) -> None:
    with spec(image, HTTP).start() as lab:
        took = []
        for rule in ("tcp_v4_rcv = trace @2", "tcp_v4_rcv = delay 1s @2", "tcp_v4_rcv = drop @1-3"):
            with lab.branch() as branch, branch.rule(rule) as running:
                took.append(float(branch.run(FETCH).stdout.split()[1]))
            assert running.fired
    assert [round(seconds) for seconds in took] == [0, 1, 3]


@pytest.mark.parametrize("userspace", ["ptrace", "seccomp"])
def test_a_branch_and_its_stem_go_on_alike(userspace: str) -> None:
    server = f"exec python3 -c '{LOOKS_AGAIN}'"
    described = spec(find_image("7.3"), server, userspace=userspace)
    ask = ["python3", "-c", ASKS]
    with described.start() as lab:
        said = lab.run(ask).stdout
    lines = said.splitlines()
    assert (len(lines), "'True " in lines[0]) == (4, True)
    with described.start() as lab:
        for _ in range(3):
            with lab.branch() as branch:
                assert branch.run(ask).stdout == said
        assert lab.run(ask).stdout == said  # nothing that they did is seen here
        later = []
        for _ in range(2):  # from where it is now
            with lab.branch() as branch:
                later.append(branch.run(ask).stdout)
        assert later == [lab.run(ask).stdout] * 2
        assert later[0] != said


def test_on_every_series(every_image: Image) -> None:
    with spec(every_image, HTTP, nodes=["third"]).start() as lab:
        outcomes = []
        for _ in range(2):
            with lab.branch() as branch:
                outcomes.append([branch.run(FETCH).stdout, branch.guest.run(["sh", "-c", "echo $$ $PPID"]).stdout])
                assert b"192.168.10." in branch.guest.read("/proc/self/net/fib_trie", node="third")
        outcomes.append([lab.run(FETCH).stdout, lab.guest.run(["sh", "-c", "echo $$ $PPID"]).stdout])
        assert outcomes[0] == outcomes[1] == outcomes[2]


def test_packets_are_held_in_a_branch(image: Image) -> None:
    with spec(image, HTTP).start() as lab:
        for _ in range(2):
            with lab.branch() as branch, branch.hold("tcp_v4_rcv") as held:
                client = branch.popen(FETCH)
                (syn,) = held.take(1)
                branch.clock.advance("30s")
                assert len(held.take_all()) >= 4
                assert syn.state is State.HELD
                assert client.poll() is None
        assert lab.clock.now < 5
        assert (lab.agent.channel.held, lab.agent.channel.probes) == (0, 0)


def test_many_one_after_another(image: Image) -> None:
    with spec(image).start() as lab:
        lab.branch().__enter__().close()
        ours = open_files(os.getpid()).keys()
        before = len(open_files(lab.namespaces.pid)), len(open_files(lab.guest.pid))
        for _ in range(300):
            with lab.branch() as branch:
                assert branch.clock.now == lab.clock.now
        assert open_files(os.getpid()).keys() <= ours
        assert (len(open_files(lab.namespaces.pid)), len(open_files(lab.guest.pid))) == before


@pytest.mark.complains("panic")
def test_a_branch_that_ends_badly(every_image: Image) -> None:
    with spec(every_image, HTTP).start() as lab:
        for key, how in (("c", "SIGABRT"), ("o", "halted"), ("b", "halted")):
            with lab.branch() as branch, pytest.raises(GuestLost, match=how):
                branch.run(["sh", "-c", f"echo {key} >/proc/sysrq-trigger; sleep 9"])
            assert [one.kind for one in branch.complaints] == ["panic"] * (key == "c")
        with lab.branch() as branch:
            os.kill(branch.guest.pid, signal.SIGKILL)
            with pytest.raises(GuestLost, match="SIGKILL"):
                branch.run(["true"])
        assert lab.complaints == ()
        assert lab.run(FETCH).stdout.startswith("200")
        assert every_image.release in lab.guest.mconsole.version()
        with lab.branch() as branch:
            os.kill(lab.guest.pid, signal.SIGKILL)
            assert branch.run(FETCH).stdout.startswith("200")
        with pytest.raises(GuestLost, match="SIGKILL"):
            lab.branch()


@pytest.mark.complains("panic")
def test_a_stem_hears_nothing_of_its_branches_end(image: Image) -> None:
    said = "for i in $(seq 30); do echo x >/proc/mconsole; done; echo c >/proc/sysrq-trigger; sleep 9"
    heard: list[object] = []
    with spec(image, HTTP).start() as lab, contextlib.closing(lab.on_panic(heard.append)):
        for _ in range(3):
            with lab.branch() as branch, pytest.raises(GuestLost):
                branch.run(["sh", "-c", said])
            with Session(lab, ["tcp_v4_rcv = trace"]) as session:
                assert session.run(FETCH, capture=True).status == 0
            with lab.branch() as branch, Session(branch, ["tcp_v4_rcv = trace"]) as session:
                assert session.run(FETCH, capture=True).status == 0
        assert heard == []
        with pytest.raises(GuestLost):
            lab.run(["sh", "-c", said])
        assert eventually(lambda: len(heard) == 1)


def test_a_stopped_program(every_image: Image) -> None:
    """Before 6.16, it sleeps where the kernel has noted its process."""
    wake = "kill -CONT $(cat /tmp/pid); sleep 1; kill -0 $(cat /tmp/pid) && echo lives"
    with spec(every_image, f"sleep 1000 & echo $! >/tmp/pid; kill -STOP $!; exec {HTTP}").start() as lab:
        if every_image.series < "7":
            with pytest.raises(SkblabError, match=r"cannot be copied(.|\n)*stopped"), lab.branch():
                pass
        else:
            with lab.branch() as branch:
                assert branch.guest.run(["sh", "-c", wake]).stdout == "lives\n"
        assert lab.guest.run(["sh", "-c", wake]).stdout == "lives\n"
        with lab.branch() as branch:
            assert branch.run(FETCH).stdout.startswith("200")


def test_an_address_space_that_only_a_file_has(every_image: Image) -> None:
    with spec(every_image, f"{UNSEEN}; exec {HTTP}").start() as lab:
        with pytest.raises(SkblabError, match="cannot be copied"), lab.branch():
            pass
        lab.clock.advance("100s")
        with lab.branch() as branch:
            assert branch.run(FETCH).stdout.startswith("200")
        assert lab.complaints == ()


def test_one_at_a_time(image: Image) -> None:
    with spec(image).start() as lab:
        with lab.branch() as branch:
            with pytest.raises(UsageError, match="one at a time"), lab.branch():
                pass
            for ask in (lambda: lab.run(["true"]), lambda: lab.guest.read("/proc/uptime")):
                with pytest.raises(SkblabError, match="has a branch"):
                    ask()
            lab.clock.advance("10s")  # its time passes
            assert branch.clock.now < 2
            with pytest.raises(UsageError, match="cannot be kept"):
                branch.keep()
            for _ in range(2):  # a branch branches
                with branch.branch() as twig:
                    assert twig.run(["ping", "-n", "-c1", "guest"]).returncode == 0
                    twig.clock.advance("100s")
                    assert twig.guest.mconsole.proc("uptime").startswith("101.")
            assert branch.run(["true"]).returncode == 0
        assert lab.run(["true"]).returncode == 0


def test_branches_of_branches_at_once(every_image: Image) -> None:
    with spec(every_image, HTTP).start() as lab:
        for _ in range(30):
            with lab.branch() as branch, branch.branch() as twig, twig.branch() as leaf:
                assert leaf.clock.now == lab.clock.now


def test_an_interrupt_at_any_moment(image: Image) -> None:
    with spec(image, HTTP).start() as lab:
        lab.branch().__enter__().close()
        before = open_files(os.getpid()).keys()
        for number in range(60):
            timer = threading.Timer(number * 0.0003, lambda: os.kill(os.getpid(), signal.SIGINT))
            with contextlib.suppress(KeyboardInterrupt):
                timer.start()
                with lab.branch():
                    timer.join()
                    select.select([], [], [], 1)
            if number % 5 == 0:
                with lab.branch() as branch:
                    assert branch.run(FETCH).stdout.startswith("200")
        assert open_files(os.getpid()).keys() <= before


def test_faults_that_only_map_a_page_are_counted(every_image: Image) -> None:
    counts = """exec python3 -c '
import resource, socket
pages = [bytearray(4096) for _ in range(500)]
server = socket.create_server(("", 80))
while True:
    one, _ = server.accept()
    one.recv(9); sum(page[5] for page in pages)
    one.sendall(str(resource.getrusage(0).ru_minflt).encode()); one.close()'"""
    ask = ["curl", "-s", "--http0.9", "http://guest/"]
    with spec(every_image, counts).start() as lab:
        said = []
        for _ in range(2):
            with lab.branch() as branch:
                said.append(branch.run(ask).stdout)
        said.append(lab.run(ask).stdout)
    assert said == [said[0]] * 3


def test_the_stem_is_closed_first(image: Image) -> None:
    lab = spec(image).start().__enter__()
    branch = lab.branch().__enter__()
    lab.close()
    with pytest.raises(GuestLost):
        branch.run(["true"])
    branch.close()


def test_what_cannot_branch(image: Image) -> None:
    with Lab(image=image) as real, pytest.raises(UsageError, match="real time"):
        real.branch()
    with spec(image, consoles=1).start() as lab, pytest.raises(CannotBranch, match="console"), lab.branch():
        pass
    with spec(image, HTTP).start() as lab:
        with lab.rule("ip_rcv = trace"), pytest.raises(CannotBranch, match="a rule or a trace"), lab.branch():
            pass
        with lab.trace(), pytest.raises(CannotBranch, match="a rule or a trace"), lab.branch():
            pass
        client = lab.popen(["sleep", "1000"])
        with pytest.raises(CannotBranch, match="a client"), lab.branch():
            pass
        client.kill()
        client.wait()
        with lab.branch() as branch:
            assert branch.run(FETCH).stdout.startswith("200")


def test_under_a_kernel_that_looks_for_its_own_mistakes() -> None:
    with spec(find_image("6.12", "kasan"), HTTP, memory_mib=256).start() as lab:
        for _ in range(3):
            with lab.branch() as branch, branch.hold("tcp_v4_rcv", "dst port 80") as held:
                client = branch.popen(FETCH)
                held.take(1)[0].release()
                for packet in held.take_all():
                    packet.release(after_s=0.3)
                branch.clock.advance("2s")
                client.kill()
            assert branch.complaints == ()
        assert lab.run(FETCH).stdout.startswith("200")
        assert lab.complaints == ()
