"""The contract with the agent is the same on both sides: the C header is compiled and compared."""

import re
import struct
from pathlib import Path

import pytest

from skblab import condition
from skblab.agent import abi
from skblab.guest.boot import BRANCH_SIGNAL
from skblab.host import process
from skblab.image.recipe import kernel_dir
from skblab.timetravel import Op
from skblab.verdict import MOST_COPIES, ROWS, VERDICTS

HEADER = kernel_dir() / "agent" / "agent_abi.h"
STRUCTS = {
    "agent_counts": abi.COUNTS_LAYOUT, "agent_record": abi.RECORD, "agent_arm": abi.ARM_LAYOUT,
    "agent_decide": abi.DECIDE, "agent_write": abi.WRITE,
    "agent_hit": abi.HIT_LAYOUT, "agent_done": abi.DONE_LAYOUT, "agent_end": abi.END_LAYOUT,
    "agent_task": abi.TASK_LAYOUT,
    "agent_field": abi.FIELD_LAYOUT, "agent_condition": abi.CONDITION_LAYOUT,
    "agent_follow": abi.FOLLOW_LAYOUT, "agent_trace_probe": abi.PROBE_LAYOUT,
    "agent_step": abi.STEP, "agent_more": abi.MORE, "agent_by_hand": abi.BY_HAND_LAYOUT, "agent_return": abi.RETURN,
    "agent_branch": abi.BRANCH_LAYOUT, "agent_branch_step": abi.BRANCH_STEP_LAYOUT,
    "agent_kin": abi.KIN, "agent_device": abi.DEVICE,
}  # fmt: skip
# Structs within others: described where they are, or behind them.
INSIDE = {"agent_tracing"}
BEHIND = {"agent_follow": abi.FIELDS * abi.FIELD_LAYOUT.size}
STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/|__attribute__\(\(aligned\(64\)\)\)", re.DOTALL)
MEMBER = re.compile(r"(struct )?(\w+) (.*)", re.DOTALL)
CODE = re.compile(r"(\d*)([a-zA-Z])")
Place = tuple[int, int, bool]  # from the struct's begin, how many bytes, and whether it has a sign


def members() -> dict[str, list[tuple[str, str]]]:
    """Return the structs of the header: each member's type, and its name with what stands in brackets."""
    found = {}
    for name, body in STRUCT.findall(COMMENT.sub("", HEADER.read_text())):
        found[name] = [
            (kind, one.strip())
            for line in filter(None, map(str.strip, body.split(";")))
            for _, kind, names in MEMBER.findall(line)
            for one in names.split(",")
        ]
    return found


def numbers(structs: dict[str, list[tuple[str, str]]], which: str, before: str = "") -> list[str]:
    """Return an expression for each number or text in a struct, those of structs in it one by one, without padding."""
    found = []
    for kind, name in structs[which]:
        if name.startswith("padding"):
            continue
        if kind in structs and "[" not in name:
            found += numbers(structs, kind, f"{before}{name}.")
        elif kind not in structs:
            found.append(f"{before}{name}")
    return found


def in_python(layout: struct.Struct) -> list[Place]:
    """Return the places of what a layout packs, but for padding."""
    places = []
    at = 0
    for times, code in CODE.findall(layout.format.lstrip("=")):
        count = 1 if code == "s" else int(times or 1)
        size = struct.calcsize(f"={times}s") if code == "s" else struct.calcsize(f"={code}")
        for _ in range(count):
            places += [] if code == "x" else [(at, size, code in "bhiq")]
            at += size
    return places


