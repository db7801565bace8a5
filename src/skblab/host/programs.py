"""Programs and sockets of the host side of a lab: its clients."""

import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from skblab.errors import UsageError, check_times
from skblab.host import process
from skblab.host.namespace import JoinedNamespaces, Namespaces


class HostPrograms:
    """Start programs and open sockets on the host side of a lab; the programs end with the lab."""

    def __init__(self) -> None:
        self._clients: list[process.Client] = []
        self._switch: JoinedNamespaces | None = None  # of another lab, on whose switch this guest is

    @property
    def namespaces(self) -> Namespaces:
        """The lab's namespaces."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise the error for a lab that is not running."""
        raise NotImplementedError

    def check_open(self) -> None:
        """Raise GuestLost where the lab was closed."""
        raise NotImplementedError

    @property
    def _is_within(self) -> bool:
        """Whether the host side is in the guest, in virtual time."""
        raise NotImplementedError

    def _start_within(
        self,
        argv: Sequence[process.Argument],
        stdio: tuple[process.Stream, process.Stream, process.Stream],
        env: dict[str, str] | None,
        directory: str,
    ) -> process.Client:
        """Start a program on the guest's node "host"."""
        raise NotImplementedError

    def _stay(self) -> ExitStack:
        """Return the stack of what ends when the lab is left."""
        raise NotImplementedError

    def popen(  # noqa: PLR0913 - subprocess.Popen's keywords
        self,
        argv: Sequence[process.Argument],
        *,
        stdin: process.Stream = subprocess.DEVNULL,
        stdout: process.Stream = None,
        stderr: process.Stream = None,
        new_session: bool = False,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
        directory: str = "",
    ) -> process.Client:
        """Start a program on the host side, where the names ``guest`` and ``host`` resolve; it ends with the lab.

        Of a guest on another lab's switch, that is the other lab's host side, where each guest has its lab's name.

        In virtual time it runs on the guest's node ``host``, with an environment of its own.

        :param directory: the program's; default: this process's

        :raises GuestLost: the guest kernel is gone
        :raises NoSuchLab: the other lab is gone
        :raises UsageError: *argv* is no list of words
        """
        self.check()
        stdio = (stdin, stdout, stderr)
        if self._is_within:
            client = self._start_within(argv, stdio, env, directory)
        else:
            host_side = self._host_side()
            client = process.start(
                host_side.command(argv),
                cwd=Path(directory) if directory else None,
                env=env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                new_session=new_session,
                pass_fds=[host_side.pidfd, *pass_fds],
            )
        try:
            self._clients = [*(one for one in self._clients if process.unfinished(one)), client]
        except (OSError, ValueError):  # their connections were closed
            self.check_open()
            raise
        return client

    def run(
        self, argv: Sequence[process.Argument], *, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host side to its end; return its status and its output as text.

        :raises subprocess.TimeoutExpired: it ran longer than *timeout_s*; it was killed
        :raises GuestLost: another thread has closed the lab meanwhile
        """
        check_times(timeout_s=timeout_s)
        words = process.words_of(argv)
        client = self.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            done = process.finish(client, timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            error.cmd = words
            raise
        except (OSError, ValueError):  # its pipes were closed
            self.check_open()
            raise
        self.check_open()
        done.args = words  # not those of what has started it
        return done

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """Open a socket on the host side of the link for this process to use.

        Its ``connect()``, ``bind()`` and ``sendto()`` know the names ``guest`` and ``host``.
        """
        if self._is_within:
            raise UsageError("in virtual time the host side is in the guest, where this process has no socket",
                             hint="lab.run() and lab.popen() start programs there")  # fmt: skip
        return self._host_side().socket(family, kind, protocol)

    def _host_side(self) -> Namespaces:
        """Return the namespaces of the host side; of a guest on another lab's switch they are that lab's.

        :raises NoSuchLab: that lab is gone
        """
        if not self.namespaces.switch:
            return self.namespaces
        if self._switch is None:
            self._switch = self._stay().enter_context(JoinedNamespaces(self.namespaces.switch))
        return self._switch

    def _end_clients(self) -> None:
        for client in self._clients:
            if self._is_within:  # it ends with the guest
                client.__exit__(None, None, None)
            else:
                process.end(client)
