"""A process that has imported everything, and forks a child for each start of the command: a start costs no import.

Each start is a process of its own, with real signals and exit codes. Nothing but forking happens in the server, which has one
thread; run as a script this file is that server.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import cut_places

import modelforge.cli
import modelforge.train
from modelforge.training import keeper


@dataclass(frozen=True)
class Start:
    """What a child does: the arguments of the command, how often it saves, and where it cuts itself."""

    arguments: tuple[str, ...]
    output: str  # a file, appended to
    mark: str  # a file that tells that the child cut itself
    seconds_between_saves: float = 0.0
    seconds_between_saves_in_a_stretch: float = 0.0
    has_links: bool = True  # of files
    place: str = ""
    occurrence: int = 0
    signals: tuple[int, ...] = ()


class ForkServer:
    """The server's other end."""

    def __enter__(self) -> "ForkServer":
        command, pipes = [sys.executable, __file__], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def begin(self, start: Start) -> int:
        """Start a child; gives its process id, which stays its own until `exit_code` is asked for."""
        return self._ask(json.dumps(asdict(start)))

    def exit_code(self) -> int:
        """Wait for the child; negative if a signal ended it."""
        return self._ask("wait")

    def _ask(self, line: str) -> int:
        print(line, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def next_start() -> Start | None:
    """Serve: None at the end of the server; a start in a child."""
    pid = 0
    for line in sys.stdin:
        if line == "wait\n":
            _answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            _answer(os.getpid())  # not before: what signals leave in a process while it is forked is cleared
            return Start(**json.loads(line))
    return None


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def run(start: Start) -> None:
    """The command, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with open(os.devnull) as nothing, open(start.output, "a") as output:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    keeper.SECONDS_BETWEEN_SAVES = start.seconds_between_saves
    keeper.SECONDS_BETWEEN_SAVES_IN_A_STRETCH = start.seconds_between_saves_in_a_stretch
    if not start.has_links:
        os.link = _no_link
    knife = cut_places.Knife(start.place, start.occurrence, tuple(start.signals), Path(start.mark))
    knife.hold_over_everything()
    sys.argv = ["modelforge", *start.arguments]
    modelforge.cli.main()


def _no_link(source: Path, target: Path) -> None:
    raise OSError("no links on this file system")


if __name__ == "__main__":
    with contextlib.suppress(FileNotFoundError):  # only Linux tells
        assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
    gc.freeze()  # what is here stays, and is shared with the children
    if (asked_for := next_start()) is not None:
        run(asked_for)
