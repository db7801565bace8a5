"""What is a complaint in a kernel's log, for every series, and what is not."""

import pytest

from skblab.guest.complaint import Complaints, in_words, recognise

BACKTRACE = """\
Call Trace:
 [<60521ed0>] ? _printk+0x0/0x66
 [<6051e103>] ? show_stack.cold+0x8c/0x10e
 [<605433ea>] ? dump_stack+0x1c/0x1e
 [<64855481>] ? mine+0x41/0x50 [its_module]
 [<60069c9e>] ? caller.constprop.0+0x6e/0xc0
 [<6003cac0>] ? a_pointer+0x0/0x60
"""
WARNING = f"""\
------------[ cut here ]------------
WARNING: CPU: 0 PID: 25 at net/core/dev.c:23 mine+0x41/0x50
Modules linked in: skblab_agent(O)
CPU: 0 UID: 0 PID: 25 Comm: sh Tainted: G           O       6.12.117-skblab #1
Stack:
 00000000 6150fb90 6064fd95 60521ed0
{BACKTRACE}---[ end trace 0000000000000000 ]---
"""
OF_7 = WARNING.replace(
    "CPU: 0 PID: 25 at net/core/dev.c:23 mine+0x41/0x50", "net/core/dev.c:23 at mine+0x41/0x50, CPU#0: sh/25"
)
OF_7 = OF_7.replace("Call Trace:\n", "Call Trace:\n <TASK>\n").replace("---[ end", " </TASK>\n---[ end")
KASAN = f"""\
==================================================================
BUG: KASAN: slab-use-after-free in mine+0x8d/0xa0
Write of size 1 at addr 0000000067401888 by task sh/38

CPU: 0 UID: 0 PID: 38 Comm: sh
{BACKTRACE}
Allocated by task 38:
 kasan_save_stack+0x20/0x40

Memory state around the buggy address:
>0000000067401880: fa fb fb fb
==================================================================
Disabling lock debugging due to kernel taint
"""
LOCKDEP = f"""\

======================================================
WARNING: possible circular locking dependency detected
6.12.117-skblab #1 Tainted: G           O
------------------------------------------------------
sh/40 is trying to acquire lock:
0000000080862640 (one){{+.+.}}-{{3:3}}, at: mine+0x33/0x80

but task is already holding lock:
0000000080862600 (other){{+.+.}}-{{3:3}}, at: mine+0x28/0x80

the existing dependency chain (in reverse order) is:

-> #1 (other){{+.+.}}-{{3:3}}:
       lock_acquire+0x106/0x280

stack backtrace:
CPU: 0 UID: 0 PID: 40 Comm: sh
{BACKTRACE}"""
SLAB = f"""\
=============================================================================
BUG kmalloc-64 (Tainted: G           O      ): Poison overwritten
-----------------------------------------------------------------------------

0x0000000001 @offset=1. First byte 0x1 instead of 0x6b
{BACKTRACE}FIX kmalloc-64: Restoring Poison 0x1=0x6b
"""


def printed(report: str, at_s: float = 1.25) -> str:
    return "".join(f"[{at_s:12.6f}] {line}\n" for line in report.splitlines())


@pytest.mark.parametrize(
    ("report", "kind", "title"),
    [
        (WARNING, "warning", "WARNING: CPU: 0 PID: 25 at net/core/dev.c:23 mine+0x41/0x50"),
        (OF_7, "warning", "WARNING: net/core/dev.c:23 at mine+0x41/0x50, CPU#0: sh/25"),
        (WARNING.replace("Modules", "refcount_t: underflow; use-after-free.\nModules"), "refcount", "WARNING: CPU: 0"),
        (
            WARNING.replace("WARNING", "refcount_t: underflow; use-after-free.\nWARNING"),
            "refcount",
            "refcount_t: underf",
        ),
        (WARNING.replace("Modules", "list_del corruption. prev->next\nModules"), "list", "WARNING: CPU: 0"),
        (WARNING.replace("Modules", "ODEBUG: free active (active state 0)\nModules"), "odebug", "WARNING: CPU: 0"),
        (
            WARNING.replace("WARNING: CPU: 0 PID: 25 at net", "kernel BUG at net"),
            "bug",
            "kernel BUG at net/core/dev.c:23",
        ),
        (
            WARNING.replace("WARNING: CPU: 0 PID: 25", "UBSAN: shift-out-of-bounds"),
            "ubsan",
            "UBSAN: shift-out-of-bounds",
        ),
        (
            KASAN.replace("BUG: KASAN: slab-use-after-free", "UBSAN: array-index-out-of-bounds"),
            "ubsan",
            "UBSAN: array-",
        ),
        (KASAN, "kasan", "BUG: KASAN: slab-use-after-free in mine+0x8d/0xa0"),
        (LOCKDEP, "lockdep", "WARNING: possible circular locking dependency detected"),
        (
            LOCKDEP.replace("possible circular", "inconsistent lock state"),
            "lockdep",
            "WARNING: inconsistent lock state",
        ),
        (LOCKDEP.replace("possible circular", "suspicious RCU usage"), "lockdep", "WARNING: suspicious RCU usage"),
        (SLAB, "slab", "BUG kmalloc-64 (Tainted"),
        ("BUG: sleeping function called from invalid context at mm/a.c:1\n" + BACKTRACE, "sleep", "BUG: sleeping"),
        ("BUG: scheduling while atomic: sh/46/0x00000002\n" + BACKTRACE, "sleep", "BUG: scheduling while atomic"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]\n" + BACKTRACE, "lockup", "watchdog: BUG: soft"),
        ("INFO: task hangs:50 blocked for more than 120 seconds.\n" + BACKTRACE, "hung task", "INFO: task hangs:50"),
        ("rcu: INFO: rcu_sched self-detected stall on CPU\n" + BACKTRACE, "rcu stall", "rcu: INFO: rcu_sched"),
        ("INFO: rcu_sched detected stalls on CPUs/tasks:\n" + BACKTRACE, "rcu stall", "INFO: rcu_sched"),
        (
            "sh: page allocation failure: order:8, mode:0x820\n" + BACKTRACE + "Mem-Info:\n",
            "allocation",
            "sh: page alloc",
        ),
        ("Oops: 0000 [#1]\n" + BACKTRACE, "oops", "Oops: 0000 [#1]"),
        ("ref_tracker: vec0@6000 has 1/1 users at\n     mine+0x1/0x2\n", "ref_tracker", "ref_tracker: vec0@6000"),
    ],
    ids=lambda value: value if value and " " not in value else "",
)
def test_a_report(report: str, kind: str, title: str) -> None:
    (complaint,) = recognise(printed("before") + printed(report) + printed("after"))
    assert (complaint.kind, complaint.at_s) == (kind, 1.25)
    assert complaint.title.startswith(title)
    assert complaint.trace[0] == "mine"
    if "caller" in report:
        assert complaint.trace == ("mine", "caller")
    assert "after" not in complaint.lines or complaint.kind == "ref_tracker"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("unregister_netdevice: waiting for vec0 to become free. Usage count = 2", "netdevice"),
        ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", "kmemleak"),
    ],
)
def test_a_report_of_one_line(line: str, kind: str) -> None:
    (complaint,) = recognise(printed(line) + printed("after"))
    assert (complaint.kind, complaint.lines) == (kind, (line,))


