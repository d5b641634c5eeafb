"""A training says when other processes take the cores that it counts on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelforge.training import core_watch
from modelforge.training.core_watch import CoreWatch, Reading, warning


@pytest.mark.parametrize(
    ("of_others", "num_cores", "num_threads", "fewer"),
    [
        (0.0, 2, 2, None),
        (0.4, 2, 2, None),  # of the system itself
        (1.0, 2, 1, None),  # there is a core for each thread
        (1.0, 2, 2, 1),
        (2.0, 2, 2, 1),
        (6.0, 8, 8, 2),
        (6.0, 8, 2, None),
        (9.5, 64, 64, 55),
        (-0.2, 2, 2, None),  # clocks that tick at different times
    ],
)
def test_threads_that_have_a_core_each_are_told_from_others(
    of_others: float, num_cores: int, num_threads: int, fewer: int | None
) -> None:
    """Over 20 s, of which this process worked for 30 s of two threads."""
    last = Reading(clock=100.0, all_processes=5000.0, this_process=40.0)
    now = Reading(clock=120.0, all_processes=5030.0 + 20.0 * of_others, this_process=70.0)
    message = warning(last, now, num_cores=num_cores, num_threads=num_threads)
    if fewer is None:
        assert message is None
    else:
        assert message is not None
        assert message.startswith(
            f"note: other processes take {of_others:.1f} of the {num_cores} cores, and {num_threads} threads"
        )
        assert f"runtime.num_threads = {fewer} is faster" in message


class Looks:
    """Readings that come one after the other, 20 s apart; `busy` of others in each interval."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *busy: float) -> None:
        self.clock, self.said, self.compiling = 0.0, list[str](), False
        self._all, self._busy = 0.0, iter(busy)
        monkeypatch.setattr(core_watch, "read", self._read)
        monkeypatch.setattr(core_watch.time, "perf_counter", lambda: self.clock)
        monkeypatch.setattr(core_watch.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        self.watch = CoreWatch(self.said.append, num_threads=2, is_compiling=lambda: self.compiling)
        self.watch.started(step=0, total_steps=100, seconds=0.0)

    def _read(self) -> Reading:
        if self.clock:
            self._all += 20.0 * next(self._busy)
        return Reading(self.clock, self._all, 0.0)

    def look(self, num: int) -> int:
        """How much has been said after so many more looks."""
        for _ in range(num):
            self.clock += 20.0
            self.watch.stepped(step=1)
        return len(self.said)


def test_it_is_said_once_and_not_of_a_short_job(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert looks.look(4) == 0
    assert looks.look(1) == 1
    assert looks.look(3) == 1


def test_what_compiles_the_step_is_not_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, 1.0, 1.0, 1.0, 1.0, 1.0)
    looks.compiling = True
    assert looks.look(3) == 0
    looks.compiling = False
    assert looks.look(1) == 0
    assert looks.look(1) == 1


def test_nothing_is_said_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_watch, "PROC", tmp_path / "stat")
    monkeypatch.setattr(core_watch, "SECONDS_BETWEEN_LOOKS", 0.0)
    said = list[str]()
    watch = CoreWatch(said.append, num_threads=2, is_compiling=lambda: False)
    for text in (None, "", "cpu0 nonsense", "cpu0 1"):
        if text is not None:
            core_watch.PROC.write_text(text)
        watch.started(step=0, total_steps=1, seconds=0.0)
        watch.stepped(step=1)
    assert not said


@pytest.fixture
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        stack.callback(process.kill)
        yield process


@pytest.mark.skipif(not core_watch.PROC.exists(), reason="this system does not tell who takes the cores")
@pytest.mark.usefixtures("busy_process")
def test_another_process_shows_in_the_readings() -> None:
    """A share of a core at least, however busy the machine is; its own work is told apart."""
    last = core_watch.read()
    assert last is not None
    while (now := core_watch.read()) is None or now.clock - last.clock < 2.0:
        pass  # this process works too
    assert now.this_process - last.this_process > 0.2
    assert now.all_processes - last.all_processes > now.this_process - last.this_process + 0.2