def run(directory: Path, lines: list[str]) -> str:
    """Compile the body of a main() that has the header, run it, and return what it prints."""
    source, program = directory / "layout.c", directory / "layout"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include "agent_abi.h"\nint main(void)\n{\n'
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    done = process.run(["gcc", "-std=gnu11", f"-I{HEADER.parent}", "-o", program, source], timeout_s=60)
    assert done.returncode == 0, done.stderr
    return process.run([program], timeout_s=10).stdout


def test_every_member_lies_where_python_packs_it(tmp_path: Path) -> None:
    structs = members()
    assert structs.keys() == STRUCTS.keys() | INSIDE | {"agent_shared"}
    lines = []
    for name in STRUCTS:
        for expression in numbers(structs, name):
            member, _, length = expression.partition("[")
            one = whole = f"((struct {name} *)0)->{member}"
            signed = "0"
            if ("char", expression) not in structs[name]:
                one = f"{whole}[0]" if length else whole
                signed = f"(__typeof__({one}))-1 < 0"
            lines.append(
                f"for (size_t at = 0; at < sizeof({whole}); at += sizeof({one}))"
                f' printf("{name} %zu %zu %d\\n", offsetof(struct {name}, {member}) + at, sizeof({one}), {signed});'
            )
        lines.append(f'printf("{name} size %zu\\n", sizeof(struct {name}));')
    shared = [expression.partition("[")[0] for expression in numbers(structs | {"agent_counts": []}, "agent_shared")]
    lines += [f'printf("shared {one} %zu\\n", offsetof(struct agent_shared, {one}));' for one in [*shared, "counts"]]
    lines.append('printf("agent_shared size %zu\\n", sizeof(struct agent_shared));')
    said = [line.split() for line in run(tmp_path, lines).splitlines()]
    sizes = {name: int(size) for name, word, size, *_ in said if word == "size"}
    for name, layout in STRUCTS.items():
        in_c = [
            (int(at), int(size), sign == ["1"]) for which, at, size, *sign in said if which == name and at != "size"
        ]
        assert in_c, name
        assert in_python(layout) == in_c, name
        assert layout.size + BEHIND.get(name, 0) == sizes[name], name
    assert {name: int(at) for which, name, at, *_ in said if which == "shared"} == abi.OFFSETS
    assert sizes["agent_shared"] == abi.SHARED_BYTES


BEHIND_ARM = {"filter", "conditions"}
CONDITION = abi.Condition(
    abi.Field((101, 102, 103), 104), abi.Operation.AT_LEAST, 105, 106, 107, abi.ConditionFlag.BIG_ENDIAN, b"vec0"
)
ARM = abi.Arm(
    **{name: 100 + at for at, name in enumerate(abi.Arm._fields) if name not in BEHIND_ARM},
    filter=bytes(72),
    conditions=(CONDITION,) * 2,
)
TRACE_PROBE = abi.TraceProbe(  # as the agent reads it: numbers
    **{name: 100 + at for at, name in enumerate(abi.TraceProbe._fields)}  # type: ignore[arg-type]
)
FOLLOW = abi.Follow(bytes(48), (abi.Field((101, 102, 103), 104),), 105, 106, (CONDITION,) * 3)
COMMANDS: dict[str, tuple[bytes, dict[str, int]]] = {
    "agent_arm": (
        ARM.encode(7, 8),
        {name: getattr(ARM, name) for name in abi.Arm._fields if name not in BEHIND_ARM}
        | {"kind": abi.Command.ARM, "rule": 7, "cookie": 8, "filter_length": 9, "conditions": 2},
    ),
    "agent_trace_probe": (
        TRACE_PROBE.encode(8),
        {name: getattr(TRACE_PROBE, name) for name in abi.TraceProbe._fields if name != "number"}
        | {"kind": abi.Command.TRACE_PROBE, "rule": TRACE_PROBE.number, "cookie": 8},
    ),
    "agent_follow": (
        FOLLOW.encode(8),
        {"kind": abi.Command.FOLLOW, "rule": 0, "cookie": 8, "text_start": 105, "text_end": 106, "fields": 1}
        | {"filter_length": 6, "conditions": 3},
    ),
    "agent_field": (
        FOLLOW.fields[0].encode(),
        {"offsets[0]": 101, "offsets[1]": 102, "offsets[2]": 103, "offsets[3]": 0, "offsets[4]": 0, "offsets[5]": 0}
        | {"hops": 3, "bytes": 104},
    ),
    "agent_condition": (
        CONDITION.encode(),
        {"field.offsets[0]": 101, "field.offsets[1]": 102, "field.offsets[2]": 103, "field.offsets[3]": 0}
        | {"field.offsets[4]": 0, "field.offsets[5]": 0, "field.hops": 3, "field.bytes": 104}
        | {"value": 105, "operation": 5, "shift": 106, "bits": 107, "flags": 2}
        | {f"text[{at}]": byte for at, byte in enumerate(b"vec0".ljust(32, b"\0"))},
    ),
    "agent_decide": (
        abi.encode_decide(abi.Command.COPY, 8, rule=1, packet=2, after_ns=3, number=4, data=bytes(5)),
        {"kind": abi.Command.COPY, "rule": 1, "cookie": 8, "packet": 2, "after_ns": 3, "number": 4, "data_bytes": 5},
    ),
    "agent_write": (
        abi.encode_write(8, packet=2, data=bytes(5), data_offset=3, checksum=(6, 7), flags=9),
        {"kind": abi.Command.WRITE, "rule": 0, "cookie": 8, "packet": 2, "data_offset": 3, "data_bytes": 5}
        | {"checksum_start": 6, "checksum_offset": 7, "flags": 9},
    ),
}


def one_by_one(which: str) -> list[str]:
    """Return an expression for each number in a struct, those of arrays too."""
    expressions = []
    for expression in numbers(members(), which):
        name, _, length = expression.removesuffix("]").partition("[")
        count = abi.FIELD_HOPS if length == "AGENT_FIELD_HOPS" else int(length or 0)
        expressions += [f"{name}[{at}]" for at in range(count)] or [name]
    return expressions


@pytest.mark.parametrize("which", COMMANDS)
def test_a_command_says_the_same_under_the_same_name(tmp_path: Path, which: str) -> None:
    command, expected = COMMANDS[which]
    bytes_in_c = ", ".join(map(str, command))
    lines = [f"static const unsigned char bytes[] = {{ {bytes_in_c} }};", f"struct {which} it;"]
    lines.append("memcpy(&it, bytes, sizeof(it) < sizeof(bytes) ? sizeof(it) : sizeof(bytes));")
    lines += [f'printf("{one} %lld\\n", (long long)it.{one});' for one in one_by_one(which)]
    said = {name: int(value) for name, value in (line.split() for line in run(tmp_path, lines).splitlines())}
    assert said.pop("record.bytes", len(command)) == len(command)
    assert {name.removeprefix("record.").removeprefix("tracing."): value for name, value in said.items()} == expected


@pytest.mark.parametrize(("which", "kind"), [("agent_hit", "HIT"), ("agent_done", "DONE"), ("agent_end", "DROPPED")])
def test_an_event_says_the_same_under_the_same_name(tmp_path: Path, which: str, kind: str) -> None:
    names = [name for name in numbers(members(), which) if not name.startswith(("record.", "note"))]
    values = {name: 40 + at for at, name in enumerate(names)} | ({"cause": 2} if which == "agent_end" else {})
    captured, note = values.get("captured_bytes", 0), b"said"
    lines = [f"struct {which} it = {{ .record = {{ sizeof(it) + {captured}, AGENT_{kind}, 7 }} }};"]
    lines += [f"it.{name} = {value};" for name, value in values.items()]
    lines += [f'memcpy(it.note, "{note.decode()}", {len(note)});'] if which == "agent_done" else []
    lines.append('for (size_t at = 0; at < sizeof(it); at++) printf("%02x", ((unsigned char *)&it)[at]);')
    event = abi.decode(bytes.fromhex(run(tmp_path, lines)) + bytes(captured))
    if isinstance(event, abi.Done):
        assert event.note == "said"
    elif not isinstance(event, abi.Task):
        assert event.rule == 7
    if isinstance(event, abi.Hit):
        assert len(event.data) == values.pop("captured_bytes")
        assert not event.stack_words
    assert {name: getattr(event, name) for name in values} == values


@pytest.mark.parametrize(
    ("which", "record", "layout"),
    [
        ("agent_step", abi.StepRecord, abi.STEP),
        ("agent_more", abi.MoreRecord, abi.MORE),
        ("agent_return", abi.ReturnRecord, abi.RETURN),
        ("agent_kin", abi.KinRecord, abi.KIN),
        ("agent_device", abi.DeviceRecord, abi.DEVICE),
        ("agent_by_hand", abi.ByHand, abi.BY_HAND_LAYOUT),
    ],
)
def test_a_record_says_the_same_under_the_same_name(
    tmp_path: Path, which: str, record: type[abi.StepRecord], layout: struct.Struct
) -> None:
    """The record's type stands for all of them: each is a NamedTuple."""
    values = {name.partition("[")[0]: 40 + at for at, name in enumerate(numbers(members(), which))}
    values.pop("name", None)
    lines = [f"struct {which} it = {{}};", *(f"it.{name} = {value};" for name, value in values.items())]
    lines += ['strcpy(it.name, "vec0");'] if which == "agent_device" else []
    lines.append('for (size_t at = 0; at < sizeof(it); at++) printf("%02x", ((unsigned char *)&it)[at]);')
    said = record._make(layout.unpack(bytes.fromhex(run(tmp_path, lines))))._asdict()
    if which == "agent_device":
        assert said.pop("name") == b"vec0".ljust(16, b"\0")
    assert said == {
        name.replace("record.bytes", "record_bytes").removeprefix("record."): value for name, value in values.items()
    }


def test_the_counts_say_the_same_under_the_same_name(tmp_path: Path) -> None:
    names = numbers(members(), "agent_counts")
    lines = ["struct agent_counts it = {};", *(f"it.{name} = {at};" for at, name in enumerate(names, 40))]
    lines.append('for (size_t at = 0; at < sizeof(it); at++) printf("%02x", ((unsigned char *)&it)[at]);')
    counts = abi.Counts(*abi.COUNTS_LAYOUT.unpack(bytes.fromhex(run(tmp_path, lines))))
    assert {name: getattr(counts, name) for name in names} == {name: at for at, name in enumerate(names, 40)}


def test_numbers() -> None:
    header = HEADER.read_text()
    in_c = {name: int(value, 0) for name, value in re.findall(r"\bAGENT_(\w+) = (\w+)", header)}
    for kind in (
        abi.Command,
        abi.Event,
        abi.Cause,
        abi.Role,
        abi.Indirection,
        abi.StepKind,
        abi.StepFlag,
        abi.WriteFlag,
        abi.BranchKind,
        abi.Operation,
        abi.ConditionFlag,
    ):
        for member in kind:
            assert in_c.pop(member.name) == member.value, member
    for op in (Op.STANDS, Op.GOES_ON, Op.BRANCHES, Op.BRANCHED):
        assert in_c.pop(op.name) == op
    assert in_c == {}
    verdicts = dict(re.findall(r"\bAGENT_(\w+) = (\d+)", HEADER.with_name("verdict.c").read_text()))
    assert {int(number) for number in verdicts.values()} == {row.number for row in ROWS}
    for name, number in verdicts.items():
        assert VERDICTS[name.lower()].number == int(number)
    assert f"#define AGENT_RULES {abi.RULES}\n" in header
    assert "#define AGENT_BY_HAND (AGENT_RULES - 1)" in header
    assert f"#define AGENT_BRANCH_BYTES ({abi.BRANCH_BYTES >> 10} << 10)" in header
    assert f"#define AGENT_BRANCH_SIGNAL {BRANCH_SIGNAL} " in header
    assert abi.BY_HAND == abi.RULES - 1
    assert f"#define AGENT_TRACE_PROBES {abi.TRACE_PROBES}\n" in header
    assert f"#define AGENT_LONG_NS {abi.LONG_NS}\n" in header
    assert f"#define AGENT_FIELDS {abi.FIELDS}\n" in header
    assert f"#define AGENT_FIELD_HOPS {abi.FIELD_HOPS}\n" in header
    assert f"#define AGENT_CONDITIONS {abi.CONDITIONS}\n" in header
    assert abi.CONDITIONS == condition.MOST
    assert f"char text[{condition.MOST_TEXT_BYTES + 1}];" in header
    assert f"#define AGENT_NOTE_BYTES {abi.NOTE_BYTES}\n" in header
    assert f"#define AGENT_SEEN_BYTES {abi.SEEN_BYTES} " in header
    assert f"#define AGENT_FAREWELL {abi.FAREWELL}\n" in header
    assert f"#define AGENT_MOST_COPIES {MOST_COPIES}\n" in header
    assert f"#define AGENT_QUIET {abi.QUIET}\n" in header
    assert f"#define AGENT_ALL {abi.ALL} " in header
    assert f"#define AGENT_NO_PACKET {abi.NO_PACKET:#x} " in header
    assert f"(bytes) << {abi.STACK_SHIFT} |" in header
    assert f"#define AGENT_MAGIC {abi.MAGIC:#x}ull" in header
