"""Malformed messages of a guest are ignored, or are one clear error."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as some

from skblab.errors import GuestCommandFailed, GuestLost, NoSuchProgram
from skblab.guest import exec as guest_exec
from skblab.guest import mconsole

JUNK = some.binary(min_size=1, max_size=200)


@given(junk=JUNK)
def test_a_notification_that_is_none_tells_nothing(junk: bytes) -> None:
    ours, process_1 = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, process_1:
        process_1.send(mconsole.TIME.pack(10**9) + junk)
        assert mconsole.receive(ours) == mconsole.Notification(mconsole.Kind.USER, "", 1.0)


@given(junk=JUNK)
def test_a_command_of_which_the_guest_says_anything(junk: bytes) -> None:
    ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, guest_exec.Command(["true"], ours, lambda: GuestLost("gone")) as command:
        server.send(junk)
        with contextlib.suppress(GuestCommandFailed, NoSuchProgram):
            command.started()


def test_words_of_a_command_that_are_none() -> None:
    ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, guest_exec.Command(["true"], ours, lambda: GuestLost("gone")) as command:
        server.send(b"3" * guest_exec.HEADER.size)
        with pytest.raises(GuestCommandFailed, match="what the guest says of true cannot be understood"):
            command.started()
