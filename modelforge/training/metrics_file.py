"""metrics.csv: a row per validation, appended; a resumed run cuts off what came after its checkpoint."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from modelforge.files import write_text

Row = Mapping[str, float | int | None]


class MetricsFile:
    """The file and its columns: what is measured at the first validation is written from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Cut off rows of later steps, and a last row that was not written to its end."""
        if not self.path.exists():
            return
        header, *lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n") and line.count(",") == header.count(",")]
        kept = [line for line in whole if int(line.partition(",")[0]) <= step]
        write_text(self.path, header + "".join(kept)) if kept else self.path.unlink()

    def append(self, row: Row) -> None:
        """Add a row; the first one decides on the columns."""
        if not self.path.exists():
            write_text(self.path, _line([key for key, value in row.items() if value is not None]))
        with self.path.open("r+", encoding="utf-8", newline="") as file:
            columns = next(csv.reader([file.readline()]))
            file.seek(0, io.SEEK_END)
            file.write(_line([_number(row[column]) for column in columns]))

    def column(self, name: str) -> list[float]:
        """The numbers of a column."""
        with self.path.open(encoding="utf-8", newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
