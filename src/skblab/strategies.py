"""Hypothesis strategies: faults at random, which Hypothesis shrinks to the fewest that still make a test fail.

Needs hypothesis: ``pip install skblab[test]``.
"""

from collections.abc import Sequence

from hypothesis import strategies as st

from skblab.errors import check_lists
from skblab.rule import Rule

VERDICTS = ("drop", "delay", "duplicate")
DELAYS_MS = (1, 5, 20, 50, 200)


def rules(
    functions: Sequence[str],
    *,
    verdicts: Sequence[str] = VERDICTS,
    most: int = 10,
    filter: str = "",  # noqa: A002 - pcap's word, as everywhere
) -> st.SearchStrategy[Rule]:
    """Return a strategy of single rules, each for one packet: ``tcp_v4_rcv = delay 20ms @3``.

    :param functions: functions that own their packet (docs/reference/rules.md)
    :param verdicts: words, with their arguments if they need any; ``delay`` gets a time
    :param most: the highest occurrence
    :param filter: which packets: pcap-filter(7), and conditions
    """
    check_lists(functions=functions, verdicts=verdicts)
    actions = st.sampled_from(list(verdicts)).flatmap(_action)
    where = f" if {filter}" if filter else ""
    return st.builds(
        lambda function, action, occurrence: Rule.parse(f"{function} = {action} @{occurrence}{where}"),
        st.sampled_from(list(functions)),
        actions,
        st.integers(1, most),
    )


def faults(
    functions: Sequence[str],
    *,
    verdicts: Sequence[str] = VERDICTS,
    most: int = 10,
    filter: str = "",  # noqa: A002 - as above
    at_once: int = 3,
) -> st.SearchStrategy[list[Rule]]:
    """Return a strategy of lists of rules; the shortest list is empty.

    :param at_once: how many rules at most; the others as for ``rules()``
    """
    one = rules(functions, verdicts=verdicts, most=most, filter=filter)
    return st.lists(one, max_size=at_once, unique_by=str)


def _action(verdict: str) -> st.SearchStrategy[str]:
    if verdict == "delay":
        return st.sampled_from(DELAYS_MS).map(lambda time_ms: f"delay {time_ms}ms")
    return st.just(verdict)
