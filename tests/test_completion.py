"""A shell completes commands, functions of the kernel, and images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.image import Image
from support import SKBLAB, Person


def completions(line: str) -> set[str]:
    """Return what a shell would be offered at the end of a line, by argcomplete's protocol."""
    reader, writer = os.pipe()
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": f"/proc/{os.getpid()}/fd/{writer}",
    }
    running = process.start(SKBLAB, env=environment, stdout=subprocess.DEVNULL, pass_fds=[writer])
    process.finish(running, timeout_s=20)
    os.close(writer)
    with os.fdopen(reader) as answer:
        return {word.strip() for word in answer.read().split("\n") if word.strip()}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("skblab ", {"ping", "image", "doctor"}),
        ("skblab re", {"replay"}),
        ("skblab replay --", {"--json", "--save"}),
        ("skblab ping --at icmp_r", {"icmp_rcv", "icmp_reply", "icmp_redirect"}),
        ("skblab ping --link ", {"auto", "tap", "veth"}),
        ("skblab image ", {"build", "ls", "check", "rm"}),
    ],
)
def test_what_a_shell_is_offered(line: str, offered: set[str]) -> None:
    assert offered <= completions(line)


def test_images_are_offered(image: Image) -> None:
    assert image.name in completions("skblab image rm 6.")


SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(skblab completion bash)"; echo up$((40+2))'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -D; eval "$(skblab completion zsh)"; echo up$((40+2))',
    ),
    "fish": (["fish", "--private"], "skblab completion fish | source; echo up(math 40+2)"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, image: Image) -> None:
    """In the shell itself, at a terminal, by the key that completes: a command, a kernel function, an image."""
    program, reads_ours = SHELLS[shell]
    path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
    person = Person(program=["env", path, "HISTFILE=", *program])
    person.types(f"{reads_ours}\r".encode())
    person.reads("up42")
    only_this = f"image rm {image.name[:-6]}"  # there may be others
    for typed, becomes in (("docto", "doctor"), ("ping --at icmp_rc", "icmp_rcv"), (only_this, image.name)):
        person.types(f"skblab {typed}\t".encode())
        person.reads(becomes)
        person.types(b"\x15")
    os.close(person.terminal)
    person.program.wait(20)
