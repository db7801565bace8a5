"""Ctrl-C in a block that must not be interrupted; the words of a command."""

import contextlib
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from skblab.errors import UsageError
from skblab.host.process import interruptible, undisturbed, words_of


def interrupted_thrice(*, only_once: bool, of_user: AbstractContextManager[None]) -> list[int]:
    done = []

    def block() -> None:
        with undisturbed(only_once=only_once), of_user:
            for number in range(3):
                signal.raise_signal(signal.SIGINT)
                done.append(number)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return done


def test_ctrl_c_waits_until_the_block_has_ended() -> None:
    assert interrupted_thrice(only_once=False, of_user=interruptible()) == [0, 1, 2]
    assert interrupted_thrice(only_once=True, of_user=contextlib.nullcontext()) == [0, 1, 2]


def test_the_second_one_interrupts_a_users_function() -> None:
    assert interrupted_thrice(only_once=True, of_user=interruptible()) == [0]


def test_words() -> None:
    assert words_of(["a", Path("/b c"), b"d\xff"]) == ["a", "/b c", "d\udcff"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("ping -c1 guest", "a list of words, not one string: ping -c1 guest"),
        (b"ls", "a list of words, not one string: ls"),
        ([], "no command"),
        (["a\0b"], "no NUL byte"),
    ],
)
def test_what_is_no_command(argv: Any, said: str) -> None:  # noqa: ANN401
    with pytest.raises(UsageError, match=said):
        words_of(argv)
