"""A directory behind UDP. The client takes every datagram for the answer to what it has just asked."""

import socket
import sys

ADDRESS = ("guest", 7002)
PATIENCE_S = 1.0
NUMBERS = {b"ada": b"1815", b"grace": b"1906"}


def serve() -> None:
    """Answer each name with its number; a question that comes twice is answered once."""
    answered = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", ADDRESS[1]))
        while True:
            name, client = question = server.recvfrom(64)
            if question not in answered:
                answered.add(question)
                server.sendto(NUMBERS.get(name, b"unknown"), client)


def connected() -> socket.socket:
    """Return a socket to the server; its own port keeps late answers to another socket away."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(ADDRESS)
    client.settimeout(PATIENCE_S)
    return client


def main() -> None:
    """Look two names up; ask again, from another port, where no answer comes."""
    client = connected()
    for name in NUMBERS:
        for _ in range(5):
            client.send(name)
            try:
                number = client.recv(64)  # the fault: an answer that comes twice is also that to the next question
            except TimeoutError:
                client.close()
                client = connected()
                continue
            print(name.decode(), number.decode())
            break
        else:
            sys.exit("the directory does not answer")
    client.close()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
