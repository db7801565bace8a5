"""A shell completes commands, functions of the kernel, and images."""

import os
import subprocess

import pytest

from skblab.host import process
from skblab.image.image import Image
from support import SKBLAB


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
        ("skblab ping --at icmp_r", {"icmp_rcv", "icmp_reply", "icmp_redirect"}),
        ("skblab ping --link ", {"auto", "tap", "veth"}),
        ("skblab image ", {"build", "ls", "check", "rm"}),
    ],
)
def test_what_a_shell_is_offered(line: str, offered: set[str]) -> None:
    assert offered <= completions(line)


def test_images_are_offered(image: Image) -> None:
    assert image.name in completions("skblab image rm 6.")
