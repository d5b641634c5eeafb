"""Sockets that a library has opened in this process, and that it has no way to close."""

import os
import socket
import stat
from contextlib import suppress
from typing import NamedTuple


class Connection(NamedTuple):
    """A socket by its descriptor; the number of its file tells it from a later one of the same descriptor."""

    descriptor: int
    file: int

    def shut_down(self) -> None:
        """Let both ends find it closed; the descriptor stays with its owner."""
        with suppress(OSError):  # it is closed already
            if os.fstat(self.descriptor).st_ino == self.file:
                with socket.socket(fileno=os.dup(self.descriptor)) as line:
                    line.getpeername()  # an error if it only listens: gloo aborts the process where that fails
                    line.shutdown(socket.SHUT_RDWR)


def open_connections() -> set[Connection]:
    """All sockets of this process."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the listing itself, which is closed by now
            state = os.fstat(int(name))
            if stat.S_ISSOCK(state.st_mode):
                found.add(Connection(int(name), state.st_ino))
    return found
