"""The roll call at the start of several processes: all are there and agree on the facts, or all end with the same message.

Process 0 opens a store at the run's address without waiting for anybody, the others look for it. Each enters who it is;
process 0 waits until all are in or the time is over and leaves its verdict in the store, which all read.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, TCPStore  # type: ignore[attr-defined] # not in its __all__
from torch.distributed.distributed_c10d import Store

from modelforge.errors import UserError
from modelforge.training.stop_signal import Interrupted

STOPPED_EARLY, ASKED_TO_STOP = 75, "another process was asked to stop before the start"
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_OF_SILENCE = 10.0  # before it is said who is awaited
SECONDS_TO_READ = 10.0  # the verdict, before process 0 and its store may go
SECONDS_TO_CONNECT = 5.0  # in one try
MOST_NAMED = 8  # processes or facts in a message

Say = Callable[[str], None]


@dataclass(frozen=True)
class Meeting:
    """Where and for how long a process looks for the others."""

    host: str
    port: int
    rank: int
    num_processes: int
    timeout: float  # s
    opened_elsewhere: bool = False  # the launcher has opened the store already, as torchrun does


@dataclass(frozen=True)
class Presence:
    """A process that is there, and what it holds true."""

    rank: int
    facts: Mapping[str, str] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        return f"process {self.rank} on {self.host} (pid {self.pid})"


def open_store(meeting: Meeting, *, alone: Callable[[], str | None]) -> TCPStore:
    """The store of the run: opened by process 0, found by the others; `UserError` if neither works in time.

    `alone` gives a reason not to wait any longer, or None.
    """
    timeout = timedelta(seconds=meeting.timeout)
    if meeting.rank == 0 and not meeting.opened_elsewhere:
        try:
            return TCPStore("127.0.0.1", meeting.port, is_master=True, wait_for_workers=False, timeout=timeout)
        except DistNetworkError as error:
            raise UserError(
                f"process 0 on {socket.gethostname()} cannot open port {meeting.port}, where the processes of this run meet: "
                f"{error}. Does another run or a process left behind use it? Set MASTER_PORT to a free port"
            ) from error
    _wait_for_port(meeting, alone)
    try:
        return TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=timeout)
    except DistNetworkError as error:
        raise UserError(f"{_not_reached(meeting)}: {error}") from error


def _wait_for_port(meeting: Meeting, alone: Callable[[], str | None]) -> None:
    """Until process 0 listens. Plain sockets: the store's own search cannot be interrupted, and prints stack traces."""
    end = time.monotonic() + meeting.timeout
    while True:
        try:
            socket.create_connection((meeting.host, meeting.port), timeout=SECONDS_TO_CONNECT).close()
            return
        except OSError as error:
            if (reason := alone()) is not None:
                raise UserError(reason) from error
            if time.monotonic() > end:
                raise UserError(
                    f"{_not_reached(meeting)} within {meeting.timeout:g} s (runtime.startup_timeout): {error}. Look at the "
                    "output of process 0, and for a firewall between the nodes; MASTER_ADDR and MASTER_PORT must name its node"
                ) from error
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _not_reached(meeting: Meeting) -> str:
    who = f"process {meeting.rank} of {meeting.num_processes} on {socket.gethostname()}"
    return f"{who} did not reach process 0 at {meeting.host} port {meeting.port}"


def call_roll(
    store: Store,
    meeting: Meeting,
    me: Presence,
    *,
    say: Say,
    ended: Callable[[], Mapping[int, int]] = dict,
) -> list[Presence]:
    """All processes, once all are there and agree on the facts; else the same `UserError` in each of them.

    `ended` gives the exit codes of processes that are known to have ended, by rank.
    """
    try:
        if store.add(f"number/{me.rank}", 1) > 1:
            raise UserError(
                f"{me} is the second one with this number: give each node another NODE_RANK, each process on a node another "
                "LOCAL_RANK, and start one run at a time at the same address and port"
            )
        store.set(f"presence/{me.rank}", json.dumps(asdict(me)))
        verdict = _judge(store, meeting, say, ended) if me.rank == 0 else _await_verdict(store, meeting)
        if verdict == ASKED_TO_STOP:
            raise Interrupted(verdict)
        if verdict:
            raise UserError(verdict)
        return _present(store, range(meeting.num_processes))
    except (DistNetworkError, DistStoreError) as error:
        raise UserError(f"process 0 ended during the start, as seen by {me}; look at its output") from error


