"""The shapes of the JSON objects in a trace file. They are checked once, so that no reader has to check again.

A shape is a type, a range of numbers, a tuple (a list of so many), a list of one shape (of any number of those), or a
dictionary: of the names that have to be there, or of ``ANY`` name.
"""

from skblab.agent.abi import FIELD_BYTES, TRACE_PROBES

ANY, NUMBER = "any name", "a number as a name"
TIMES_NS = range(1 << 62)
ADDRESSES = range(1 << 64)
NUMBERS = range(1 << 32)

ABOUT = {
    "version": int,
    "release": str,
    "image": str,
    "functions": {NUMBER: (str, str, range(1 << 31), str, str, ADDRESSES)},
    "clock": {"guest_ns": TIMES_NS, "host_ns": TIMES_NS, "realtime_ns": TIMES_NS, "monotonic_ns": TIMES_NS},
    "fields": [(str, str, range(1, FIELD_BYTES + 1), range(65), range(64))],
    "reasons": {ANY: str},
}
ABOUT_MORE: dict[str, object] = {"filter": str, "command": [str]}
VERDICT = {
    "time_ns": TIMES_NS,
    "function": str,
    "skb": str,
    "packet": NUMBERS,
    "call": NUMBERS,
    "verdict": str,
}
VERDICT_MORE: dict[str, object] = {"held_ns": TIMES_NS}
END = {"lost": int, "forgotten": int, "unhooked": int}


def fits(value: object, shape: object) -> bool:
    """Whether a value has a shape."""
    match shape:
        case range():
            return type(value) is int and value in shape
        case tuple():
            return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
        case list():
            return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
        case dict():
            return isinstance(value, dict) and all(_has(value, name, inner) for name, inner in shape.items())
    return type(value) is shape and (not isinstance(value, str) or _is_text(value))


def _has(value: dict[str, object], name: str, shape: object) -> bool:
    if name == NUMBER and not all(one.isdecimal() and len(one) <= len(str(TRACE_PROBES)) for one in value):
        return False
    return all(fits(one, shape) for one in value.values()) if name in {ANY, NUMBER} else fits(value.get(name), shape)


def fits_if_there(value: dict[str, object], shapes: dict[str, object]) -> bool:
    """Whether the members that are there, and not null, have their shapes."""
    return all(fits(value[name], shape) for name, shape in shapes.items() if value.get(name) is not None)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
