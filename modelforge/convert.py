"""`modelforge data convert`: structures of any format as extended XYZ or as a store, with all labels, in eV and angstrom."""

from collections.abc import Iterator
from pathlib import Path

from modelforge.configuration.writing import toml_value
from modelforge.data.sources.extxyz.writer import has_groups, write_extxyz
from modelforge.data.sources.source import DataSource
from modelforge.data.store.opening import cache_folder, open_files
from modelforge.data.store.prepared_once import make_folder, silent
from modelforge.data.store.store import open_store, write_files
from modelforge.data.structures import LABELS
from modelforge.errors import UserError

TEXT_SUFFIXES = (".xyz", ".extxyz")


def convert(source: DataSource, out: Path) -> Iterator[str]:
    """Write the structures of a source to `out`: extended XYZ if it is called so, else a store; gives lines about it."""
    if out.exists():
        raise UserError(f"--out: must not exist yet (got {out}); remove it, or choose another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.absolute().parent}; make it, or choose another")
    files = source.training_files()
    if out.suffix.lower() in TEXT_SUFFIXES:
        opened = open_files(files, cache=cache_folder(source.cache_folder), say=silent)
        write_extxyz(out, opened.structures)
        structures, report = opened.structures, opened.report
    else:
        make_folder(out, lambda folder: write_files(folder, files), key="--out")
        structures, report = open_store(out).reading
    labels = {label: int(structures.has(label).sum()) for label in LABELS}
    coverage = ", ".join(f"{label} of {count}" for label, count in labels.items() if count)
    yield f"{len(structures)} structures written to {out}, with {coverage or 'no labels'}, in eV and angstrom"
    for removal in report.removals:
        yield f"left out: {removal.count} of {removal.file}: {removal.reason}"
    keys = [label for label, count in labels.items() if count]
    if has_groups(structures):
        keys.append("group")
    is_weighted = bool((structures.weight != 1.0).any())
    yield from ("read it with:", "[dataset]", *_toml_lines(out, keys, is_weighted=is_weighted))


def _toml_lines(out: Path, keys: list[str], *, is_weighted: bool) -> Iterator[str]:
    """The keys of `[dataset]` that read what was written."""
    is_text = out.suffix.lower() in TEXT_SUFFIXES
    yield f'name = "{"extxyz" if is_text else "store"}"'
    yield f"path = {toml_value(str(out))}"
    if is_text:
        yield from (f'{key}_key = "{key}"' for key in keys if key not in ("energy", "forces"))
        yield from ['weight_key = "config_weight"'] * is_weighted
