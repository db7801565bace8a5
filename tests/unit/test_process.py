"""Ctrl-C in a block that must not be interrupted."""

import signal

import pytest

from skblab.host.process import undisturbed


def interrupted_thrice(*, only_once: bool) -> list[int]:
    done = []

    def block() -> None:
        with undisturbed(only_once=only_once):
            for number in range(3):
                signal.raise_signal(signal.SIGINT)
                done.append(number)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return done


def test_ctrl_c_waits_until_the_block_has_ended() -> None:
    assert interrupted_thrice(only_once=False) == [0, 1, 2]


def test_the_second_one_interrupts_a_users_function() -> None:
    assert interrupted_thrice(only_once=True) == [0]
