"""An inspection as titled parts of texts, tables, plots and code, which the terminal and the page show in their own ways."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from modelforge.inspection.histogram import Histogram
from modelforge.inspection.inspection import Audited, Inspection, Oddity, Range

MOST_ROWS = 60
CELLS_IN_ROW = 5
MOST_ELEMENT_ROWS = 10
UNIT_FROM = {
    "file": "stated in the file",
    "set": "set by --set",
    "guess": "a guess, no file states it",
    "default": "no file states it",
}


@dataclass(frozen=True)
class Lines:
    """Sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """A table; columns whose heading begins with `#` hold numbers."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A distribution."""

    histogram: Histogram


@dataclass(frozen=True)
class Code:
    """Text to copy, line by line."""

    lines: tuple[str, ...]


Block = Lines | Rows | Plot | Code


@dataclass(frozen=True)
class Part:
    """Blocks under a title."""

    title: str
    blocks: tuple[Block, ...]


def content(found: Inspection) -> tuple[Part, ...]:
    """All parts of an inspection that have something to show."""
    parts = (
        Part("Files", tuple(_files(found))),
        Part("Elements", (_elements(found),)),
        Part("Labels", tuple(_labels(found))),
        Part("Keys that are not read", (_other_keys(found),) if found.other_keys else ()),
        Part("Units and consistency", tuple(_audits(found))),
        Part("Energies", tuple(_energies(found))),
        Part("Forces", tuple(_forces(found))),
        Part("Stresses", tuple(_stresses(found))),
        Part("Worth a look", tuple(_oddities(found.oddities))),
        Part("Subsets and groups", tuple(_subsets(found))),
        Part("What to put into the TOML", (Code(found.toml),)),
    )
    return tuple(part for part in parts if part.blocks)


