"""What a run shows: a live bar on a terminal, plain lines elsewhere, and all of it as plain lines in log.txt."""

import io
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from modelforge.training.listener import Validation
from modelforge.training.metrics import Errors

REFRESH = 8  # per second
LOG_WIDTH = 128  # of tables in log.txt
WINDOW = 15  # seconds over which the pace is measured


class RunLog:
    """Prints lines to the console and appends them to log.txt, there without colours."""

    def __init__(self, console: Console, path: Path | None) -> None:
        self.console, self._path = console, path

    def line(self, text: str = "", *, style: str | None = None, shown: bool = True) -> None:
        """One line; `shown` False only logs it."""
        if shown:
            self._show(text, style)
        self._log(text + "\n")

    def table(self, table: Table) -> None:
        """A table, in the log as plain text."""
        self._show(table)
        text = io.StringIO()
        Console(file=text, width=LOG_WIDTH, color_system=None).print(table)
        self._log(text.getvalue())

    def _show(self, what: str | Table, style: str | None = None) -> None:
        """Print; where nobody reads any more, or a file of output is full, the log goes on alone."""
        try:
            self.console.print(what, style=style, markup=False, highlight=False, soft_wrap=isinstance(what, str))
        except OSError:
            self.console = Console(quiet=True)

    def _log(self, text: str) -> None:
        """Append to the file; a full disk takes the log, not the run, which will tell if it can save nothing either."""
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            ended, self._path = self._path, None
            self._show(f"note: {ended} ends here: {error.strerror}")


class PlainLines:
    """A listener that writes one plain line per interval."""

    def __init__(self, log: RunLog, *, interval: float, steps_per_epoch: int, shown: bool) -> None:
        self.log, self.interval, self.steps_per_epoch, self.shown = log, interval, steps_per_epoch, shown
        self.pace: Pace | None = None
        self._last_line = 0.0
        self._last: Validation | None = None

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        """Start the clock."""
        self.pace = Pace(step=step, total_steps=total_steps)
        self._last_line = time.perf_counter()
        if step:
            self.log.line(f"resumed at step {step} after {duration(seconds)} of training", shown=self.shown)

    def stepped(self, *, step: int) -> None:
        """A line where the last one is long enough ago."""
        assert self.pace is not None
        first = self.pace.step_done(step)
        if first is not None:
            self.log.line(f"first step done {first:.1f} s after the start of training", shown=False)
        if time.perf_counter() - self._last_line > self.interval and step < self.pace.total_steps:
            self._write(step)

    def validated(self, validation: Validation) -> None:
        """A line for the first validation and for the last, with what each term gives to the loss."""
        assert self.pace is not None
        is_first, self._last = self._last is None, validation
        if is_first or validation.step >= self.pace.total_steps:
            self.log.line(ledger_in_words(validation), shown=self.shown)
        if is_first or validation.step >= self.pace.total_steps:
            self._write(validation.step)

    def said(self, message: str) -> None:
        """A message."""
        self.log.line(message, shown=self.shown)

    def _write(self, step: int) -> None:
        assert self.pace is not None
        self._last_line = time.perf_counter()
        epochs = f"epoch {step / self.steps_per_epoch:.1f}/{self.pace.total_steps / self.steps_per_epoch:.4g}"
        known = summary(self._last) if self._last else "no validation yet"
        self.log.line(f"{epochs}  {known}  {self.pace.left()}", shown=self.shown)


class ClosedFormLine:
    """A listener where weights are solved for: no steps, no learning rate and no loss, only the errors of the solution."""

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        """Nothing, as no step comes."""

    def stepped(self, *, step: int) -> None:
        """Never."""

    def validated(self, validation: Validation) -> None:
        """The errors."""
        self.log.line(errors_in_words("validation", validation.validation))

    def said(self, message: str) -> None:
        """A message."""
        self.log.line(message)


