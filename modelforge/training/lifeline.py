"""A line from each process to process 0 for as long as they train together: when one fails or dies, the others learn why.

A collective waits for a process that is gone: gloo notices its end, NCCL may wait for half an hour. The system closes the
sockets of a process however it ends, so a line that closes without a word tells that its process was killed.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from modelforge.errors import UserError
from modelforge.training.roll_call import Presence, in_words

SECONDS_TO_LEAVE = 20.0  # after another's failure, before a process is ended where it hangs
SECONDS_FOR_NEWS = 3.0  # from an error in a collective to the word of its cause
SECONDS_TO_CONNECT = 30.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine without power is missed after 30 s
FAREWELL = "farewell"
LONGEST_WORD = 100_000  # bytes
EXIT_CODE = 1


class Lifeline:
    """One process's end of the lines: `report` its own failure, hear `news` of others, `leave` when it needs them no more.

    Each end says one word at most: why it failed, or farewell. Process 0 passes failures on.
    """

    def __init__(self, store: Store, everyone: Sequence[Presence], me: Presence, *, host: str) -> None:
        """`host` is the address of process 0; returns once all are connected, `UserError` if they do not within 30 s."""
        self._names = {process.rank: str(process) for process in everyone}
        self._me = me
        self._failure = ""
        self._failed, self._left = threading.Event(), threading.Event()
        self._lines = _lines_to_all(store, len(everyone)) if me.rank == 0 else {0: _line_to_first(store, host, me.rank)}
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def news(self, seconds: float = SECONDS_FOR_NEWS) -> str | None:
        """What happened to another process, as soon as it is known; None if nothing is heard within `seconds`."""
        return self._failure if self._failed.wait(seconds) else None

    def report(self, reason: str) -> None:
        """Tell the others that this process fails, and leave."""
        self._say(f"{self._me} failed: {reason}")
        self._close()

    def leave(self) -> None:
        """Go; nobody is alarmed, and nothing that happens to others matters any more."""
        self._say(FAREWELL)
        self._close()

    def _say(self, word: str) -> None:
        for line in self._lines.values():
            with suppress(OSError):  # that one is gone
                line.sendall(json.dumps(word).encode() + b"\n")

    def _close(self) -> None:
        self._left.set()
        for line in self._lines.values():
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for line in self._lines.values():
            line.close()

    def _watch(self) -> None:
        failure = self._first_failure()
        if failure is None or self._left.is_set():
            return
        if self._me.rank == 0:
            self._say(failure)  # before `news` of it, after which this process may say farewell: only the first word is heard
        self._failure = failure
        self._failed.set()
        if not self._left.wait(SECONDS_TO_LEAVE):
            sys.stderr.write(f"stopped: {failure}; {self._me} hangs in what it shared with that process, and is ended\n")
            sys.stderr.flush()
            os._exit(EXIT_CODE)  # the main thread is in a call that nothing else ends

    def _first_failure(self) -> str | None:
        """Waits for it; None when all have said farewell."""
        with selectors.DefaultSelector() as selector:
            for rank, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    word = (
                        _heard(self._lines[key.data])
                        or f"{self._names[key.data]} ended without a word: it was killed, or it crashed"
                    )
                    if word != FAREWELL:
                        return word
        return None


def _lines_to_all(store: Store, num_processes: int) -> dict[int, socket.socket]:
    """Process 0 waits for the others; the secret keeps strangers out."""
    secret = secrets.token_hex()
    lines: dict[int, socket.socket] = {}
    with _server(backlog=num_processes) as server:
        store.set("lifeline", json.dumps([server.getsockname()[1], secret]))
        end = time.monotonic() + SECONDS_TO_CONNECT
        while len(lines) < num_processes - 1:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                line, _ = server.accept()
            except TimeoutError as error:
                missing = sorted(set(range(1, num_processes)) - set(lines))
                raise UserError(
                    f"{in_words(missing)} did not connect to process 0 at port {server.getsockname()[1]} within "
                    f"{SECONDS_TO_CONNECT:g} s, though all were there; see that no firewall closes the ports between the nodes"
                ) from error
            line.settimeout(SECONDS_TO_CONNECT)
            given, _, rank = (_heard(line) or "").partition(" ")
            if secrets.compare_digest(given.encode(), secret.encode()):
                lines[int(rank)] = _kept_alive(line)
            else:
                line.close()
    return lines


def _server(*, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _line_to_first(store: Store, host: str, rank: int) -> socket.socket:
    port, secret = json.loads(store.get("lifeline"))
    try:
        line = socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT)
    except OSError as error:
        raise UserError(
            f"process {rank} cannot connect to process 0 at {host} port {port}: {error}; see that no firewall closes the ports "
            "between the nodes"
        ) from error
    line.sendall(json.dumps(f"{secret} {rank}").encode() + b"\n")
    return _kept_alive(line)


def _kept_alive(line: socket.socket) -> socket.socket:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in KEEP_ALIVE.items():
        if hasattr(socket, option):  # not on all systems
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return line


def _heard(line: socket.socket) -> str | None:
    """The one word of the other end; None if it closed or broke off without."""
    try:
        with line.makefile("rb") as words:
            return str(json.loads(words.readline(LONGEST_WORD)))
    except (OSError, ValueError):  # reset, out of time, or no whole word
        return None
