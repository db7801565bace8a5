"""From a filter to what the agent runs: libpcap's program, and where this kernel has the members of the conditions."""

import ipaddress
from collections.abc import Mapping, Sequence

from skblab.agent import abi
from skblab.agent.abi import ConditionFlag, Operation
from skblab.condition import Condition, conditions, split
from skblab.errors import RuleError, TraceError
from skblab.filter import compile_filter
from skblab.image.fields import Field, resolve_fields
from skblab.image.image import Image

OPERATIONS = {
    "==": Operation.EQUAL,
    "!=": Operation.UNEQUAL,
    "<": Operation.LESS,
    "<=": Operation.AT_MOST,
    ">": Operation.GREATER,
    ">=": Operation.AT_LEAST,
    "&": Operation.ANY_BIT,
}
MOST_BYTES = 8  # of a number
IN_NETWORK_ORDER = ("network", "port", "address")


def compile_whole(
    filter: str,  # noqa: A002
    image: Image,
    machines: Mapping[str, Sequence[str]] | None = None,
) -> tuple[bytes, tuple[abi.Condition, ...]]:
    """Return a filter's program and its conditions.

    :param machines: those that it may name, and their addresses
    :raises RuleError: libpcap does not understand it, or this kernel's struct sk_buff has no such member
    """
    pcap, _ = split(filter)
    wanted = conditions(filter)
    try:
        fields = resolve_fields(image, [one.field for one in wanted])
    except TraceError as error:
        raise RuleError(error.what, found=error.found, hint=error.hint) from None
    return compile_filter(pcap, machines), tuple(_compiled(*one) for one in zip(wanted, fields, strict=True))


def _compiled(condition: Condition, field: Field) -> abi.Condition:
    place = abi.Field(field.offsets, field.size_bytes)
    operation, value = OPERATIONS[condition.operation], condition.value
    if len(field.offsets) > abi.FIELD_HOPS:
        raise RuleError(f"{condition.field} lies behind too many pointers", found=f"{abi.FIELD_HOPS - 1} at most")
    if field.kind == "text":
        if not isinstance(value, str) or field.size_bytes > abi.FIELD_BYTES:
            raise RuleError(f"{condition.field} is text", found=f"{value!r}", hint=f'{condition.field} == "vec0"')
        if len(value.encode()) > field.size_bytes:
            raise RuleError(f'{condition.field} is never "{value}"', found=f"{field.size_bytes} bytes at most")
        return abi.Condition(place, operation, flags=ConditionFlag.TEXT, text=value.encode())
    if field.kind == "bytes" or field.size_bytes > MOST_BYTES:
        raise RuleError(f"{condition.field} is no number", found=f"{field.size_bytes} bytes", hint="a member of it")
    flags = ConditionFlag.BIG_ENDIAN if field.kind in IN_NETWORK_ORDER else ConditionFlag(0)
    bits = field.bits or 8 * field.size_bytes
    is_signed = field.kind == "signed" and not field.bits
    number = _number(condition, field)
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    if not least <= number <= most:
        raise RuleError(f"{condition.field} is never {value}", found=f"{bits} bits: {least} to {most}")
    return abi.Condition(place, operation, number, field.shift if field.bits else 0, field.bits,
                         flags | (ConditionFlag.SIGNED if is_signed else 0))  # fmt: skip


def _number(condition: Condition, field: Field) -> int:
    """Return a condition's value as a number; an IPv4 address may be text.

    :raises RuleError: it is no number
    """
    if isinstance(condition.value, int):
        return condition.value
    if field.kind == "address":
        try:
            return int(ipaddress.IPv4Address(condition.value))
        except ValueError:
            pass
    raise RuleError(f"{condition.field} is a number", found=f'"{condition.value}"', hint=f"{condition.field} == 7")