class LiveBar:
    """A listener that shows a live bar with the current errors, learning rate, plateau, speed and time left."""

    def __init__(self, log: RunLog, *, steps_per_epoch: int) -> None:
        self.log, self.steps_per_epoch = log, steps_per_epoch
        self.pace: Pace | None = None
        self._step = 0
        self._validation: Validation | None = None
        self._live = Live(console=log.console, refresh_per_second=REFRESH, transient=True, get_renderable=self.render)

    def started(self, *, step: int, total_steps: int, seconds: float) -> None:
        """Show the bar."""
        self.pace, self._step = Pace(step=step, total_steps=total_steps), step
        if step:
            self.log.console.print(f"resumed at step {step} after {duration(seconds)} of training", highlight=False)
        self._live.start()

    def stepped(self, *, step: int) -> None:
        """Move on."""
        assert self.pace is not None
        self._step = step
        self.pace.step_done(step)

    def validated(self, validation: Validation) -> None:
        """Show other errors."""
        self._validation = validation

    def said(self, message: str) -> None:
        """A line above the bar."""
        self.log.console.print(message, markup=False, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        self._live.stop()

    def render(self) -> Table:
        """The bar and, once there is a validation, two lines of numbers beneath it."""
        table = Table.grid(padding=(0, 1))
        if self.pace is None:
            return table
        total = self.pace.total_steps
        epoch = f"epoch {self._step / self.steps_per_epoch:.1f}/{total / self.steps_per_epoch:.4g}"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            epoch,
            ProgressBar(total=total, completed=self._step, width=40),
            f"{100 * self._step / total:.0f}%",
            self.pace.left(),
        )
        table.add_row(bar)
        if self._validation is not None:
            table.add_row(errors_in_words("train     ", self._validation.training))
            table.add_row(errors_in_words("validation", self._validation.validation))
            table.add_row(rest_in_words(self._validation))
        return table


class Pace:
    """How fast steps go by, from the last few seconds of them."""

    def __init__(self, *, step: int, total_steps: int) -> None:
        self.total_steps = total_steps
        self._begun = time.perf_counter()
        self._marks = [(self._begun, step)]
        self._first, self._latest = True, step

    def step_done(self, step: int) -> float | None:
        """Note a step; for the first one, the seconds that it took."""
        now, self._latest = time.perf_counter(), step
        if self._first:  # it may have waited for the compiler, and says nothing of those to come
            self._first, self._marks = False, [(now, step)]
            return now - self._begun
        if now - self._marks[-1][0] > 1.0:
            self._marks = [*self._marks[-WINDOW:], (now, step)]
        return None

    def left(self) -> str:
        """How long the last step is away at the present pace, in words."""
        (then, step), (now, latest) = self._marks[0], (time.perf_counter(), self._latest)
        if latest == self.total_steps:
            return "0 s left"
        if latest == step:
            return "time left not known yet"
        return f"{duration((self.total_steps - latest) * (now - then) / (latest - step))} left"


def summary(validation: Validation) -> str:
    """A validation in one line."""
    return "  ".join(
        filter(
            None,
            (
                errors_in_words("train", validation.training) if validation.training_loss is not None else "",
                errors_in_words("val", validation.validation),
                rest_in_words(validation),
            ),
        )
    )


def ledger_in_words(validation: Validation) -> str:
    """What each term gives to the loss of a validation."""
    return f"loss terms at step {validation.step} (validation): " + "; ".join(entry.in_words() for entry in validation.ledger)


def errors_in_words(name: str, errors: Errors) -> str:
    """Errors of a set with their units; what was not measured is left out."""
    shown = (
        ("F", errors["forces_rmse_mev_per_angstrom"], "meV/A"),
        ("E", errors["energy_rmse_mev_per_atom"], "meV/atom"),
        ("S", errors["stress_rmse_mev_per_angstrom3"], "meV/A^3"),
        ("D", errors["dipole_rmse_me_angstrom"], "me A"),
        ("Q", errors["quadrupole_rmse_me_angstrom2"], "me A^2"),
        ("q", errors["partial_charges_rmse_me"], "me"),
    )
    return f"{name} RMSE " + " ".join(f"{label} {value:.4g} {unit}" for label, value, unit in shown if value is not None)


def rest_in_words(validation: Validation) -> str:
    """Learning rate, plateau and speed."""
    parts = (
        f"lr {validation.learning_rate:.1e}",
        validation.waiting_for,
        f"{validation.structures_per_second:.0f} structures/s" if validation.structures_per_second else "",
    )
    return "  ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
