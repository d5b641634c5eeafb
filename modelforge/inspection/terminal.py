"""An inspection on the terminal: tables and bars that fit any width, with or without colour."""

from collections.abc import Iterator
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelforge.inspection.content import Block, Code, Lines, Part, Plot, Rows, printable
from modelforge.inspection.histogram import Histogram

EIGHTHS = " ▏▎▍▌▋▊▉█"
INDENT = (0, 0, 0, 2)


class Bars:
    """A histogram as horizontal bars of block characters; number signs where the terminal has ASCII only."""

    def __init__(self, histogram: Histogram) -> None:
        self.histogram = histogram

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The heading with the quantity, then one line a bin."""
        histogram = self.histogram
        labels, counts = bin_labels(histogram)
        left, right = max(map(len, labels)), max(len(f"{count:,}") for count in counts)
        room = max(5, min(options.max_width, 80) - left - right - 4)
        steps = ", equal ratios" if histogram.is_logarithmic else ""
        yield Text(f"{histogram.quantity} ({histogram.unit}{steps}), number of {histogram.counted}")
        for label, count in zip(labels, counts, strict=True):
            bar = bar_of(count / max(1, *counts) * room, ascii_only=options.ascii_only)
            yield Text(f"{label:>{left}} |{bar:<{room}} {count:>{right},}", no_wrap=True, overflow="crop")


def bin_labels(histogram: Histogram) -> tuple[list[str], list[int]]:
    """Labels and counts of the bins, with one for what is below and above them if something is."""
    numbers = _edge_labels(histogram.edges)
    labels = [f"{low} to {high}" for low, high in pairwise(numbers)]
    if histogram.edges[0] == histogram.edges[-1]:
        labels = [numbers[0]]
    counts = list(histogram.counts)
    if histogram.num_below:
        labels, counts = [f"below {numbers[0]}", *labels], [histogram.num_below, *counts]
    if histogram.num_above:
        labels, counts = [*labels, f"above {numbers[-1]}"], [*counts, histogram.num_above]
    return labels, counts


def bar_of(length: float, *, ascii_only: bool) -> str:
    """A bar of so many characters; what is not empty shows."""
    if ascii_only:
        return "#" * (max(1, round(length)) if length > 0 else 0)
    eighths = max(1, round(8 * length)) if length > 0 else 0
    return EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def renderables(parts: tuple[Part, ...]) -> Iterator[RenderableType]:
    """What a console prints; code comes as `Text` that must not be wrapped."""
    for place, part in enumerate(parts):
        yield Text(f"{'' if not place else chr(10)}{part.title}", style="bold")
        for block in part.blocks:
            yield _renderable(block)


def _renderable(block: Block) -> RenderableType:
    if isinstance(block, Plot):
        return Padding(Bars(block.histogram), INDENT, expand=False)
    if isinstance(block, Rows):
        return Padding(_table(block), INDENT, expand=False)
    if isinstance(block, Code):
        return Text("\n".join(map(printable, block.lines)), no_wrap=True)
    assert isinstance(block, Lines)
    return Padding(_paragraphs(block), INDENT, expand=False)


def _paragraphs(block: Lines) -> Table:
    """Lines that are indented further where they go on."""
    grid = Table.grid(padding=0)
    grid.add_column(overflow="fold")
    for line in block.lines:
        text = line.lstrip()
        grid.add_row(Padding(Text(printable(text), overflow="fold"), (0, 0, 0, len(line) - len(text))))
    return grid


def _table(block: Rows) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(block.heading))
    for heading in block.heading:
        table.add_column(heading.removeprefix("# "), justify="right" if heading.startswith("#") else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return table


def _edge_labels(edges: tuple[float, ...]) -> list[str]:
    """Edges with as few digits as tell them apart."""
    for digits in range(3, 12):
        labels = [f"{edge if abs(edge) > 1e-12 else 0.0:.{digits}g}" for edge in edges]
        if len(set(labels)) == len(set(edges)):
            return labels
    return [repr(edge) for edge in edges]
