"""How far a transfer or an unpacking is: a bar on a terminal, lines elsewhere, nothing without a console."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal

Meter = Callable[[int, int | None], None]  # takes the bytes that are done, and of how many if that is known


@contextmanager
def shown(console: Console | None, label: str) -> Iterator[Meter]:
    """A meter whose readings are shown while the block runs."""
    if console is None:
        yield lambda _done, _total: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _lines(console, label)


def _lines(console: Console, label: str) -> Meter:
    """A line every few seconds."""
    last = time.monotonic()

    def say(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(
                f"{label}: {decimal(done)}" + (f" of {decimal(total)}" if total else ""), soft_wrap=True, highlight=False
            )

    return say
