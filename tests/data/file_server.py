"""A server of made files on this machine, that can misbehave."""

import bz2
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import h5py
import numpy as np

PACKED = "/records/1/files/toy.hdf5.gz"


@dataclass
class Answers:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of the body, for the next answers
    first_status: list[int] = field(default_factory=list)  # for the next answers
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range
    num_sent: int = 0
    midway: Callable[[], object] | None = None  # called when half of a file has been sent
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Files with or without ranges; the entity tag is the checksum of the content."""

    answers: Answers

    def do_GET(self) -> None:
        answers, begin = self.answers, 0
        answers.asked.append((self.path, self.headers["Range"]))
        if answers.first_status:
            return self.send_error(answers.first_status.pop(0))
        if self.path in answers.moved:
            self.send_response(302)
            self.send_header("Location", answers.moved[self.path])
            return self.end_headers()
        if self.path not in answers.files:
            return self.send_error(404)
        content = answers.files[self.path]
        if self.headers["Range"] and answers.knows_ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{md5(content)}"')
        self.end_headers()
        body = body[: answers.break_after.pop(0)] if answers.break_after else body
        answers.num_sent += len(body)
        if answers.midway:
            self.wfile.write(body[: len(body) // 2])
            answers.midway()
            body = body[len(body) // 2 :]
        self.wfile.write(body)
        return None

    def log_message(self, *_: object) -> None:
        """Quiet."""


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def hdf5_file(path: Path, *, num_structures: int = 20) -> bytes:
    """A small file in the layout of the original modelforge, which does not compress well."""
    with h5py.File(path, "w") as file:
        group = file.create_group("methane")
        group["atomic_numbers"] = np.array([[6], [1], [1], [1], [1]])
        group["positions"] = np.random.default_rng(0).normal(size=(num_structures, 5, 3))
        group["positions"].attrs.update({"format": "per_atom", "u": "nanometer"})
    return path.read_bytes()


def npz_file(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def archive_of(members: dict[str, bytes], *, links: tuple[str, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return bz2.compress(stream.getvalue())
