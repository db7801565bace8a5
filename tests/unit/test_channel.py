"""The memory shared with the agent is written so that the other side never sees a number nobody meant."""

import contextlib
import sys
from subprocess import PIPE

from skblab.agent import abi
from skblab.agent.channel import Channel
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
