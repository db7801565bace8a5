"""Stop the whole kernel while a ping is in icmp_rcv(), hold it for a second, and see what ping makes of it."""

import subprocess
import time

from skblab import Lab, Packet

with Lab() as lab, lab.debugger() as gdb:
    gdb.set_stop("icmp_rcv")
    gdb.resume()
    ping = lab.popen(["ping", "-n", "-c", "1", "-W", "60", "guest"], stdout=subprocess.PIPE)

    stop = gdb.wait_stop(10)
    assert stop.packet is not None
    print(Packet(bytes.fromhex(stop.packet.linear), stop.packet.protocol).summary())
    for frame in stop.frames[:8]:
        print(f"  {frame.function}()  {frame.file}:{frame.line}")

    time.sleep(1)
    gdb.resume()
    print(ping.communicate()[0].decode().splitlines()[1])
