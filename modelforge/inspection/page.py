"""An inspection as one HTML page that needs nothing else: the content of the terminal, with plots as SVG."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from modelforge.errors import UserError
from modelforge.files import write_text
from modelforge.inspection.content import Block, Code, Lines, Part, Plot, Rows, printable
from modelforge.inspection.plots import require_matplotlib, svg_of

MARK = '<meta name="generator" content="modelforge data inspect">'
MARKED_WITHIN = 1000  # characters from the beginning
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 58rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc }
p { margin: .2rem 0; overflow-wrap: anywhere } p.inner { margin-left: 1.5rem; color: #555 }
table { border-collapse: collapse; margin: .5rem 0 }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } th { font-weight: 600; border-bottom: 1px solid #ccc }
td.number, th.number { text-align: right }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto } svg { max-width: 100%; height: auto }
"""


def refuse_unwritable(path: Path) -> None:
    """A page may replace an older one of its kind, and nothing else."""
    require_matplotlib()
    if not path.absolute().parent.is_dir():
        raise UserError(f"--html: there is no folder {path.absolute().parent}; make it, or choose another")
    if path.is_dir() or (path.exists() and not _is_own(path)):
        raise UserError(f"--html: {path} was not written by `modelforge data inspect`; remove it, or choose another name")


def write_page(path: Path, parts: tuple[Part, ...], *, title: str) -> None:
    """Write the page at once or not at all."""
    write_text(path, page(parts, title=title))


def page(parts: tuple[Part, ...], *, title: str) -> str:
    """The whole page."""
    head = f'<meta charset="utf-8">\n{MARK}\n<title>{_escaped(title)}</title>\n<style>{STYLE}</style>'
    body = "\n".join(line for place, part in enumerate(parts) for line in _part(part, f"plot{place}"))
    heading = f"<h1>{_escaped(title)}</h1>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{heading}\n{body}\n</body>\n</html>\n'


def _is_own(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(MARKED_WITHIN)
    except OSError as error:
        raise UserError(f"--html: {path} cannot be read ({error.strerror}); choose another name") from None


def _part(part: Part, prefix: str) -> Iterator[str]:
    yield f"<h2>{_escaped(part.title)}</h2>"
    for place, block in enumerate(part.blocks):
        yield from _block(block, f"{prefix}-{place}")


def _block(block: Block, prefix: str) -> Iterator[str]:
    if isinstance(block, Plot):
        yield f"<div>{svg_of(block.histogram, prefix=prefix)}</div>"
    elif isinstance(block, Rows):
        yield from _table(block)
    elif isinstance(block, Code):
        yield f"<pre>{chr(10).join(map(_escaped, block.lines))}</pre>"
    else:
        assert isinstance(block, Lines)
        for line in block.lines:
            inner = ' class="inner"' if line.startswith(" ") else ""
            yield f"<p{inner}>{_escaped(line.strip())}</p>"


def _table(block: Rows) -> Iterator[str]:
    classes = [' class="number"' if heading.startswith("#") else "" for heading in block.heading]
    yield "<table>"
    if any(block.heading):
        yield _row("th", [heading.removeprefix("# ") for heading in block.heading], classes)
    yield from (_row("td", row, classes) for row in block.rows)
    yield "</table>"


def _row(tag: str, cells: Sequence[str], classes: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}{kind}>{_escaped(cell)}</{tag}>' for cell, kind in zip(cells, classes, strict=True))}</tr>"


def _escaped(text: str) -> str:
    return escape(printable(text))
