"""Which format files have that are named on the command line, and the section to read them with."""

from collections.abc import Sequence
from pathlib import Path

from modelforge.configuration.document import TomlDocument, TomlTable
from modelforge.configuration.loading import Loaded, validated
from modelforge.data.section import DatasetSection
from modelforge.data.sources.file_source import FileSource
from modelforge.data.sources.paths import expand_paths
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.store.store import is_store
from modelforge.errors import UserError
from modelforge.section import Section

FORMATS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".npz": "npz",
    ".db": "ase",
    ".aselmdb": "ase",
}


class DataOnly(Section):
    """The part of an experiment that says how data are read."""

    dataset: DatasetSection


def load_data(paths: Sequence[str], settings: Sequence[str] = ()) -> Loaded[DataOnly]:
    """The section that reads these files; `settings` are keys of `[dataset]`, such as `energy_unit="kcal/mol"`."""
    names = {setting.partition("=")[2].strip("\"' ") for setting in settings if _key(setting) == "name"}
    name = names.pop() if names else format_of(paths)
    values: TomlTable = {"dataset": {"name": name, "path": [str(Path(path).absolute()) for path in paths]}}
    for key in map(_key, settings):
        if key.partition(".")[0] in DataSource.model_fields.keys() - {"cache_folder", "audit"}:
            raise UserError(f"--set {key}: has no effect here, where all structures are read as they are; remove it")
    overrides = [setting if setting.startswith("dataset.") else f"dataset.{setting}" for setting in settings]
    return validated(DataOnly, TomlDocument(Path("the command line"), values, {}), overrides)


def files_like(source: DataSource, paths: Sequence[str], *, key: str) -> SourceFiles:
    """Other files with the keys and units of a source if they have its format, else with the usual ones of theirs.

    `key` begins the error where a path names no file.
    """
    own = source.files([]).reader
    detected = format_of(paths, default=own.name, key=key)
    if detected != own.name:
        return load_data(paths).section.dataset.training_files(key)[0]
    if isinstance(own, FileSource):
        return source.files(own.expand(paths, key=key))
    return source.files([Path(path) for path in paths])


def format_of(paths: Sequence[str], *, default: str = "", key: str = "FILE") -> str:
    """The format of files by their names, or by what a folder holds; one for all of them, `default` if names tell none."""
    files = [
        file for path in paths for file in ([Path(path)] if Path(path).is_dir() else expand_paths([path], Path(), key=key))
    ]
    found = {_format(file, default) for file in files}
    if len(found) > 1:
        raise UserError(f"{key}: must all have one format (got {', '.join(sorted(found))}); name those of one format only")
    return found.pop()


def _format(path: Path, default: str) -> str:
    if path.is_dir():
        return "store" if is_store(path) else "deepmd"
    if path.suffix.lower() in FORMATS:
        return FORMATS[path.suffix.lower()]
    if default:
        return default
    known = ", ".join(FORMATS)
    raise UserError(f"FILE: {path}: no known format; known are {known}; name it with --set name=extxyz")


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip().removeprefix("dataset.")
