"""gdb's own prompt, for a person and for a script on standard input, and the guest afterwards."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.recipe import SERIES
from skblab.image.scripts import ensure_scripts
from skblab.image.store import cache_dir, find_image
from support import SKBLAB, Person, eventually_nothing, remains, skblab

PING_AFTER = """
import sys
from skblab import Lab
with Lab(series=sys.argv[1]) as lab:
    status = lab.gdb_prompt(attached=lambda: lab.popen(["ping", "-c", "50", "-i", "0.05", "guest"], stdout=-3))
    print("status", status, lab.run(["ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", "guest"]).stdout)
"""
CONTINUE_AT_ECHO = ("break icmp_rcv", "continue")
MARK = "-- next --"


def fed(argv: tuple[str, ...], commands: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with some lines on its standard input, and what it says on stderr among the rest."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin:
        with os.fdopen(writer, "w") as script:
            script.write("".join(f"{command}\n" for command in commands))
        running = process.start(
            argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    return process.finish(running, timeout_s=90)


def gdb(*commands: str, count: int = 1, options: tuple[str, ...] = (), **environment: str) -> str:
    """Return the output of ``skblab gdb`` for some commands during a ping."""
    client = ("ping", "-n", "-W", "60", "-i", "0.2", "-c", str(count), "guest")
    done = fed((*SKBLAB, "gdb", *options, "--", *client), (*commands, "detach", "quit"), **environment)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    assert "Python Exception" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("series", SERIES)
def test_a_script_on_standard_input_sees_the_ping(series: str) -> None:
    said = gdb(*CONTINUE_AT_ECHO, "skb skb", "bt 5", options=("--series", series))
    assert re.search(r"192\.168\.10\.254 > 192\.168\.10\.1: ICMP echo request, id \d+, seq 1, length 64", said), said
    assert "more recent than executable" not in said
    assert re.search(r"skb 0x\w+  len 64  data_len 0  mark 0x0", said)
    assert "dev vec0  protocol 0x0800 (IPv4)" in said
    assert "transport +0" in said
    assert "0x0000:  4500 0054" in said
    assert "#0  icmp_rcv (skb=0x" in said
    assert len(parse_ping(said)) == 1, said


def test_the_systems_own_gdb_does_as_well() -> None:
    said = gdb(*CONTINUE_AT_ECHO, "skb", "skb-path", "skb-watch", "skb-watch", SKBLAB_GDB="/usr/bin/gdb")
    assert "ICMP echo request" in said
    assert "changes in icmp_rcv()" in said, said[-1500:]
    assert "is freed" in said, said[-1500:]
    assert len(parse_ping(said)) == 1, said


def test_the_way_of_the_packet() -> None:
    lines = [line for line in gdb(*CONTINUE_AT_ECHO, "skb-path").splitlines() if re.search(r"#\d+ +\w+\(\)", line)]
    functions = [re.findall(r"(\w+)\(\)", line)[0] for line in lines]
    assert functions[:2] == ["icmp_rcv", "ip_protocol_deliver_rcu"]
    assert functions[-1] == "net_rx_action"
    assert not {"do_IRQ", "start_kernel", "__do_softirq"} & set(functions)
    packets = set(re.findall(r"skb (0x\w+)", "\n".join(lines)))
    assert len(packets) == 1, lines


def test_watching_a_packet_to_its_next_function_and_its_end() -> None:
    said = gdb("break ip_rcv", "continue", "delete", *["skb-watch"] * 6)
    reached = re.findall(r"skb 0x\w+ (reaches|is freed)(?:: )? ?(\w+)\(\)", said)
    assert reached[0] == ("reaches", "ip_local_deliver")
    assert ("reaches", "icmp_rcv") in reached
    assert reached[-1][0] == "is freed"
    assert re.search(r"changes in __skb_pull\(\)\n  len: 84 -> 64", said)  # where it is written, not where it is seen
    assert "called by icmp_rcv()" in said
    assert len(parse_ping(said)) == 1, said


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.wall_clock
def test_two_pings_are_held_and_answered_in_reverse(series: str) -> None:
    hold = ("continue", "skb-hold")
    said = gdb(
        "break icmp_rcv", *hold, *hold, "skb-held", "disable", "skb-release 2", "skb-release", "skb-held", count=3,
        options=("--series", series),
    )  # fmt: skip
    assert re.search(
        r"held as packet 1: .* seq 1, length 64\nicmp_rcv\(\) returns 0 to ip_protocol_deliver_rcu\(\)", said
    )
    assert re.search(r" 1 +0\.\d s  icmp_rcv\(\) .* seq 1, .*\n +2 +0\.0 s  icmp_rcv\(\) .* seq 2, ", said), said
    assert "no packet is held" in said
    assert re.findall(r"icmp_seq=(\d)", said) == ["2", "1", "3"], said
    assert parse_ping(said)[0].rtt_ms < 150 < parse_ping(said)[1].rtt_ms


@pytest.mark.parametrize("how", [("quit",), ("kill-gdb",)], ids=" ".join)
def test_who_leaves_gdb_leaves_nothing_held(how: tuple[str, ...]) -> None:
    end = "python import os, signal; os.kill(os.getpid(), signal.SIGKILL)" if how == ("kill-gdb",) else how[0]
    script = f"""
