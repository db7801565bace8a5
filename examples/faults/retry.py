"""A bank, and a client that pays once. If its connection is reset it pays again, and the bank cannot tell."""

import contextlib
import socket
import sys
import time

ADDRESS = ("guest", 7001)


def serve() -> None:
    """Add up what is paid."""
    paid = 0
    with socket.create_server(("", ADDRESS[1])) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                if connection.recv(16) == b"pay 10\n":
                    paid += 10
                    time.sleep(0.05)  # it writes that down
                connection.sendall(f"paid {paid} in all\n".encode())


def pay() -> str:
    """Pay 10; return the bank's answer."""
    with socket.create_connection(ADDRESS) as connection:
        connection.sendall(b"pay 10\n")
        return connection.makefile().readline()


def main() -> None:
    """Pay, at the third attempt at the latest."""
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError):  # the fault: the bank may have been paid before the reset
            print(pay(), end="")
            return
    sys.exit("the bank does not answer")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
