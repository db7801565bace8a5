"""Ctrl-C in a block that must not be interrupted."""

import contextlib
import signal
from contextlib import AbstractContextManager

import pytest

from skblab.host.process import interruptible, undisturbed


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
