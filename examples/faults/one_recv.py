"""A server that adds numbers, one line a request. It takes what one recv() returns for one request."""

import socket
import sys

ADDRESS = ("guest", 7000)
REQUEST = " ".join(map(str, range(1, 401)))  # some 1,500 bytes: two segments


def serve() -> None:
    """Answer each connection's line with its sum."""
    with socket.create_server(("", ADDRESS[1])) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                words = connection.recv(65536).split()  # the fault: the line may come in parts
                connection.sendall(f"{sum(int(word) for word in words)}\n".encode())


def main() -> None:
    """Ask for one sum."""
    with socket.create_connection(ADDRESS) as connection:
        connection.sendall(f"{REQUEST}\n".encode())
        print(connection.makefile().readline(), end="")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
