"""`modelforge data convert`: structures of any format as extended XYZ or as a store, in eV and angstrom."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modelforge.configuration.writing import toml_value
from modelforge.data.audited import audit_opened, stop_if_found
from modelforge.data.sources.extxyz.writer import has_groups, write_extxyz
from modelforge.data.sources.file_source import LABEL_OF_OPTION
from modelforge.data.sources.read_report import ReadReport
from modelforge.data.sources.source import DataSource
from modelforge.data.store.opening import OpenedData, cache_folder, open_files
from modelforge.data.store.prepared_once import disk_error, make_folder, silent
from modelforge.data.store.store import write_structures
from modelforge.data.structures import LABELS
from modelforge.errors import UserError
from modelforge.inspection.label_names import FileKey, label_of, looks_like, unread

TEXT_SUFFIXES = (".xyz", ".extxyz")


def convert(source: DataSource, out: Path) -> Iterator[str]:
    """Write the structures of a source to `out`: extended XYZ if it is called so, else a store; gives lines about it.

    Units that cannot be right stop it, as they stop a run: afterwards they could not be told from right ones.
    """
    if out.exists():
        raise UserError(f"--out: must not exist yet (got {out}); remove it, or choose another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.absolute().parent}; make it, or choose another")
    cache = cache_folder(source.cache_folder)
    opened = open_files(source.training_files(), cache=cache, say=silent)
    structures, report = opened.structures, opened.report
    labels = {label: int(structures.has(label).sum()) for label in LABELS}
    others = _unread_labels(report)
    if not any(labels.values()) and others:
        raise UserError(f"no label was read, but there are keys that look like some: {'; '.join(others)}")
    findings = audit_opened(opened, np.arange(len(structures)), cache=cache).findings
    stop_if_found(findings, source.audit)
    _write(out, opened)
    coverage = ", ".join(f"{label} of {count}" for label, count in labels.items() if count)
    yield f"{len(structures)} structures written to {out}, with {coverage or 'no labels'}, in eV and angstrom"
    yield from (f"left out: {removal.count} of {removal.file}: {removal.reason}" for removal in report.removals)
    yield from (f"note: {finding.key}: {finding.message}" for finding in findings)
    yield from (f"not read, though it looks like a label: {words}" for words in others)
    keys = [label for label, count in labels.items() if count] + ["group"] * has_groups(structures)
    is_weighted = bool((structures.weight != 1.0).any())
    yield from ("read it with:", "[dataset]", *_toml_lines(out, keys, is_weighted=is_weighted))


def _write(out: Path, opened: OpenedData) -> None:
    if out.suffix.lower() not in TEXT_SUFFIXES:
        make_folder(out, lambda folder: write_structures(folder, opened.structures, opened.report), key="--out")
        return
    try:
        write_extxyz(out, opened.structures)
    except OSError as error:
        raise disk_error(out, error, "--out") from error


def _unread_labels(report: ReadReport) -> list[str]:
    """Keys that look like labels, with the setting that reads each."""
    used = {FileKey(origin.key, origin.per_atom) for origin in report.origins if origin.num_carriers}
    have = {origin.label for origin in report.origins if origin.num_carriers}
    found = {key: looks_like(key.name, per_atom=key.per_atom) for key in unread(report, used)}
    labels = {key: option for key, option in found.items() if option in LABEL_OF_OPTION and label_of(option) not in have}
    return [f"{key.name!r} (--set {option}={toml_value(key.name)})" for key, option in labels.items()]


def _toml_lines(out: Path, keys: list[str], *, is_weighted: bool) -> Iterator[str]:
    """The keys of `[dataset]` that read what was written."""
    is_text = out.suffix.lower() in TEXT_SUFFIXES
    yield f'name = "{"extxyz" if is_text else "store"}"'
    yield f"path = {toml_value(str(out))}"
    if is_text:
        yield from (f'{key}_key = "{key}"' for key in keys if key not in ("energy", "forces"))
        yield from ['weight_key = "config_weight"'] * is_weighted