def printable(text: str) -> str:
    """A text of a file without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _lines(*lines: str) -> Lines:
    return Lines(tuple(line for line in lines if line))


def _files(found: Inspection) -> Iterator[Block]:
    yield _lines(f"folder {found.folder}, format {found.format}")
    if len(found.files) > 1:
        yield _table(("file", "# structures"), ((file.name, str(file.num_structures)) for file in found.files))
    name = f"{found.files[0].name}: " if len(found.files) == 1 else ""
    periodic = found.periodicity
    volume = f", {_range(periodic.volume_per_atom)} angstrom^3 per atom" if periodic.volume_per_atom else ""
    yield _lines(
        f"{name}{found.num_structures:,} structures, {found.num_atoms:,} atoms, {_range(found.atoms)} in a structure",
        f"periodic in all directions: {periodic.num_fully:,}{volume}" if periodic.num_fully else "",
        f"periodic in some directions: {periodic.num_partly:,}" if periodic.num_partly else "",
        "" if periodic.num_fully or periodic.num_partly else "no structure is periodic",
        *(f"left out: {gone.num_structures} of {gone.name}: {gone.reason}" for gone in found.left_out),
    )


def _range(values: Range) -> str:
    if values.minimum == values.maximum:
        return f"{values.median:.4g}"
    return f"{values.minimum:.4g} to {values.maximum:.4g} (median {values.median:.4g})"


def _elements(found: Inspection) -> Rows:
    """Few elements as a table, many as cells side by side."""
    elements = found.elements
    if len(elements) <= MOST_ELEMENT_ROWS:
        rows = ((some.symbol, str(some.num_structures), str(some.num_atoms)) for some in elements)
        return Rows(("element", "# structures", "# atoms"), tuple(rows))
    return _cells("structures (atoms)", [f"{some.symbol} {some.num_structures} ({some.num_atoms})" for some in elements])


def _cells(heading: str, cells: Sequence[str]) -> Rows:
    """Short texts side by side."""
    filled = [*cells, *[""] * (-len(cells) % CELLS_IN_ROW)]
    lines = (tuple(filled[place : place + CELLS_IN_ROW]) for place in range(0, len(filled), CELLS_IN_ROW))
    return Rows((heading, *[""] * (CELLS_IN_ROW - 1)), tuple(lines))


def _labels(found: Inspection) -> Iterator[Block]:
    rows = (
        (
            label.label + {"gradient_key": " (minus gradient)", "virial_key": " (of virial)"}.get(label.option, ""),
            label.key,
            label.home,
            str(label.num_structures),
            str(label.num_incomplete) if label.num_incomplete else "-",
            f"{label.unit} ({UNIT_FROM[label.unit_from]})" if label.num_structures else "-",
        )
        for label in found.labels
    )
    yield _table(("label", "key", "among the", "# structures", "# NaN", "unit"), rows)
    stated = "" if "stated" in found.length_unit else ", which no file states"
    yield _lines(f"positions and cells were in {found.length_unit}{stated}" if found.length_unit else "", *found.how_read)


def _other_keys(found: Inspection) -> Block:
    rows = ((key.key, key.home, str(key.num_structures), key.toml) for key in found.other_keys)
    return _table(("key", "among the", "# structures", "looks like"), rows)


def _audits(found: Inspection) -> Iterator[Block]:
    if found.first_audit is not None:
        yield _lines("read as the format and the settings say:", *(f"  {line}" for line in _findings(found.first_audit)))
        yield _lines("read with what fits:")
    if found.audit.lines or found.audit.findings:
        yield _lines(*found.audit.lines, *_findings(found.audit))


def _findings(audit: Audited) -> Iterator[str]:
    for finding in audit.findings:
        word = "stops a run" if finding.severity == "stop" else "note"
        yield f"{word}: {finding.key}: {finding.message}"
    if not audit.findings:
        yield "the audit finds nothing wrong"


def _energies(found: Inspection) -> Iterator[Block]:
    energies = found.energies
    if energies is None:
        return
    yield _cells("fitted self-energies (eV)", [f"{symbol} {value:.6g}" for symbol, value in energies.self_energies.items()])
    isolated = energies.num_isolated_atoms
    yield _lines(
        f"note: {energies.undetermined}" if energies.undetermined else "",
        f"the fit leaves {1000 * energies.rmse_per_atom:.4g} meV/atom (RMSE) over {energies.num_structures:,} structures of "
        f"{energies.num_compositions:,} composition{'s' if energies.num_compositions > 1 else ''}",
        f"isolated atoms with an energy: {isolated}; see dataset.self_energies.source" if isolated else "",
    )
    yield Plot(energies.per_atom)


def _forces(found: Inspection) -> Iterator[Block]:
    if found.forces is None:
        return
    quantiles = ", ".join(f"{name} {value:.3g}" for name, value in found.forces.quantiles.items())
    yield _lines(f"quantiles (eV/angstrom): {quantiles}", "largest:", *(f"  {place}" for place in found.forces.largest))
    yield Plot(found.forces.norms)


def _stresses(found: Inspection) -> Iterator[Block]:
    if found.stresses is not None:
        yield Plot(found.stresses.mean)


def _oddities(oddities: Sequence[Oddity]) -> Iterator[Block]:
    yield from (_oddity(oddity) for oddity in oddities if oddity.num_structures)
    absent = [f"{oddity.name}{_remark(oddity)}" for oddity in oddities if not oddity.num_structures]
    if absent:
        yield _lines(f"not found: {'; '.join(absent)}")


def _remark(oddity: Oddity) -> str:
    return f" ({oddity.remark})" if oddity.remark else ""


def _oddity(oddity: Oddity) -> Block:
    more = oddity.num_structures - len(oddity.examples)
    shown = [f"  {example}" for example in oddity.examples] + ([f"  and {more:,} more"] if more else [])
    count = "" if oddity.name.startswith("closest") else f": {oddity.num_structures:,}"
    return _lines(f"{oddity.name}{count}{_remark(oddity)}", *shown)


def _subsets(found: Inspection) -> Iterator[Block]:
    if len(found.subsets) > 1 or found.subsets[0].name:
        rows = ((subset.name or "(without a name)", str(subset.num_structures)) for subset in found.subsets)
        yield _table(("subset", "# structures"), rows)
    if found.num_groups < found.num_structures:
        yield _lines(f'groups: {found.num_groups:,}; dataset.split.strategy = "group" keeps each in one set')


def _table(heading: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Rows:
    """A table of the first rows, and how many there are besides."""
    shown = list(rows)
    if len(shown) > MOST_ROWS:
        more = (f"and {len(shown) - MOST_ROWS} more", *[""] * (len(heading) - 1))
        shown = [*shown[:MOST_ROWS], more]
    return Rows(tuple(heading), tuple(shown))