def _judge(store: Store, meeting: Meeting, say: Say, ended: Callable[[], Mapping[int, int]]) -> str:
    """The verdict, left for the others; empty if all is well."""
    missing = _wait_for_all(store, meeting, say, ended)
    here = _present(store, [rank for rank in range(meeting.num_processes) if rank not in missing])
    verdict = _absence(missing, here, meeting, ended()) if missing else disagreement(here)
    store.set("verdict", verdict or "all here")
    if verdict:
        end = time.monotonic() + SECONDS_TO_READ
        while store.add("readers", 0) < len(here) - 1 and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return verdict


def _wait_for_all(store: Store, meeting: Meeting, say: Say, ended: Callable[[], Mapping[int, int]]) -> list[int]:
    """The processes that did not come in time, or that have ended without coming."""
    begun, said = time.monotonic(), False
    missing = list(range(meeting.num_processes))
    while missing := [rank for rank in missing if not store.check([f"presence/{rank}"])]:
        waited = time.monotonic() - begun
        if waited > meeting.timeout or not ended().keys().isdisjoint(missing):
            break
        if waited > SECONDS_OF_SILENCE and not said:
            said = True
            say(f"waiting for {in_words(missing)} of {meeting.num_processes}, up to {meeting.timeout:g} s")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return missing


def _await_verdict(store: Store, meeting: Meeting) -> str:
    end = time.monotonic() + meeting.timeout + SECONDS_TO_READ
    while not store.check(["verdict"]):
        if time.monotonic() > end:
            return f"process 0 said nothing for {meeting.timeout:g} s (runtime.startup_timeout); look at its output"
        time.sleep(SECONDS_BETWEEN_LOOKS)
    verdict = store.get("verdict").decode()
    with suppress(DistNetworkError):  # process 0 has seen that all have read it, this one's receipt included
        store.add("readers", 1)
    return "" if verdict == "all here" else verdict


def _present(store: Store, ranks: Sequence[int]) -> list[Presence]:
    return [Presence(**json.loads(store.get(f"presence/{rank}"))) for rank in ranks]


def _absence(missing: Sequence[int], here: Sequence[Presence], meeting: Meeting, ended: Mapping[int, int]) -> str:
    codes = {rank: code for rank, code in ended.items() if rank in missing}
    if STOPPED_EARLY in codes.values():
        return ASKED_TO_STOP
    if codes:
        ends = ", ".join(f"process {rank} with exit code {code}" for rank, code in codes.items())
        return f"the run cannot start: {ends} ended before the start; its output says why"
    return (
        f"{in_words(missing)} of {meeting.num_processes} did not appear within {meeting.timeout:g} s "
        f"(runtime.startup_timeout); here: {_first([str(process) for process in here])}. Look at the output of those that are "
        "missing; see that as many processes are started as nodes times devices (srun, --ntasks-per-node, torchrun), and that "
        f"no firewall keeps them from {meeting.host} port {meeting.port}. Where they need longer, raise runtime.startup_timeout"
    )


def disagreement(here: Sequence[Presence]) -> str:
    """Which facts of which processes differ from those of process 0; empty if none does."""
    first, *others = here
    differences = [
        f"{other} has another {name} than {first}: {other.facts.get(name, 'none')} instead of {first.facts.get(name, 'none')}"
        for other in others
        for name in sorted(first.facts.keys() | other.facts.keys())
        if other.facts.get(name) != first.facts.get(name)
    ]
    if not differences:
        return ""
    return f"{_first(differences, '; ')}. All processes must see the same files and run the same version of modelforge"


def in_words(ranks: Sequence[int]) -> str:
    """`process 1`, or `processes 1, 2 and 5`."""
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if len(ranks) > MOST_NAMED:
        return f"processes {_first([str(rank) for rank in ranks])}"
    return f"processes {', '.join(str(rank) for rank in ranks[:-1])} and {ranks[-1]}"


def _first(words: Sequence[str], separator: str = ", ") -> str:
    shown = separator.join(words[:MOST_NAMED])
    return f"{shown} and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else shown
