"""`Deadline`: when the batch system will kill the job, and whether that is so near that a checkpoint has to be written."""

import time
from collections import deque

LEAST_SECONDS = 20.0  # before the end: file systems are slow when a whole machine stops at once
SAVES = 3.0  # times the longest save so far
GAPS = 2.0  # times the longest time between two of the last looks
LOOKS = 50  # that are remembered


class Deadline:
    """The end of a job, and what was seen of how long things take."""

    def __init__(self, end: float | None) -> None:
        """`end`: in seconds since 1970, None where there is none."""
        self.end = end
        self._longest_save = 0.0
        self._gaps: deque[float] = deque([0.0], maxlen=LOOKS)
        self._last_look = time.perf_counter()

    def begin(self) -> None:
        """What took long before the training says nothing about its steps."""
        self._last_look = time.perf_counter()

    def has_saved(self, seconds: float) -> None:
        """A checkpoint was written in this time."""
        self._longest_save = max(self._longest_save, seconds)

    def is_near(self) -> bool:
        """Whether to stop now so that a checkpoint is on disk before the end."""
        now = time.perf_counter()
        self._gaps.append(now - self._last_look)
        self._last_look = now
        return self.end is not None and time.time() + self.margin > self.end

    @property
    def margin(self) -> float:
        """Seconds before the end at which to stop."""
        return LEAST_SECONDS + SAVES * self._longest_save + GAPS * max(self._gaps)
