"""The memory shared with the agent is written so that the other side never reads a half-written number."""

import contextlib
import os
import sys
from subprocess import PIPE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fuzz import EXAMPLES
from skblab.agent import abi
from skblab.agent.channel import EVENTS_BYTES, EVENTS_OFFSET, STEPS_OFFSET, Channel
from skblab.errors import AgentDamaged
from skblab.host import process

WRITES = 2_000_000
VALUES = (0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210)

# Another process, as the guest is one: it reads a word again and again until its standard input ends, and prints each
# value that it has seen.
READER = """
import mmap, os, select, sys
memory_fd, offset = map(int, sys.argv[1:])
words = memoryview(mmap.mmap(memory_fd, os.fstat(memory_fd).st_size)).cast("Q")
seen = {words[offset // 8]}
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    seen.update(words[offset // 8] for _ in range(100_000))
print(*sorted(seen))
"""


def test_a_word_is_written_at_once() -> None:
    channel, guests = Channel.make()
    with guests, contextlib.closing(channel):
        offset = abi.OFFSETS["steps_tail"]
        channel._write("steps_tail", VALUES[0])
        argv = [sys.executable, "-c", READER, str(channel.memory_fd), str(offset)]
        with process.start(argv, stdin=PIPE, stdout=PIPE, pass_fds=[channel.memory_fd]) as reader:
            assert reader.stdin
            assert reader.stdout
            assert reader.stdout.readline() == b"ready\n"
            for _ in range(WRITES // 2):
                channel._write("steps_tail", VALUES[1])
                channel._write("steps_tail", VALUES[0])
            reader.stdin.close()
            seen = {int(value) for value in reader.stdout.read().split()}
        assert seen == {*VALUES}


RINGS = {"events": (EVENTS_OFFSET, EVENTS_BYTES), "steps": (STEPS_OFFSET, 1 << 20)}


def read_all(channel: Channel, ring: str) -> None:
    if ring == "events":
        list(channel.events())
    else:
        channel.steps(lambda _: None)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(
    ("tail", "head", "size"),
    [(0, 64, 0), (0, 64, 4), (0, 64, 12), (0, 64, 128), (0, 1 << 40, 64), (64, 0, 64), (4, 64, 8), (-8, 8, 64)],
    ids=["none", "less than a head", "odd", "beyond the head", "more than the ring", "before the tail", "odd tail",
         "beyond the end"],
)  # fmt: skip
def test_a_size_that_cannot_be_is_told_of(ring: str, tail: int, head: int, size: int) -> None:
    channel, guests = Channel.make(1 << 20)
    offset, ring_bytes = RINGS[ring]
    if tail < 0:
        tail, head = tail + ring_bytes, head + ring_bytes
    with guests, contextlib.closing(channel):
        abi.RECORD.pack_into(channel._memory, offset + tail % ring_bytes // 8 * 8, size, 0, 0)
        channel._write(f"{ring}_tail", tail)
        channel._write(f"{ring}_head", head)
        with pytest.raises(AgentDamaged, match="the guest's kernel has damaged it"):
            read_all(channel, ring)


@given(ring=some.sampled_from(sorted(RINGS)), content=some.binary(min_size=8, max_size=256), head=some.integers(0, 512),
       tail=some.integers(0, 512))  # fmt: skip
@settings(max_examples=max(EXAMPLES, 500))
def test_whatever_is_in_the_rings_is_read_to_its_end(ring: str, content: bytes, head: int, tail: int) -> None:
    channel, guests = Channel.make(1 << 20)
    offset, _ = RINGS[ring]
    with guests, contextlib.closing(channel):
        channel._memory[offset : offset + len(content)] = content
        channel._write(f"{ring}_tail", tail)
        channel._write(f"{ring}_head", head)
        with contextlib.suppress(AgentDamaged):
            read_all(channel, ring)
            assert channel._read(f"{ring}_tail") == head


def test_a_guest_cannot_change_the_memorys_size() -> None:
    channel, guests = Channel.make(1 << 20)
    with guests, contextlib.closing(channel):
        for size in (0, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(channel.memory_fd, size)
