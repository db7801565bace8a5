"""The contract with the agent is the same on both sides: the C header is compiled and compared."""

import re
import struct
from pathlib import Path

from skblab.agent import abi
from skblab.host import process
from skblab.image.recipe import kernel_dir
from skblab.verdict import MOST_COPIES, ROWS

HEADER = kernel_dir() / "agent" / "agent_abi.h"
STRUCTS = {
    "agent_counts": abi.Counts.LAYOUT, "agent_record": abi.RECORD, "agent_arm": abi.Arm.LAYOUT,
    "agent_decide": abi.DECIDE, "agent_write": abi.WRITE,
    "agent_hit": abi.Hit.LAYOUT, "agent_done": abi.Done.LAYOUT, "agent_end": abi.End.LAYOUT,
    "agent_field": abi.Field.LAYOUT, "agent_follow": abi.Follow.LAYOUT, "agent_point": abi.Point.LAYOUT,
    "agent_step": abi.STEP, "agent_more": abi.MORE, "agent_by_hand": abi.BY_HAND_LAYOUT, "agent_return": abi.RETURN,
    "agent_kin": abi.KIN, "agent_device": abi.DEVICE,
}  # fmt: skip
# Structs within others: described where they are, or behind them.
INSIDE = {"agent_part"}
BEHIND = {"agent_follow": abi.FIELDS * abi.Field.LAYOUT.size}
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
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "agent_abi.h"\nint main(void)\n{\n'
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    done = process.run(["gcc", "-std=gnu11", f"-I{HEADER.parent}", "-o", program, source], timeout_s=60)
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in process.run([program], timeout_s=10).stdout.splitlines()]
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


def test_numbers() -> None:
    header = HEADER.read_text()
    in_c = {name: int(value, 0) for name, value in re.findall(r"\bAGENT_(\w+) = (\w+)", header)}
    for kind in (
        abi.Command,
        abi.Event,
        abi.Cause,
        abi.Role,
        abi.Given,
        abi.StepKind,
        abi.StepFlag,
        abi.WriteFlag,
    ):
        for member in kind:
            assert in_c.pop(member.name) == member.value, member
    numbers = {row.number for row in ROWS}
    assert {in_c.pop(name) for name in ("ACCEPT", "TRACE", "HOLD", "DROP", "DUPLICATE", "STOP")} == numbers
    assert in_c == {}
    assert f"#define AGENT_RULES {abi.RULES}\n" in header
    assert "#define AGENT_BY_HAND (AGENT_RULES - 1)" in header
    assert abi.BY_HAND == abi.RULES - 1
    assert f"#define AGENT_POINTS {abi.POINTS}\n" in header
    assert f"#define AGENT_LONG_NS {abi.LONG_NS}\n" in header
    assert f"#define AGENT_FIELDS {abi.FIELDS}\n" in header
    assert f"#define AGENT_FIELD_HOPS {abi.FIELD_HOPS}\n" in header
    assert f"#define AGENT_NOTE_BYTES {abi.NOTE_BYTES}\n" in header
    assert f"#define AGENT_SEEN_BYTES {abi.SEEN_BYTES} " in header
    assert f"#define AGENT_FAREWELL {abi.FAREWELL}\n" in header
    assert f"#define AGENT_MOST_COPIES {MOST_COPIES}\n" in header
    assert f"#define AGENT_ALL {abi.ALL} " in header
    assert f"#define AGENT_NO_PACKET {abi.NO_PACKET:#x} " in header
    assert f"(bytes) << {abi.STACK_SHIFT} |" in header
    assert f"#define AGENT_MAGIC {abi.MAGIC:#x}ull" in header
