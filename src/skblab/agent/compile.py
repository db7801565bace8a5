"""From a rule to the agent's command. Pure: a rule, a function of an image, and out comes struct agent_arm."""

from collections.abc import Mapping, Sequence

from skblab.agent import abi
from skblab.agent.conditions import compile_whole
from skblab.agent.contracts import Contract
from skblab.agent.functions import (
    PacketArgument,
    check_surrounded,
    check_value,
    contract_for,
    readable_packet,
    references,
    why_no_packet,
)
from skblab.errors import UnsupportedVerdict
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.reasons import drop_reason
from skblab.rule import Inside, Occurrence, Rule
from skblab.verdict import RETURN, VERDICTS

SHOWN_BYTES = 128  # of a packet in a hit whose verdict does not need the whole packet
WHOLE_PACKET = 0xFFFF
CHANCES = 1 << 32
# As struct agent_arm's text_start and text_end.
NO_STACK = (0, 0)
CALLER_ALONE = (1, 1)  # no text to find other return addresses in


def compile_rule(
    rule: Rule,
    function: Function,
    image: Image,
    lease_s: float,
    seed: int,
    machines: Mapping[str, Sequence[str]] | None = None,
) -> abi.Arm:
    """Return the command that puts a rule in force at a function.

    :param lease_s: a held packet goes on by itself if nothing decides on it within that time; 0: never
    :param seed: of the agent's random numbers, where the rule has none of its own
    :param machines: those that a filter may name, and their addresses
    :raises UnsupportedVerdict: the verdict, or a filter, is not sound there
    :raises RuleError: libpcap does not understand the filter, or this kernel has no such member or drop reason
    """
    verdict = VERDICTS[rule.verdict]
    owned = contract_for(verdict, function, image)
    contract = owned or Contract()
    packet, needed = readable_packet(function), references(function)
    if verdict.word == RETURN:
        check_value(function, rule.value, owned)
    _check_filter(rule.filter, function, packet)
    numbers, occurrence = verdict.numbers(rule), rule.occurrence
    program, conditions = compile_whole(rule.filter, image, machines)
    text_start, text_end = image.functions.text if verdict.stack else NO_STACK if packet else CALLER_ALONE
    return abi.Arm(
        address=function.address,
        verdict=verdict.number,
        filter=program,
        first=occurrence.first,
        last=occurrence.last,
        every=occurrence.every,
        delay_ns=numbers.delay_ns,
        jitter_ns=numbers.jitter_ns,
        lease_ns=round(lease_s * 1e9) if verdict.needs == "host" else 0,
        text_start=text_start,
        text_end=text_end,
        argument=numbers.argument,
        chance=_chance(occurrence),
        seed=_mixed(occurrence.seed) or seed,
        reason=drop_reason(image, rule.reason),
        captured_bytes=WHOLE_PACKET if verdict.whole else SHOWN_BYTES,
        held_returns=contract.held,
        dropped_returns=contract.dropped,
        taken_from=contract.taken[0],
        taken_to=contract.taken[1],
        skb_argument=packet.number if packet else abi.NO_PACKET,
        device_arguments=needed.devices,
        socket_arguments=needed.sockets,
        net_arguments=needed.nets,
        transmits=int(contract.transmits),
        frees=int(verdict.word == RETURN and owned is not None),
        conditions=conditions,
    )


def compile_surrounding(
    inside: Inside, function: Function, image: Image, machines: Mapping[str, Sequence[str]] | None = None
) -> abi.Arm:
    """Return the command that has other rules match inside calls of a function.

    :raises UnsupportedVerdict: the agent cannot call it, or it has no packet for the filter
    :raises RuleError: libpcap does not understand the filter, or this kernel has no such member
    """
    check_surrounded(function)
    packet = readable_packet(function)
    _check_filter(inside.filter, function, packet)
    program, conditions = compile_whole(inside.filter, image, machines)
    return abi.Arm(
        address=function.address,
        verdict=VERDICTS["accept"].number,
        filter=program,
        conditions=conditions,
        skb_argument=packet.number if packet and inside.filter else abi.NO_PACKET,
        surrounds=1,
    )


def _check_filter(expression: str, function: Function, packet: PacketArgument | None) -> None:
    if expression and not packet:
        raise UnsupportedVerdict(
            f"{function.name}() has no packet to look at, and so none for a filter",
            found=why_no_packet(function) or function.signature,
            hint=f"without: if {expression}",
        )


def compile_watch(function: Function) -> abi.Arm:
    """Return the command that reports each call of a function, which needs no packet."""
    return abi.Arm(address=function.address, verdict=VERDICTS["trace"].number, skb_argument=abi.NO_PACKET)


def _mixed(seed: int) -> int:
    """Return a seed as the agent gets it: no two are the same, and those of small numbers are no small numbers.

    The agent's generator makes small numbers of small ones (kernel/agent/rule.c), so that each of the seeds 1 to 1,500
    would have the first packet among one in ten. This is the end of MurmurHash3.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        seed = (seed ^ seed >> shift) * factor % (1 << 32)
    return seed ^ seed >> 16


def _chance(occurrence: Occurrence) -> int:
    """Return how many of 2^32 random numbers are a match; 0: all."""
    if occurrence.percent in {0, 100}:
        return 0
    return max(int(occurrence.percent / 100 * CHANCES), 1)