import sys
from skblab import Lab
with Lab() as lab:
    commands = ["break icmp_rcv", "continue", "skb-hold", {end!r}]
    clients = []
    ping = ["ping", "-n", "-c", "1", "-W", "9", "guest"]
    lab.gdb_prompt(commands, attached=lambda: clients.append(lab.popen(ping, stdout=-3)))
    print("ping", clients[0].wait(15), lab.agent.channel.held)
"""
    done = process.run([sys.executable, "-c", script], timeout_s=60)
    assert "held as packet 1" in done.stdout
    assert "ping 0 0" in done.stdout, done.stdout + done.stderr


def test_holding_is_refused_where_it_cannot_be() -> None:
    said = gdb("skb-hold", *CONTINUE_AT_ECHO, "skb-hold now", "stepi", "skb-hold", "skb-release 7", "skb-release x")
    assert said.count("skb-hold works at the entry of ip_rcv, ") == 2
    assert "skb-hold takes no argument" in said
    assert "no packet 7 is held here; held: none" in said
    assert "no packet x is held here" in said
    assert len(parse_ping(said)) == 1, said
    done = fed((*SKBLAB, "gdb", "--from-boot"), ("break start_kernel", "continue", "skb-hold", "kill", "quit"))
    assert "packets cannot be held here: the kernel was attached to before it had booted" in done.stdout


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.wall_clock  # ping waits for the last answer as long as between two
def test_dropping_one_ping_loses_exactly_that_one(series: str) -> None:
    said = gdb("break icmp_rcv", "ignore 1 1", "continue", "skb-drop", count=3, options=("--series", series))
    assert "seq 2, length 64" in said
    assert "icmp_rcv() returns 0 to ip_protocol_deliver_rcu()" in said
    assert re.findall(r"icmp_seq=(\d)", said) == ["1", "3"], said


def test_dropping_is_refused_where_the_packet_is_somebody_elses() -> None:
    said = gdb("skb-drop", *CONTINUE_AT_ECHO, "skb-drop now", "stepi", "stepi", "stepi", "skb-drop")
    assert said.count("not here: ") == 2
    assert "icmp_rcv() is not at its first instruction" in said
    assert "skb-drop takes no argument" in said
    assert len(parse_ping(said)) == 1, said


def answers(said: str) -> list[str]:
    """Return gdb's output after each MARK that it echoed."""
    return said.split(MARK)[1:]


@pytest.mark.parametrize("command", ["skb", "skb-watch"])
def test_a_bad_expression_gets_one_clear_line(command: str) -> None:
    wanted = {
        "": 'skb: No symbol "skb" in current context.',
        "nonsense": 'nonsense: No symbol "nonsense" in current context.',
        "(": "(: ",
        "0": "0 is NULL: no packet",
        "5": "5: Cannot access memory at address",
        "init_net": "init_net is a struct net, not a struct sk_buff *",
        "&init_net": "&init_net is a struct net *, not a struct sk_buff *",
        "$rsp": "$rsp points to no packet",
    }
    done = fed((*SKBLAB, "gdb"), tuple(line for one in wanted for line in (f"echo {MARK}\\n", f"{command} {one}")))
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    assert "Python Exception" not in done.stdout
    for words, answer in zip(wanted.values(), answers(done.stdout), strict=True):
        assert words in answer.splitlines()[1]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(
    "commands",
    [(), ("quit",), (*CONTINUE_AT_ECHO, "quit"), (*CONTINUE_AT_ECHO, "skb-watch"), ("detach", "quit 3")],
    ids=" ".join,
)
def test_leaving_gdb_leaves_a_healthy_guest(series: str, commands: tuple[str, ...]) -> None:
    done = fed((sys.executable, "-c", PING_AFTER, series), commands)
    said = done.stdout.rpartition("status")[2]
    assert said.split()[0] == ("3" if "quit 3" in commands else "0")
    assert len(parse_ping(said)) == 3, done.stdout


def test_a_gdb_that_crashes_leaves_no_breakpoint_behind() -> None:
    armed = ("break icmp_rcv", "break ip_rcv", "break *(icmp_echo+3)", "set breakpoint always-inserted on")
    done = fed((sys.executable, "-c", PING_AFTER, "6.12"), (*armed, "python import os; os.kill(os.getpid(), 9)"))
    assert "status 137" in done.stdout
    assert len(parse_ping(done.stdout.rpartition("status")[2])) == 3, done.stdout


@pytest.mark.parametrize("series", SERIES)
def test_the_kernels_own_commands_have_numbers_and_look_nothing_up(series: str) -> None:
    made = (ensure_scripts(find_image(series).path).parent / "scripts/gdb/linux/constants.py").read_text()
    assert "LX_SB_RDONLY = 1\n" in made
    assert re.findall(r"^(LX_\w+) = gdb", made, re.MULTILINE) == ["LX_hrtimer_resolution"]  # a variable


