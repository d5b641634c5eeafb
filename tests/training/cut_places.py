"""The places of a run at which it is cut from inside: it sends itself the signals, which a process does at that moment.

A file of which half is written is made so at the moment when it is about to get its name: only kill -9 leaves that behind.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import modelforge.final_test
import modelforge.train
import modelforge.training.keeper
from modelforge.rehearsal.rehearsal import Rehearsal
from modelforge.training.metrics_file import MetricsFile, Row
from modelforge.training.task import TrainingTask

HALF, WHOLE = "half of {} is written", "{} is in its place"
FILES_AT_THE_END = ("hot.extxyz", "potential.safetensors", "results.json")
IN_THE_REHEARSAL = "in the rehearsal"
IN_THE_BEGINNING = (HALF.format("split.npz"), WHOLE.format("split.npz"), IN_THE_REHEARSAL, "in the first validation")
IN_THE_MIDDLE = (
    "before a batch of a validation",
    "after a batch of a validation",
    "before the errors of a validation are read",
    "after the errors of a validation are read",
    "before a row of metrics.csv",
    "half a row of metrics.csv is written",
    "after a row of metrics.csv",
    HALF.format("metrics.csv"),
    WHOLE.format("metrics.csv"),
    HALF.format("best.ckpt"),
    WHOLE.format("best.ckpt"),
    "previous.ckpt is linked",
    WHOLE.format("previous.ckpt"),
    HALF.format("last.ckpt"),
    WHOLE.format("last.ckpt"),
)
OF_THE_TRAINING = ("after the loss of a batch",)
AT_THE_END = (
    "before a set is tested",
    "after a set is tested",
    *(text.format(name) for name in FILES_AT_THE_END for text in (HALF, WHOLE)),
)
PLACES = (*IN_THE_BEGINNING, *OF_THE_TRAINING, *IN_THE_MIDDLE, *AT_THE_END)
FILES = ("split.npz", "metrics.csv", "best.ckpt", "last.ckpt", *FILES_AT_THE_END)
SIGNALS = ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGUSR1,), (signal.SIGUSR2,), (signal.SIGINT, signal.SIGINT))


@dataclass
class Knife:
    """Sends this process signals when it comes to a place for the n-th time, and leaves a mark that it did."""

    place: str
    occurrence: int
    signals: tuple[int, ...]
    mark: Path
    is_in_the_rehearsal: bool = False

    def at(self, place: str, prepare: Callable[[], None] = lambda: None) -> None:
        """The run is at a place; `prepare` makes the files look so. All places of a rehearsal are one."""
        if self.is_in_the_rehearsal:
            place, prepare = IN_THE_REHEARSAL, lambda: None
        if not place or place != self.place:
            return
        self.occurrence -= 1
        if self.occurrence == 0:
            self.mark.touch()
            prepare()
            for number in self.signals:
                os.kill(os.getpid(), number)

    def hold_over_everything(self) -> None:
        """Watch over all places in this process."""
        self._over_the_rehearsal()
        self._over_files()
        self._over_rows()
        self._over_the_training()
        self._over_validations()
        self._over_the_test()

    def _over_the_rehearsal(self) -> None:
        real = modelforge.train.rehearse

        def rehearse(run: Rehearsal) -> tuple[str, ...]:
            self.is_in_the_rehearsal = True
            lines = real(run)
            self.is_in_the_rehearsal = False
            return lines

        modelforge.train.rehearse = rehearse

    def _over_files(self) -> None:
        real = os.replace

        def replace(source: Path, target: Path) -> None:
            name = Path(target).name
            if name in FILES:
                self.at(HALF.format(name), lambda: os.truncate(source, os.path.getsize(source) // 2))
            elif name == "previous.ckpt":
                self.at("previous.ckpt is linked")
            real(source, target)
            self.at(WHOLE.format(name))

        os.replace = replace

    def _over_rows(self) -> None:
        real = MetricsFile.append

        def append(file: MetricsFile, row: Row) -> None:
            self.at("before a row of metrics.csv")
            real(file, row)
            self.at("half a row of metrics.csv is written", lambda: _halve_last_line(file.path))
            self.at("after a row of metrics.csv")

        MetricsFile.append = append

    def _over_the_training(self) -> None:
        TrainingTask.training_step = self._around(TrainingTask.training_step, "", "after the loss of a batch")

    def _over_validations(self) -> None:
        keeper, step = modelforge.training.keeper, TrainingTask.validation_step

        def validation_step(task: TrainingTask, *batch: object) -> None:
            if task.steps == 0:
                self.at("in the first validation")
            self.at("before a batch of a validation")
            step(task, *batch)
            self.at("after a batch of a validation")

        TrainingTask.validation_step = validation_step
        keeper.validation_of = self._around(
            keeper.validation_of, "before the errors of a validation are read", "after the errors of a validation are read"
        )

    def _over_the_test(self) -> None:
        test = modelforge.final_test
        test.evaluate = self._around(test.evaluate, "before a set is tested", "after a set is tested")

    def _around(self, real: Callable[..., object], before: str, after: str) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            self.at(before)
            result = real(*arguments, **options)
            self.at(after)
            return result

        return watched


def is_for_kill_only(place: str) -> bool:
    """Whether a process that goes on would never be at this place."""
    return place.startswith("half")


def _halve_last_line(path: Path) -> None:
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    os.truncate(path, (start + len(content)) // 2)
