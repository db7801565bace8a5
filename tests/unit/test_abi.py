"""The contract with the agent is the same on both sides: the C header is compiled and compared."""

import re
from pathlib import Path

from skblab.agent import abi
from skblab.host import process
from skblab.image.recipe import kernel_dir
from skblab.rule import MOST_COPIES

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include "agent_abi.h"
#define SIZE(type) printf(#type " %zu\\n", sizeof(struct type))
#define OFFSET(name) printf(#name " %zu\\n", offsetof(struct agent_shared, name))
int main(void)
{
	SIZE(agent_shared); SIZE(agent_counts); SIZE(agent_record); SIZE(agent_arm); SIZE(agent_decide);
	SIZE(agent_hit); SIZE(agent_done); SIZE(agent_end); SIZE(agent_field); SIZE(agent_follow); SIZE(agent_point);
	SIZE(agent_step); SIZE(agent_by_hand); SIZE(agent_more); SIZE(agent_return); SIZE(agent_kin); SIZE(agent_device);
	OFFSETS
	return 0;
}
"""


def test_sizes_and_offsets(tmp_path: Path) -> None:
    source = tmp_path / "layout.c"
    source.write_text(PROGRAM.replace("OFFSETS", "".join(f"OFFSET({name});" for name in abi.OFFSETS)))
    program = tmp_path / "layout"
    done = process.run(["gcc", "-std=gnu11", f"-I{kernel_dir() / 'agent'}", "-o", program, source], timeout_s=60)
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in process.run([program], timeout_s=10).stdout.splitlines())
    sizes = {
        "agent_shared": abi.SHARED_BYTES,
        "agent_counts": abi.Counts.LAYOUT.size,
        "agent_record": abi.RECORD.size,
        "agent_arm": abi.Arm.LAYOUT.size,
        "agent_decide": abi.DECIDE.size,
        "agent_hit": abi.Hit.LAYOUT.size,
        "agent_done": abi.Done.LAYOUT.size,
        "agent_end": abi.End.LAYOUT.size,
        "agent_field": abi.Field.LAYOUT.size,
        "agent_follow": abi.Follow.LAYOUT.size + abi.FIELDS * abi.Field.LAYOUT.size,
        "agent_point": abi.Point.LAYOUT.size,
        "agent_step": abi.STEP.size,
        "agent_more": abi.MORE.size,
        "agent_by_hand": abi.BY_HAND_LAYOUT.size,
        "agent_return": abi.RETURN.size,
        "agent_kin": abi.KIN.size,
        "agent_device": abi.DEVICE.size,
    }
    for name, size in (sizes | abi.OFFSETS).items():
        assert int(said[name]) == size, name


def test_numbers() -> None:
    header = (kernel_dir() / "agent" / "agent_abi.h").read_text()
    in_c = {name: int(value, 0) for name, value in re.findall(r"\bAGENT_(\w+) = (\w+)", header)}
    for kind in (abi.Verdict, abi.Command, abi.Event, abi.Cause, abi.Role, abi.Given, abi.StepKind, abi.StepFlag):
        for member in kind:
            assert in_c.pop(member.name) == member.value, member
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
