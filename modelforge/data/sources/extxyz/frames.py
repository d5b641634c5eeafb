"""Cut the text of an extended-XYZ file into frames: a line with the atom count, a header, a line per atom.

Legend: F frames that were read together. Files are read in pieces of whole frames, so that memory stays bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelforge.data.sources.extxyz.header import Header, HeaderSplitter
from modelforge.data.sources.paths import require_file
from modelforge.errors import UserError

TEXT_SIZE = 2**25  # bytes of text at a time; as lines and arrays they take about three times as much memory
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True, eq=False)
class Frames:
    """Consecutive frames of one file, as text."""

    path: Path
    lines: list[bytes]
    first_line: int  # number of lines[0] in the file, from 1
    first_index: int  # number of the first frame in the file, from 0
    starts: list[int]  # (F,) index into `lines` of the atom count
    num_atoms: list[int]  # (F,)
    headers: list[Header]  # (F,)

    def __len__(self) -> int:
        return len(self.starts)

    def atom_lines(self, frame: int) -> list[bytes]:
        """The lines of a frame's atoms."""
        first = self.starts[frame] + 2
        return self.lines[first : first + self.num_atoms[frame]]

    def place(self, frame: int, atom: int | None = None) -> str:
        """`file:line` of a frame's header or of one of its atoms, as messages name it."""
        offset = 1 if atom is None else 2 + atom
        return f"{self.path}:{self.first_line + self.starts[frame] + offset}"


def read_frames(path: Path, *, text_size: int = TEXT_SIZE) -> Iterator[Frames]:
    """Read a file piece by piece; each piece holds whole frames in about `text_size` bytes, or at least one frame."""
    check_is_text(path)
    first_line, first_index = 1, 0
    rest: list[bytes] = []
    with path.open("rb") as file:
        while lines := file.readlines(text_size):
            lines = rest + lines
            frames, end = cut(lines, path=path, first_line=first_line, first_index=first_index)
            if len(frames):
                yield frames
            rest = lines[end:]
            first_line, first_index = first_line + end, first_index + len(frames)
    if rest:
        raise truncated(rest, place=f"{path}:{first_line}", index=first_index)
    if not first_index:
        raise UserError(f"{path}: must hold at least one structure (got an empty file)")


def check_is_text(path: Path) -> None:
    """Refuse what cannot be read as lines of text."""
    require_file(path, "an extended-XYZ file")
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"{path}: must be an extended-XYZ text file (got {name} data; unpack it first)")
    if b"\0" in start:
        raise UserError(f"{path}: must be an extended-XYZ text file (got binary data)")


def cut(lines: list[bytes], *, path: Path, first_line: int, first_index: int) -> tuple[Frames, int]:
    """The whole frames at the beginning of `lines`, and the number of lines that they take with blank ones."""
    starts: list[int] = []
    num_atoms: list[int] = []
    headers: list[Header] = []
    splitter = HeaderSplitter()
    end, total = 0, len(lines)
    while end < total:
        if lines[end].isspace():  # tolerated between frames and at the end of the file
            end += 1
            continue
        try:
            count = int(lines[end])
        except ValueError:
            count = 0
        if count < 1:
            raise not_a_count(lines[end], place=f"{path}:{first_line + end}", index=first_index + len(starts))
        if end + 2 + count > total:
            break
        starts.append(end)
        num_atoms.append(count)
        headers.append(splitter.split(lines[end + 1].decode(errors="replace").rstrip("\r\n")))
        end += 2 + count
    return Frames(path, lines, first_line, first_index, starts, num_atoms, headers), end


def not_a_count(line: bytes, *, place: str, index: int) -> UserError:
    """The error for a line that is not an atom count."""
    message = f"{place}: must be the number of atoms, 1 or more, of structure {index} (got {shown(line)})"
    if index:
        message += f"; does structure {index - 1} have as many atom lines as it announces?"
    return UserError(message)


def truncated(rest: list[bytes], *, place: str, index: int) -> UserError:
    """The error for a last frame that is not complete."""
    end = f"after {len(rest) - 2} of them" if len(rest) > 2 else "before the first of them"
    return UserError(f"{place}: structure {index} announces {int(rest[0])} atoms, but the file ends {end} (truncated?)")


def shown(text: bytes) -> str:
    """Text of the file as messages show it: one line, not too long."""
    line = text.decode(errors="replace").strip()
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
