"""Stop for packets of more than 500 bytes only, step through the function, and ask the kernel in C."""

import subprocess

from skblab import Lab

with Lab() as lab, lab.debugger() as gdb:
    gdb.set_stop("icmp_rcv", condition="skb->len > 500")
    gdb.resume()
    lab.run(["ping", "-c", "3", "-i", "0.01", "guest"], timeout_s=20)  # small ones: nothing stops
    ping = lab.popen(["ping", "-c", "1", "-s", "1000", "guest"], stdout=subprocess.DEVNULL)

    gdb.wait_stop(10)
    print("length:", gdb.evaluate("skb->len"), " device:", gdb.evaluate("skb->dev->name"))
    for _ in range(3):
        gdb.resume("next")
        frame = gdb.wait_stop(10).frames[0]
        print(f"{frame.function}()  {frame.file}:{frame.line}")
    gdb.resume("finish")
    print("back in", gdb.wait_stop(10).frames[0].function)
    gdb.resume()
    ping.wait()
