"""metrics.csv: a row per validation, appended; a resumed run cuts off what came after its checkpoint.

Nothing is computed from it but the speed in the results: what is damaged or lost is told, and the run goes on.
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelforge.files import append_text, set_aside, write_text

Row = Mapping[str, float | int | None]


@dataclass(frozen=True)
class Lines:
    """What can be read of the file."""

    header: str
    rows: list[str]
    num_other_lines: int


class MetricsFile:
    """The file and its columns: what is measured in the first validation is written from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tell: Callable[[str], None] = _nobody

    def keep_until(self, step: int) -> None:
        """Cut off rows of later steps, and a last row that was not written to its end; tell what else is not as it was."""
        if not self.path.exists():
            if step >= 0:
                self.tell(f"note: {self.path} is gone; it begins again with the next validation")
            return
        lines = self._read()
        kept = [row for row in lines.rows if _step(row) <= step]
        damage = []
        if lines.num_other_lines:
            damage.append(f"{lines.num_other_lines} of its lines are no rows (all of it is now in {set_aside(self.path)})")
        if step not in (-1, *map(_step, kept)):
            damage.append(f"the row of step {step} is missing")
        if damage:
            self.tell(f"note: {self.path} was damaged: {' and '.join(damage)}; it goes on with {len(kept)} rows")
        if kept:
            write_text(self.path, lines.header + "".join(kept))
        else:
            self.path.unlink(missing_ok=True)

    def append(self, row: Row) -> None:
        """Add a row; the first one decides on the columns."""
        if self.path.exists() and not row.keys() >= set(self._columns()):
            self.tell(f"note: {self.path} has other columns than this run; it is now {set_aside(self.path)}")
        if not self.path.exists():
            write_text(self.path, _line([key for key in row if _is_measured(row, key)]))
        columns = self._columns()
        append_text(self.path, _line([_number(row[column]) for column in columns]))

    def column(self, name: str) -> list[float]:
        """The numbers of a column; none where the file, or the column, is gone."""
        if not self.path.exists() or name not in (columns := self._columns()):
            return []
        cells = [row.rstrip("\n").split(",")[columns.index(name)] for row in self._read().rows]
        return [float(cell) for cell in cells if cell]

    def _columns(self) -> list[str]:
        with self.path.open("rb") as file:
            return file.readline().decode("utf-8", errors="replace").rstrip("\n").split(",")

    def _read(self) -> Lines:
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        header, *lines = text.splitlines(keepends=True) or [""]
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # of a process that was killed
        rows = [line for line in lines if _is_row(line, header)]
        return Lines(header, rows, len(lines) - len(rows))


def _nobody(message: str) -> None:
    """Nobody is told."""


def _is_row(line: str, header: str) -> bool:
    """Whether a line has a step and a number, or nothing, in each other column."""
    step, *cells = line.rstrip("\n").split(",")
    if not (step.isdecimal() and header.startswith("step,") and len(cells) == header.count(",")):
        return False
    try:
        for cell in cells:
            float(cell or 0)
    except ValueError:
        return False
    return True


def _step(row: str) -> int:
    return int(row.partition(",")[0])


def _is_measured(row: Row, key: str) -> bool:
    """Whether later rows will have a number there: before the first step there are none of the training set and of speed."""
    alike = key.replace("train/", "val/") if key.startswith("train/") else key
    return row[alike] is not None or key == "structures_per_second"


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
