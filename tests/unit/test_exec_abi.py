"""The messages about a command in the guest are the same on both sides."""

import re
from pathlib import Path

from skblab.guest import exec as ours
from skblab.host import process
from skblab.image.recipe import kernel_dir


def test_the_messages(tmp_path: Path) -> None:
    header = kernel_dir() / "init" / "exec_abi.h"
    enums = [
        *((f"EXEC_{kind.name}", kind) for kind in ours.Kind),
        *((f"EXEC_STEP_{step.name}", step) for step in ours.Step),
    ]
    source = tmp_path / "layout.c"
    lines = [f'printf("{name} %d\\n", {name});' for name, _ in enums]
    source.write_text(
        f'#include <stdio.h>\n#include "{header}"\nint main(void)\n{{\n'
        'printf("size %zu\\n", sizeof(struct exec_message));printf("most %d\\n", EXEC_MESSAGE_BYTES);\n'
        + "\n".join(lines) + "}\n"
    )  # fmt: skip
    process.run(["gcc", "-o", tmp_path / "layout", source], timeout_s=60).check_returncode()
    said = dict(line.split() for line in process.run([tmp_path / "layout"], timeout_s=10).stdout.splitlines())
    assert int(said["size"]) == ours.HEADER.size
    assert int(said["most"]) == ours.MESSAGE_BYTES
    assert {name: int(said[name]) for name, _ in enums} == dict(enums)
    assert len(re.findall(r"^\tEXEC_\w+", header.read_text(), re.MULTILINE)) == len(enums)