def test_first_lines_say_what_was_found() -> None:
    (complaint,) = recognise(printed(LOCKDEP))
    assert complaint.first_lines == (
        "WARNING: possible circular locking dependency detected",
        "sh/40 is trying to acquire lock:",
        "0000000080862640 (one){+.+.}-{3:3}, at: mine+0x33/0x80",
    )
    assert in_words([complaint]).splitlines() == [
        "the guest's kernel complained once:",
        "  [    1.250000] WARNING: possible circular locking dependency detected",
        "    sh/40 is trying to acquire lock:",
        "    0000000080862640 (one){+.+.}-{3:3}, at: mine+0x33/0x80",
        "      #0  mine()",
        "      #1  caller()",
    ]
    assert in_words([complaint, complaint]).startswith("the guest's kernel complained 2 times:\n")


def test_a_report_in_a_report() -> None:
    outer, inner = printed(WARNING).splitlines(keepends=True), printed(WARNING.replace("WARNING", "UBSAN: in"))
    both = recognise("".join([*outer[:3], inner, *outer[3:]]))
    assert [one.kind for one in both] == ["ubsan", "warning"]
    assert [len(one.lines) for one in both] == [len(outer) - 1] * 2
    assert [one.trace for one in both] == [("mine", "caller")] * 2


def test_one_behind_the_other() -> None:
    reports = [LOCKDEP, "BUG: sleeping function called from invalid context\n" + BACKTRACE, WARNING, KASAN, SLAB]
    kinds = [one.kind for one in recognise("".join(map(printed, reports)))]
    assert kinds == ["lockdep", "sleep", "warning", "kasan", "slab"]


def test_it_comes_in_pieces() -> None:
    complaints = Complaints()
    text = printed(WARNING)
    for piece in (text[index : index + 7] for index in range(0, len(text), 7)):
        assert complaints.complete == ()
        complaints.feed(piece)
    assert (complaints.complete, complaints.open) == (recognise(text), False)
    complaints.feed(printed("INFO: task hangs:50 blocked for more than 120 seconds."))
    assert (len(complaints.complete), len(complaints.all), complaints.open) == (1, 2, True)
    complaints.feed(printed("much later", 3.0))
    assert (len(complaints.complete), complaints.open) == (2, False)


def test_a_panic_of_a_bug_is_one_event() -> None:
    text = printed("BUG: failure at net/a.c:81/mine()!\nKernel panic - not syncing: BUG!\n" + BACKTRACE)
    (panic,) = recognise(text)
    assert (panic.kind, panic.title, panic.trace) == ("panic", "BUG: failure at net/a.c:81/mine()!", ("mine", "caller"))
    assert [one.kind for one in recognise(printed(KASAN) + text)] == ["kasan", "panic"]


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: foo\nBUG: bar\n",
        "[    1.250000] WARNING: CPU: 0 PID: 1 at a program's own\r\n",
        printed("skblab_agent: loading out-of-tree module taints kernel."),
        printed("mine: a WARNING: of its own"),
        printed("INFO: lockdep is turned off."),
        printed("Freeing unused kernel image (initmem) memory: 12K"),
    ],
)
def test_what_is_none(text: str) -> None:
    assert recognise(text) == ()


def test_a_programs_line_without_an_end() -> None:
    (complaint,) = recognise("Password: " + printed("WARNING: foo"))
    assert complaint.title == "WARNING: foo"
