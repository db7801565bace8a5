"""The client: a program on the host side, its output, and ping's RTTs from it."""

import asyncio
import codecs
import collections
import contextlib
import io
import os
import signal
from collections.abc import Callable, Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Sparkline, Static

from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.host.output import CONTROL, open_terminal
from skblab.lab import Lab

KEPT_LINES, KEPT_RTTS, LONGEST_LINE = 1000, 300, 4000
READ_BYTES = 1 << 16
MOST_OUTPUT = 1 << 20  # characters


class Client:
    """A running program. It writes to a terminal of its own, because it would buffer its output into a pipe.

    :param ended: called when it has ended
    """

    def __init__(self, lab: Lab, command: Sequence[str], ended: Callable[[], object] = lambda: None) -> None:
        self.output = io.StringIO()  # all of it, up to MOST_OUTPUT
        self._tell_of_end = ended
        self.lines: collections.deque[Text] = collections.deque(maxlen=KEPT_LINES)
        self.rtts_ms: collections.deque[float] = collections.deque(maxlen=KEPT_RTTS)
        self.replies = 0
        self.partial = ""
        self.status: int | None = None
        self.changed = True
        self.last_words: list[str] = []  # its output after the interrupt
        self._interrupted = False
        self._silent, self._gone = asyncio.Event(), asyncio.Event()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._terminal, theirs = open_terminal()
        try:
            self._running = lab.popen(command, stdout=theirs, stderr=theirs, new_session=True)
        except BaseException:
            os.close(self._terminal)
            raise
        finally:
            os.close(theirs)
        self._pidfd = os.pidfd_open(self._running.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._terminal, self._read)
        self._loop.add_reader(self._pidfd, self._ended)

    def close(self) -> None:
        """Stop reading; the program ends with its lab."""
        for descriptor in (self._terminal, self._pidfd):
            if descriptor >= 0:
                self._loop.remove_reader(descriptor)
                os.close(descriptor)
        self._terminal = self._pidfd = -1

    async def interrupt(self, timeout_s: float) -> None:
        """Send SIGINT, so that the program prints its summary; wait *timeout_s* for its end."""
        if self.status is None:
            self._interrupted = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(self._silent.wait(), self._gone.wait()), timeout_s)

    def note(self, text: str, style: str = "dim") -> None:
        """Insert a line of skblab between the program's lines."""
        self.lines.append(Text(text, style=style))
        self.changed = True

    def _read(self) -> None:
        try:
            data = os.read(self._terminal, READ_BYTES)
        except OSError:  # EIO: all have closed the other end
            data = b""
        if data:
            self.hear(self._decoder.decode(data))
        else:
            self._loop.remove_reader(self._terminal)
            os.close(self._terminal)
            self._terminal = -1
            self._silent.set()

    def hear(self, text: str) -> None:
        """Process some output."""
        text = CONTROL.sub("", text)
        if self.output.tell() <= MOST_OUTPUT:
            self.output.write(text)
        *whole, partial = (self.partial + text).split("\n")
        for line in whole:
            for reply in parse_ping(line):
                self.rtts_ms.append(reply.rtt_ms)
                self.replies += 1
            self.lines.append(Text(_as_seen(line)))
            if self._interrupted:
                self.last_words.append(_as_seen(line))
        self.partial = partial[-LONGEST_LINE:]
        self.changed = True

    def _ended(self) -> None:
        status = self._running.poll()
        if status is not None:
            self.status = process.exit_status(status)
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self.changed = True
            self._gone.set()
            self._tell_of_end()

    @property
    def said(self) -> str | None:
        """All that it has written, without a terminal's control characters; None if that was too long to keep."""
        text = self.output.getvalue()
        return None if len(text) > MOST_OUTPUT else text.replace("\r\n", "\n")

    def seen(self, count: int) -> Text:
        """Return the last lines."""
        lines = [*list(self.lines)[-count:], *([Text(_as_seen(self.partial))] if self.partial else [])]
        return Text("\n").join(lines[-count:])


def _time(ms: float) -> str:
    return f"{ms:g} ms" if ms < 10_000 else f"{ms / 1000:,.1f} s"


def _as_seen(line: str) -> str:
    """Return a line with carriage returns and backspaces as a terminal would show it."""
    line = line.rstrip("\r").rpartition("\r")[2]
    if "\b" not in line:
        return line
    seen: list[str] = []
    for letter in line:
        if letter != "\b":
            seen.append(letter)
        elif seen:
            seen.pop()
    return "".join(seen)


class Output(Widget):
    """The client's last lines, as many as fit."""

    def __init__(self) -> None:
        super().__init__(id="output")
        self.client: Client | None = None

    def render(self) -> Text:
        """Return the lines."""
        return self.client.seen(max(self.size.height, 1)) if self.client else Text()


class ClientPane(Vertical):
    """The client's output with a plot of its RTTs."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(id="client")
        self._words = " ".join(command)

    def compose(self) -> ComposeResult:
        """Yield the parts."""
        yield Output()
        yield Sparkline([], id="rtts", summary_function=max)
        yield Static("", id="rtt", markup=False)

    def on_mount(self) -> None:
        """Show the client's command."""
        self.border_title = f"{self._words}: starting"

    def update(self, client: Client) -> None:
        """Show new output and RTTs."""
        if not client.changed:
            return
        client.changed = False
        output = self.query_one(Output)
        output.client = client
        output.refresh()
        state = "running" if client.status is None else f"ended, exit status {client.status}"
        self.border_title = f"{self._words}: {state}"
        rtts = list(client.rtts_ms)
        self.set_class(bool(rtts), "-pings")
        if rtts:
            self.query_one(Sparkline).data = rtts
            least, most = _time(min(rtts)), _time(max(rtts))
            self.query_one("#rtt", Static).update(
                f"RTT {_time(rtts[-1])}   least {least}   most {most}   replies {client.replies:,}"
            )
