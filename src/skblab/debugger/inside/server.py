"""The server inside gdb: it handles one request after another on gdb's thread, over a private socket.

gdb's standard streams are not used. While the kernel runs, this thread is inside ``continue``; the other side stops it
by SIGCONT to the kernel. Nothing here calls gdb.execute() from a stop handler (sourceware 29831).
"""

import socket
import time

import gdb

from skblab.debugger.inside import follow, frozen, wire
from skblab.debugger.inside.frames import read_frames, read_packet

SET_UP = ("set pagination off", "set width 0")
WAYS = frozenset({"continue", "step", "next", "stepi", "finish"})


class Stop(gdb.Breakpoint):
    """A stop at a function's first instruction, when the arguments are still in their registers.

    The code of a module, as the agent is one, lies in the guest's memory, which the kernel shares with the processes of
    its programs. Of such a process gdb takes its breakpoints out when it begins (gdb/breakpoint.c
    detach_breakpoints()), and so out of the kernel, too: there the stop is one of the processor's.

    :param in_code: write an instruction nevertheless, where the processor's are not to be had
    """

    def __init__(self, order: wire.SetStop, *, in_code: bool = False) -> None:
        self.in_processor = order.function == wire.AGENT_STOP and not in_code
        kind = gdb.BP_HARDWARE_BREAKPOINT if self.in_processor else gdb.BP_BREAKPOINT
        super().__init__(f"*{order.address:#x}", type=kind, internal=True)
        self.silent = True
        self.order = order
        if order.condition:
            self.condition = order.condition


class Server:
    """Requests from skblab, carried out in gdb."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.stops: dict[int, Stop] = {}
        self.hit: gdb.Event | None = None
        self.hit_ns = 0
        self.exit_status: int | None = None
        self.gone = False
        gdb.events.stop.connect(self._on_stop)
        gdb.events.exited.connect(self._on_exit)

    def serve(self) -> None:
        """Answer requests until the other side hangs up or asks to detach."""
        for line in self.channel.makefile("rb"):
            request = wire.decode(line)
            try:
                self._answer(request)
            except gdb.error as error:
                self._send(wire.Failed(str(error)))
            if isinstance(request, wire.Detach):
                return

    def _answer(self, request: wire.Message) -> None:
        match request:
            case wire.Attach(pid=pid):
                gdb.execute(f"attach {pid}", to_string=True)
                frozen.begin()
                self._send(self._stopped("attach"))
            case wire.SetStop():
                stop = Stop(request)
                self.stops[stop.number] = stop
                self._send(wire.StopSet(stop.number))
            case wire.AddSymbols(path=path, text=text):
                gdb.execute(f"add-symbol-file {path} {text:#x}", to_string=True)
                self._send(wire.Done())
            case wire.ClearStop(number=number):
                self.stops.pop(number).delete()
                self._send(wire.Done())
            case wire.Go(how=how) if how in WAYS:
                self._go(how)
            case wire.Evaluate(expression=expression):
                self._send(wire.Value(gdb.parse_and_eval(expression).format_string(styling=False)))
            case wire.Detach():
                for stop in self.stops.values():
                    stop.delete()
                gdb.execute("detach", to_string=True)
                self._send(wire.Done())
            case _:
                self._send(wire.Failed(f"not a request: {request}"))

    def _go(self, how: str) -> None:
        self.hit, self.hit_ns = None, 0
        self._send(wire.Resumed(time.monotonic_ns()))
        try:
            gdb.execute(how, to_string=True)
        except gdb.error as error:
            if "hardware breakpoint" not in str(error):
                raise
            self._put_in_code()
            gdb.execute(how, to_string=True)
        if self.gone:
            self._send(wire.Gone(self.exit_status))
        else:
            self._send(self._stopped("step"))

    def _put_in_code(self) -> None:
        """Do without the processor's breakpoints, which are not to be had."""
        for number, stop in self.stops.items():
            if stop.in_processor:
                stop.delete()
                self.stops[number] = Stop(stop.order, in_code=True)

    def _stopped(self, otherwise: str) -> wire.Stopped:
        reason, number, detail = otherwise, 0, ""
        packet, problem = None, ""
        if isinstance(self.hit, gdb.BreakpointEvent):
            reason = "stop"
            ours = [number for number, stop in self.stops.items() if stop in self.hit.breakpoints]
            if ours:
                order = self.stops[ours[0]].order
                number, detail = ours[0], order.function
                if order.skb:
                    try:
                        packet = read_packet(order.skb)
                    except gdb.error as error:
                        problem = str(error)
                else:
                    problem = f"{order.function}() takes no struct sk_buff *"
        elif isinstance(self.hit, gdb.SignalEvent) and otherwise != "attach":
            reason, detail = "signal", self.hit.stop_signal
        return wire.Stopped(reason, number, detail, self.hit_ns or time.monotonic_ns(), read_frames(), packet, problem)

    def _on_stop(self, event: gdb.Event) -> None:
        self.hit, self.hit_ns = event, time.monotonic_ns()

    def _on_exit(self, event: gdb.Event) -> None:
        self.gone = True
        self.exit_status = getattr(event, "exit_code", None)

    def _send(self, message: wire.Message) -> None:
        self.channel.sendall(wire.encode(message))


def main(descriptor: int) -> None:
    """Serve on an inherited socket; gdb starts with this."""
    follow.set_up(*SET_UP)
    server = Server(socket.socket(fileno=descriptor))
    server.serve()
