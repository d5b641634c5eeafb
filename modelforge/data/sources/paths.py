"""From the paths and globs of an experiment to the files that they name."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from modelforge.data.sources.read_report import did_you_mean
from modelforge.errors import UserError


def one_by_one(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """A path or several as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def expand_paths(patterns: Sequence[str], folder: Path, *, key: str = "") -> list[Path]:
    """The files that paths and globs name, each once: patterns in the given order, the files of a glob sorted.

    Relative patterns are relative to `folder`; `**` in a glob stands for any depth. A pattern without a file is a
    `UserError`, which begins with the key that holds the patterns.
    """
    return list(dict.fromkeys(path for pattern in patterns for path in files_of(pattern, folder, key=key)))


def files_of(pattern: str, folder: Path, *, key: str = "") -> list[Path]:
    """The files that one path or glob names, at least one; an error begins with the key, if there is one."""
    beginning = f"{key}: " if key else ""
    place = folder / Path(pattern).expanduser()
    if place.is_file():  # before globs: brackets are legal in file names
        return [place]
    if place.is_dir():
        raise UserError(
            f"{beginning}{pattern!r} must name a file (got a folder; '{pattern.rstrip(os.sep)}/*.xyz' names files in it)"
        )
    matches = glob.glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True)
    files = [path for path in (folder / match for match in sorted(matches)) if path.is_file()]
    if not files:
        raise UserError(beginning + absence(pattern, place.absolute()))
    return files


def absence(pattern: str, place: Path) -> str:
    """Say that a pattern matches no file, where that was looked for, and what is near."""
    looked_for = "" if pattern == str(place) else f": looked for {place}"
    message = f"{pattern!r} matches no file{looked_for}"
    if glob.has_magic(str(place.parent)):
        return message
    if not place.parent.is_dir():
        return f"{message}, {'but ' if looked_for else ''}there is no folder {place.parent}"
    return message + did_you_mean(place.name, sorted(path.name for path in place.parent.iterdir()))


def require_file(path: Path, what: str) -> None:
    """Refuse what is no file, or cannot be read; `what` it must be, such as "an HDF5 file"."""
    if path.is_dir():
        raise UserError(f"{path}: must be {what} (got a folder)")
    if not path.exists():
        raise UserError(f"{path}: there is no such file (looked for {path.absolute()})")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: must be readable (got a file without the permission to read it)")
