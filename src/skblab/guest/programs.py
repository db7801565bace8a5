"""Run programs of the guest, talk to them, copy files by its tar."""

import os
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, overload

from skblab.clock import Clock
from skblab.errors import GuestCommandFailed, GuestLost, SkblabError, UsageError, check_times
from skblab.files import ROOM, cannot_write
from skblab.guest.exec import Command, Kind, Program, start
from skblab.guest.streams import AT_ONCE_BYTES
from skblab.guest.unpack import unpack
from skblab.host.namespace import Namespaces
from skblab.host.process import Argument, Stream
from skblab.host.waiting import wait

MOST_QUOTED_BYTES, MOST_LEFT_OUT = 4096, 10
LAST_WORDS_S = 1.0  # from the end of a connection to the end of the kernel's process


class Programs:
    """The part of ``lab.guest`` that runs the programs of its root."""

    _namespaces: Namespaces
    pidfd: int
    clock: Clock

    def lost(self) -> GuestLost:
        """Return the error that says how the guest's kernel ended."""
        raise NotImplementedError

    def popen(  # noqa: PLR0913 - subprocess.Popen's keywords
        self,
        argv: Sequence[Argument],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        stays: bool = False,
        node: str = "",
    ) -> Command:
        """Start a program in the guest; return once it runs.

        :param stdin: as for subprocess.Popen, like *stdout* and *stderr*
        :param cwd: a directory of the guest's; default: its HOME
        :param env: names and values beside PATH and HOME, which are there unless they are given
        :param terminal: rows and columns of a terminal to run it on; then *stdout* has all that it says
        :param stays: it outlives this process, for as long as the lab does
        :param node: in virtual time, the node on which it runs: ``"host"``, or one of ``LabSpec.nodes``

        :raises NoSuchProgram: it is not there
        :raises GuestCommandFailed: it cannot be started
        :raises GuestLost: the guest kernel is gone
        """
        program = Program(argv, node, cwd, env, terminal, stays)
        return start(self._connection, self._hung_up, program, (stdin, stdout, stderr), self.clock)

    @overload
    def run(
        self, argv: Sequence[Argument], *, input: str | bytes = ..., check: bool = ..., timeout_s: float | None = ...,
        cwd: str = ..., env: Mapping[str, str] | None = ..., text: Literal[True] = ...,
    ) -> subprocess.CompletedProcess[str]: ...  # fmt: skip
    @overload
    def run(
        self, argv: Sequence[Argument], *, input: str | bytes = ..., check: bool = ..., timeout_s: float | None = ...,
        cwd: str = ..., env: Mapping[str, str] | None = ..., text: Literal[False],
    ) -> subprocess.CompletedProcess[bytes]: ...  # fmt: skip
    def run(
        self,
        argv: Sequence[Argument],
        *,
        input: str | bytes = b"",  # noqa: A002
        check: bool = False,
        timeout_s: float | None = None,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        text: bool = True,
    ) -> subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes]:
        """Run a program in the guest to its end; return its status and its output, as text or bytes.

        :param input: its standard input
        :raises subprocess.CalledProcessError: with *check*, its status is not 0
        :raises subprocess.TimeoutExpired: it ran longer than *timeout_s* and was hung up on
        :raises NoSuchProgram: the guest has no such program
        :raises GuestLost: the guest kernel is gone
        """
        check_times(timeout_s=timeout_s)
        given = input.encode() if isinstance(input, str) else input
        pipe = subprocess.PIPE
        with self.popen(
            argv, stdin=pipe if given else subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=cwd, env=env
        ) as command:
            out, err = command.communicate(given, timeout_s)
        assert command.returncode is not None
        status = command.returncode
        if check and status:
            raise subprocess.CalledProcessError(status, list(command.args), out, err)
        if not text:
            return subprocess.CompletedProcess(command.args, status, out, err)
        texts = (said.decode(errors="replace") for said in (out, err))
        return subprocess.CompletedProcess(command.args, status, *texts)

    def read(self, *paths: str, node: str = "", most_bytes: int | None = None, timeout_s: float | None = None) -> bytes:
        """Return the content of files in the guest, one behind another. It needs no program of the guest's.

        :param node: in virtual time, the node that has them: of /proc/self/net
        :param most_bytes: where they have more, return so much of it
        :raises GuestCommandFailed: one cannot be read
        :raises subprocess.TimeoutExpired: it took longer than *timeout_s*, of the guest's time
        :raises GuestLost: the guest kernel is gone
        """
        check_times(timeout_s=timeout_s)
        if not paths:
            raise UsageError("no file to read")
        failed = f"cannot read {' '.join(paths)} in the guest"
        pipes = (subprocess.DEVNULL, subprocess.PIPE, subprocess.DEVNULL)
        try:
            reading = start(self._connection, self._hung_up, Program(paths, node, kind=Kind.READ), pipes, self.clock)
        except GuestCommandFailed as error:
            raise GuestCommandFailed(failed, found=error.found) from None
        content, left_s = bytearray(), self.clock.countdown(timeout_s)
        with reading:
            assert reading.stdout
            while most_bytes is None or len(content) < most_bytes:
                if not self.clock.wait([reading.stdout], left_s()):
                    assert timeout_s is not None
                    raise subprocess.TimeoutExpired(reading.args, timeout_s)
                if data := os.read(reading.stdout.fileno(), AT_ONCE_BYTES):
                    content += data
                elif error_number := reading.wait(left_s()):
                    raise GuestCommandFailed(failed, found=os.strerror(error_number))
                else:
                    break
        return bytes(content[:most_bytes])

    def copy_in(self, path: Path | str, to: str) -> None:
        """Copy a file or a directory tree into the guest; keep modes and times, set the owner to root.

        :param to: its new name, or an existing directory, in which it keeps its name
        :raises NoSuchProgram: the guest has no tar
        :raises GuestCommandFailed: tar refused
        """
        path = Path(path)
        if not path.exists():
            raise UsageError(f"no such file: {path}")
        inside = to.endswith("/") or self.run(["test", "-d", to]).returncode == 0
        target = PurePosixPath(to, path.absolute().name) if inside else PurePosixPath(to)
        argv = ["tar", "-C", str(target.parent), "-xpf", "-"]
        with self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as tar:
            assert tar.stdin
            assert tar.stdout
            try:
                with tar.stdin, tarfile.open(fileobj=tar.stdin, mode="w|") as archive:
                    archive.add(path, target.name, filter=_owned(0, 0))
            except BrokenPipeError:
                pass  # tar's error is read below
            self._ended(tar, tar.stdout.read(), f"cannot copy {path} to {to} in the guest")

    def copy_out(self, path: str, to: Path | str) -> None:
        """Copy a file or a directory tree out of the guest; keep modes and times, set the owner to this user.

        Devices, FIFOs and links to places outside of the copy are left out; an error at the end lists them.

        :param to: its new name, or an existing directory, in which it keeps its name
        :raises NoSuchProgram: the guest has no tar
        :raises CannotWrite: this machine has no room for it
        :raises GuestCommandFailed: tar refused, its archive is malformed or cannot be written, or a file is left out
        """
        source, target = PurePosixPath(path), Path(to).absolute()
        if target.is_dir():
            target /= source.name
        elif str(to).endswith("/") or not target.parent.is_dir():
            raise UsageError(f"no such directory: {to if str(to).endswith('/') else target.parent}", hint="mkdir -p")
        failed = f"cannot copy {path} out of the guest"
        argv = ["tar", "-C", str(source.parent), "-cf", "-", "--", source.name or "."]
        damage: Exception | None = None
        left_out: list[str] = []
        with tempfile.TemporaryFile() as said, self.popen(argv, stdout=subprocess.PIPE, stderr=said) as tar:
            assert tar.stdout
            try:
                left_out = unpack(tar.stdout, source.name, target)
            except (tarfile.TarError, OSError, EOFError) as error:
                damage = error
            tar.stdout.close()
            self._ended(tar, os.pread(said.fileno(), MOST_QUOTED_BYTES, 0), failed)
        if isinstance(damage, OSError) and damage.errno in ROOM:
            raise cannot_write(damage.filename or target, damage)
        if damage:
            raise GuestCommandFailed(failed, found=str(damage))
        if left_out:
            more = [f"and {len(left_out) - MOST_LEFT_OUT} more"] if len(left_out) > MOST_LEFT_OUT else []
            raise GuestCommandFailed(
                f"{path} was copied to {target}, but for {len(left_out)} of its files",
                found="\n".join((*left_out[:MOST_LEFT_OUT], *more)),
            )

    def _ended(self, tar: Command, said: bytes, failed: str) -> None:
        if tar.wait():
            raise GuestCommandFailed(failed, found=said.decode(errors="replace").strip())

    def _connection(self) -> socket.socket:
        try:
            _, (descriptor,) = self._namespaces.request("command")
        except SkblabError:
            if self._has_ended(0):
                raise self.lost() from None
            raise
        return socket.socket(fileno=descriptor)

    def _has_ended(self, within_s: float) -> bool:
        """Whether the kernel's process ends within a time, or another thread has closed the lab."""
        try:
            return bool(wait([self.pidfd], within_s))
        except OSError:  # it has closed the descriptor
            return True

    def _hung_up(self) -> SkblabError:
        """Return the error for a command's connection that has ended without a message."""
        if self._has_ended(LAST_WORDS_S):
            return self.lost()
        return GuestCommandFailed("a command in the guest is lost: what serves commands there was killed")


def _owned(user: int, group: int) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid, member.gid, member.uname, member.gname = user, group, "", ""
        return member

    return owned
