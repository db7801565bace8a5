"""A time that no clock has is one error, at once, wherever it is given; nothing was done."""

import math
import time
from collections.abc import Callable, Iterator

import pytest

from skblab.clock import VirtualClock
from skblab.errors import UsageError
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.saved import SavedRun
from skblab.session import Session
from skblab.spec import LabSpec
from skblab.sweep.cell import Scenario

NO_TIMES = (math.nan, math.inf, -math.inf, -1.0, 1e30)
PING = ("ping", "-c", "1", "guest")


@pytest.fixture(scope="module")
def root_lab(image: Image) -> Iterator[Lab]:
    with LabSpec(image=image, root="host").start() as lab:
        yield lab


@pytest.fixture(scope="module")
def virtual_lab(image: Image) -> Iterator[Lab]:
    with LabSpec(image=image, time="virtual").start() as lab:
        yield lab


def in_a_lab(lab: Lab, given: float) -> Iterator[Callable[[], object]]:
    """Yield calls with a time for each function of a lab that takes one."""
    yield lambda: lab.on("icmp_rcv", "", lambda _: None, lease_s=given)
    yield lambda: lab.run(PING, timeout_s=given)
    yield lambda: lab.guest.run(["true"], timeout_s=given)
    yield lambda: lab.guest.read("/proc/uptime", timeout_s=given)
    yield lambda: lab.guest.mconsole.command("version", timeout_s=given)
    session = Session(lab, [])
    yield lambda: session.run(PING, timeout_s=given)
    with lab.hold("icmp_rcv") as hold, lab.rule("icmp_rcv = trace") as rule:
        client = lab.popen(PING)
        (held,) = hold.take()
        yield lambda: hold.take(timeout_s=given)
        yield lambda: rule.wait(timeout_s=given)
        yield lambda: held.wait(given)
        yield lambda: held.release(after_s=given)
        assert held.state.value == "held"
        held.release()
        assert client.wait(10) == 0
    with lab.guest.popen(["sleep", "9"]) as command:
        yield lambda: command.wait(given)
        yield lambda: command.communicate(timeout=given)
        command.kill()


def of_data(_: Lab, given: float) -> Iterator[Callable[[], object]]:
    """Yield calls with a time for each description that has one."""
    yield lambda: LabSpec(boot_timeout_s=given)
    yield lambda: LabSpec(lease_s=given)
    yield lambda: LabSpec(most_s=given)
    yield lambda: LabSpec(timeout_s=given)
    yield lambda: Lab.join("nowhere", lease_s=given)
    yield lambda: Scenario(spec=LabSpec(time="virtual"), client=PING, limit_s=given)
    yield lambda: SavedRun(spec=LabSpec(), client=PING, limit_s=given)
    yield lambda: Rule("icmp_rcv", "delay", delay_ns=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("calls", [in_a_lab, of_data])
@pytest.mark.parametrize("given", NO_TIMES)
def test_no_such_time(
    root_lab: Lab, calls: Callable[[Lab, float], Iterator[Callable[[], object]]], given: float
) -> None:
    """Else one is an OverflowError, another waits for ever."""
    for call in calls(root_lab, given):
        began_s = time.monotonic()
        with pytest.raises(UsageError, match=r"no such time: |a delay of"):
            call()
        assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("given", NO_TIMES)
def test_no_such_time_in_virtual_time(virtual_lab: Lab, given: float) -> None:
    clock = virtual_lab.guest.clock
    assert isinstance(clock, VirtualClock)
    for call in (
        lambda: clock.advance(given),
        lambda: clock.run_until(given),
        lambda: clock.run_until(lambda: True, timeout_s=given),
        lambda: virtual_lab.run(PING, timeout_s=given),
    ):
        with pytest.raises(UsageError, match="no such time"):
            call()