@pytest.mark.parametrize("series", SERIES)
def test_the_kernels_own_commands(series: str) -> None:
    done = skblab("gdb", "--series", series, "-ex", "lx-version", "-ex", "lx-dmesg", "-ex", "lx-ps")
    assert done.returncode == 0, done.stderr
    assert f"Linux version {series}." in done.stdout
    assert "Run /init as init process" in done.stdout
    assert re.search(r"1\s+init", done.stdout)


def test_options_for_gdb() -> None:
    done = skblab("gdb", "-ex", "print 6 * 7", "-ex", "info functions ^icmp_rcv$")
    assert done.returncode == 0, done.stderr
    assert "$1 = 42" in done.stdout
    assert "net/ipv4/icmp.c" in done.stdout
    commands = ("skb", "skb-path", "skb-watch", "skb-drop", "skb-hold", "skb-held")
    words = [word for one in commands for word in ("-ex", f"echo {MARK}\\n", "-ex", f"help {one}")]
    for command, answer in zip(commands, answers(skblab("gdb", *words).stdout), strict=True):
        assert f"{command}\n" in answer.replace(" [EXPR]", "")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_users_own_init_file_only_when_asked_for(tmp_path: Path, wanted: bool) -> None:
    (tmp_path / ".gdbinit").write_text("echo of my own\\n\n")
    done = skblab("gdb", *(["--user-init"] if wanted else []), HOME=str(tmp_path), SKBLAB_CACHE=str(cache_dir()))
    assert done.returncode == 0, done.stderr
    assert ("of my own" in done.stdout) is wanted


@pytest.fixture
def person() -> Iterator[Person]:
    before = remains()
    person = Person("gdb", "--", "ping", "-n", "-i", "0.2", "guest")
    yield person
    process.end(person.program)
    os.close(person.terminal)
    assert eventually_nothing(before) == []


def prompted(person: Person, words: str) -> None:
    """Read some words and the prompt after them: gdb may lose what is typed before its prompt."""
    read = person.reads(words)
    if "(gdb) " not in read.rpartition(words)[2]:
        person.reads("(gdb) ")


def test_at_a_terminal_ctrl_c_stops_the_guest_and_ctrl_d_leaves(person: Person) -> None:
    prompted(person, "Reading symbols")
    person.types(b"continue\n")
    person.reads("icmp_seq=2 ")
    person.types(b"\x03")
    prompted(person, "received signal SIGINT")
    person.types(b"break icmp_rcv\n")
    prompted(person, "Breakpoint 1 at")
    person.types(b"continue\n")
    prompted(person, "Breakpoint 1, icmp_rcv")
    person.types(b"skb\n")
    prompted(person, "ICMP echo request")
    person.types(b"delete\n")
    person.reads("(gdb) ")
    person.types(b"continue\n")
    person.reads("time=")
    person.types(b"\x03")
    prompted(person, "received signal SIGINT")
    person.types(b"\x04")
    assert process.finish(person.program, timeout_s=20).returncode == 0


@pytest.mark.parametrize("series", SERIES)
def test_from_the_first_instruction_on(series: str) -> None:
    """What failed in 2010: the kernel started under gdb, and its network worked afterwards."""
    person = Person("gdb", "--from-boot", "--series", series, "--", "ping", "-n", "-c", "3", "-i", "0.2", "guest")
    person.reads("(gdb) ")
    for command, said in (
        (b"break start_kernel\n", "Breakpoint 2 at"),
        (b"continue\n", "start_kernel () at /skblab/init/main.c"),
        (b"backtrace 3\n", "start_kernel_proc"),
        (b"delete\n", "(gdb) "),
    ):
        person.types(command)
        person.reads(said)
    person.types(b"continue\n")
    said = person.reads("3 packets transmitted, 3 received")
    assert len(parse_ping(said)) == 3
    person.types(b"\x03")
    person.reads("SIGINT")
    person.types(b"backtrace 5\nquit\n")
    assert person.program.wait(20) == 0
    os.close(person.terminal)


def test_a_lab_that_is_up_has_booted() -> None:
    done = skblab("gdb", "--from-boot", "whatever")
    assert done.returncode == 2
    assert "has booted already" in done.stderr


def test_a_scripts_continue_ends_though_the_client_has_ended() -> None:
    done = fed(
        (*SKBLAB, "gdb", "--", "ping", "-n", "-c1", "guest"),
        (*CONTINUE_AT_ECHO, "continue", "echo one\\n", "continue", "echo two\\n", "quit"),
    )
    assert done.returncode == 0
    before, one, after = done.stdout.partition("one\n")
    assert "1 received" in before
    assert before.count("the client has ended, and the kernel ran on: it is stopped") == 1
    assert "Program received signal SIGCONT" in before
    assert one
    assert "two\n" in after
