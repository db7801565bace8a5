"""``skblab gdb``: gdb's own prompt on the guest kernel, with commands for packets."""

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

NAME = "gdb"
GRACE_S = 1.0
BEHIND_S = 5.0
STOPPED = "t"  # proc(5): by a debugger
EXAMPLES = """\
examples:
  skblab gdb                               boot, attach, and it is yours; quit lets go
  skblab gdb -- ping guest                 with a client, whose packets wait while the kernel stands still
  skblab gdb --from-boot -ex 'break start_kernel' -- ping guest
                                           from the first instruction on; the client starts when the guest is ready
  skblab gdb web                           on a lab that is up (skblab up web)
  skblab gdb -ex 'break icmp_rcv' -ex continue -ex skb -- ping -c1 guest
  printf 'break icmp_rcv\\ncontinue\\nskb skb\\nbt 5\\ndetach\\nquit\\n' | skblab gdb -- ping -c1 guest

commands for packets, beside gdb's own (help COMMAND says more):
  skb [EXPR]         print a packet: one line as tcpdump has it, its struct sk_buff, its first bytes
  skb-path           print the functions of the network on the backtrace, each with its packet
  skb-hold           set the packet aside there; the kernel goes on without it
  skb-held, skb-release [NUMBER]...  list what is held; let it go on
  skb-watch [EXPR]   go on until this packet gets to its next function, or is freed
  skb-drop           drop the packet at the entry of the function that was about to take it over

What follows -- is run on the host side from the moment gdb has attached. A script's "continue" does not wait for ever:
5 s after the client has ended, the kernel is stopped. Ctrl-C stops the running guest. Leaving gdb
detaches from it; then the lab ends, unless it was up before.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        NAME,
        help="gdb's own prompt on the guest kernel, with commands for packets",
        description="Boot a guest kernel and attach gdb to it: symbols, source and signals are set up.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-ex", "--gdb-command", action="append", default=[], metavar="COMMAND", dest="gdb_commands",
                        help="a gdb command to begin with; may be given several times")  # fmt: skip
    parser.add_argument("--from-boot", action="store_true", help="begin at the kernel's first instruction")
    parser.add_argument("--user-init", action="store_true", help="read your own ~/.gdbinit first")
    lab = parser.add_argument("lab", nargs="?", metavar="LAB", help="a lab that is up (default: one of its own)")
    complete(lab, lab_names)
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run)


def _stop_behind(client: "Process", guest: "Guest", left: threading.Event) -> None:
    """Stop the kernel where a script's client has ended and the script waits on: no packet of it will stop that."""
    client.wait()
    while not left.wait(BEHIND_S) and guest.alive:
        if Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[0] != STOPPED:
            print("skblab: the client has ended, and the kernel ran on: it is stopped", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(guest.pidfd, signal.SIGCONT)  # as Debugger.interrupt()


def run(arguments: argparse.Namespace) -> int:
    """Give the prompt to the user; return gdb's exit status."""
    clients = []
    left = threading.Event()
    with lab_from(arguments) as lab:

        def start_client() -> None:
            # In a session of its own: the terminal's Ctrl-C is for gdb, which stops the guest by it.
            if arguments.client:
                clients.append(lab.popen(arguments.client, new_session=True))
                if not sys.stdin.isatty():
                    threading.Thread(target=_stop_behind, args=(clients[0], lab.guest, left), daemon=True).start()

        try:
            status = lab.gdb_prompt(arguments.gdb_commands, user_init=arguments.user_init, attached=start_client)
        finally:
            left.set()
        lab.check()
        for client in clients:  # what waited for the kernel may have its answer now
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(GRACE_S)
    return status
