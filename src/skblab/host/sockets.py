"""Sockets of a lab's host side that resolve the names ``guest`` and ``host``, as the lab's clients do."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any


class LabSocket(socket.socket):
    """A socket that resolves the lab's names itself; other names go to this process's resolver."""

    def __init__(self, descriptor: int, names: Mapping[str, Sequence[str]]) -> None:
        super().__init__(fileno=descriptor)
        self._names = names

    def _resolved(self, address: Any) -> Any:  # noqa: ANN401 - socket's own
        """Return an address with the lab's name replaced by its number in this socket's family."""
        if not (isinstance(address, tuple) and address[0] in self._names):
            return address
        wants_colon = self.family == socket.AF_INET6
        found = [one.partition("/")[0] for one in self._names[address[0]] if (":" in one) == wants_colon]
        return (found[0], *address[1:]) if found else address

    def connect(self, address: Any) -> None:  # noqa: ANN401
        """Connect, also by name."""
        super().connect(self._resolved(address))

    def connect_ex(self, address: Any) -> int:  # noqa: ANN401
        """Connect, also by name."""
        return super().connect_ex(self._resolved(address))

    def bind(self, address: Any) -> None:  # noqa: ANN401
        """Bind, also by name."""
        super().bind(self._resolved(address))

    def sendto(self, data: Any, *where: Any) -> int:  # noqa: ANN401
        """Send, also by name."""
        flags, address = where if len(where) > 1 else (0, *where)
        return super().sendto(data, flags, self._resolved(address))
