"""``skblab gdb``: gdb's own prompt on the guest's kernel, with commands for packets."""

import argparse
import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli.options import add_guest_options, add_lab_options, complete, lab_from, lab_names

if TYPE_CHECKING:
    from skblab.guest.boot import Guest
    from skblab.host.process import Process

GRACE_S = 1.0
AFTER_CLIENT_S = 5.0
STOPPED = "t"  # proc(5): by a debugger
EXAMPLES = """\
examples:
  skblab gdb                               boot, attach, prompt; quit detaches
  skblab gdb -- ping guest                 with a client, whose packets wait while the kernel is stopped
  skblab gdb --from-boot -ex 'break start_kernel' -- ping guest
                                           from the first instruction on; the client starts when the guest is ready
  skblab gdb web                           on a lab that is up (skblab up web)
  skblab gdb -ex 'break icmp_rcv' -ex continue -ex skb -- ping -c1 guest
  printf 'break icmp_rcv\\ncontinue\\nskb skb\\nbt 5\\ndetach\\nquit\\n' | skblab gdb -- ping -c1 guest

commands for packets, beside gdb's own (help COMMAND says more):
  skb [EXPR]         print a packet: one line as from tcpdump, its struct sk_buff, its first bytes
  skb-path           print the network functions of the backtrace, each with its packet
  skb-hold           hold the packet at the entry of the function that would take it over; the kernel runs on without it
  skb-held, skb-release [NUMBER]...  list the held packets; release them
  skb-watch [EXPR]   continue until this packet changes, enters its next function, or is freed
  skb-drop           drop the packet at the entry of the function that would take it over

The client after -- starts on the host side when gdb has attached. A script's "continue" does not wait for ever: 5 s
after the client has ended, the kernel is stopped. Ctrl-C stops the running kernel. Leaving gdb detaches it; then the
lab ends, unless it was up before.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "gdb",
        help="start gdb's own prompt on the guest's kernel, with commands for packets",
        description="Boot a guest and attach gdb to its kernel, with symbols, source and signals set up.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-ex", "--gdb-command", action="append", default=[], metavar="COMMAND", dest="gdb_commands",
                        help="a gdb command to run first; may be given several times")  # fmt: skip
    parser.add_argument("--from-boot", action="store_true", help="begin at the kernel's first instruction")
    parser.add_argument("--user-init", action="store_true", help="read your own ~/.gdbinit first")
    lab = parser.add_argument(
        "lab", nargs="?", metavar="LAB", help="a lab that is up (default: a new one, which ends with gdb)"
    )
    complete(lab, lab_names)
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run)


def _stop_after(client: "Process", guest: "Guest", left: threading.Event) -> None:
    """Stop the kernel after a script's client has ended: the script may wait for a packet that never comes."""
    client.wait()
    while not left.wait(AFTER_CLIENT_S) and guest.alive:
        if Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[0] != STOPPED:
            print("skblab: the client has ended, and the kernel ran on: it is stopped", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(guest.pidfd, signal.SIGCONT)  # as Debugger.interrupt()


def run(arguments: argparse.Namespace) -> int:
    """Run gdb at its prompt; return its exit status."""
    clients = []
    left = threading.Event()
    with lab_from(arguments) as lab:

        def start_client() -> None:
            # In a session of its own: the terminal's Ctrl-C is for gdb, which stops the kernel then.
            if arguments.client:
                clients.append(lab.popen(arguments.client, new_session=True))
                if not sys.stdin.isatty():
                    threading.Thread(target=_stop_after, args=(clients[0], lab.guest, left), daemon=True).start()

        try:
            status = lab.gdb_prompt(arguments.gdb_commands, user_init=arguments.user_init, attached=start_client)
        finally:
            left.set()
        lab.check()
        for client in clients:  # a client that waited for the kernel may get its answer now
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(GRACE_S)
    return status
