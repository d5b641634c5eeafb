"""A word when other processes take the cores that a training counts on.

Its threads meet several times in each step, and those that have a core wait at full speed for the one that has none: two
threads on one free core are several times slower than one. Linux only, where /proc tells who takes the cores.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelforge.training.listener import Validation

PROC = Path("/proc/stat")
SECONDS_BETWEEN_LOOKS = 20.0
TAKEN_IN_A_ROW = 2  # looks, before it is told: a short job of somebody else is no reason
SLACK = 0.5  # of a core, which the system itself may take
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: columns of /proc/stat; guests are within user


@dataclass(frozen=True)
class Reading:
    """Seconds of one moment: of the clock, of all processes together on our cores, and of this one."""

    clock: float
    all_processes: float
    this_process: float


class CoreWatch:
    """A listener that says once that others take the cores, and how many threads then are best."""

    def __init__(self, say: Callable[[str], None], *, num_threads: int, is_compiling: Callable[[], bool]) -> None:
        """`is_compiling`: whether a process of this very run is at work beside it, which is not another's."""
        self.say, self.num_threads, self.is_compiling = say, num_threads, is_compiling
        self._last: Reading | None = None
        self._num_taken = 0
        self._has_spoken = num_threads == 1

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:  # noqa: ARG002 - a listener's arguments
        """Take the first reading."""
        self._last = read()

    def stepped(self, *, step: int) -> None:  # noqa: ARG002 - a listener's arguments
        """Take a look where the last one is long enough ago."""
        if self._has_spoken or self._last is None or time.perf_counter() - self._last.clock < SECONDS_BETWEEN_LOOKS:
            return
        now, last = read(), self._last
        self._last = now
        if now is None or self.is_compiling():
            self._num_taken = 0
            return
        message = warning(last, now, num_cores=len(os.sched_getaffinity(0)), num_threads=self.num_threads)
        self._num_taken = self._num_taken + 1 if message else 0
        if message and self._num_taken == TAKEN_IN_A_ROW:
            self._has_spoken = True
            self.say(message)

    def validated(self, validation: Validation) -> None:
        """Nothing."""

    def said(self, message: str) -> None:
        """Nothing."""


def warning(last: Reading, now: Reading, *, num_cores: int, num_threads: int) -> str | None:
    """What to say if others took so many cores between two readings that there was none for each thread."""
    of_others = now.all_processes - last.all_processes - (now.this_process - last.this_process)
    taken = max(of_others / (now.clock - last.clock), 0.0)
    if taken + num_threads <= num_cores + SLACK:
        return None
    fewer = max(math.floor(num_cores - taken + SLACK), 1)
    return (
        f"note: other processes take {taken:.1f} of the {num_cores} cores, and {num_threads} threads wait for each other at "
        f"each step. runtime.num_threads = {fewer} is faster here: stop this run, and go on by the same command with that key"
    )


def read() -> Reading | None:
    """The reading of now; None where the system does not tell."""
    try:
        lines = PROC.read_text().splitlines()
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = sum(
            int(fields[1 + place]) for fields in map(str.split, lines) if fields[:1] and fields[0] in ours for place in BUSY
        )
        per_second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # another system, or a container that hides it
        return None
    return Reading(time.perf_counter(), ticks / per_second, time.process_time())
