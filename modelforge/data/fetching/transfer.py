"""One transfer over HTTP that goes on where it broke off, in this call or in a later one.

What arrives is appended to a part; a stamp beside it says of which file, so that no part of another file is continued.
"""

import os
import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import BaseModel

from modelforge.data.fetching.arrival import require_room
from modelforge.data.fetching.meter import Meter
from modelforge.errors import UserError
from modelforge.files import write_text

ATTEMPTS = 5  # in a row that bring no more bytes than there were
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
SILENCE = 60.0  # seconds without a byte, after which a connection counts as broken
CHUNK = 1 << 20  # bytes
PASSING = (408, 425, 429)  # HTTP errors, besides those of the server, that another attempt may not meet

Result = TypeVar("Result")


class Broken(Exception):
    """A transfer that another attempt may complete."""


class Changed(Broken):
    """What has arrived is of another file than the server has now."""


class Unreachable(UserError):
    """An address that does not give its file; another address may."""


class Stamp(BaseModel, frozen=True):
    """What the server said of a whole file when its first part arrived: a part of another file must not be continued."""

    url: str
    tag: str | None
    total: int | None


def transfer(url: str, target: Path, *, part: Path, meter: Meter) -> None:
    """Bring the whole of a file to `target`, by way of `part`, which stays if the transfer breaks off."""
    _persistently(url, lambda: _receive(url, part, meter), arrived=lambda: num_arrived(part))
    os.replace(part, target)
    _stamp_of(part).unlink()


def content_of(url: str) -> bytes:
    """All of a small file."""

    def read_all() -> bytes:
        with _open(url) as response:
            return b"".join(iter(lambda: _next(response), b""))

    return _persistently(url, read_all, arrived=lambda: 0)


def num_arrived(part: Path) -> int:
    """Bytes in a part, 0 if there is none."""
    return part.stat().st_size if part.is_file() else 0


def rebased(url: str, base_url: str | None) -> str:
    """The address with another scheme and host."""
    parts = urlsplit(url)
    return url if base_url is None else base_url.rstrip("/") + url[len(f"{parts.scheme}://{parts.netloc}") :]


def _persistently(url: str, attempt: Callable[[], Result], *, arrived: Callable[[], int]) -> Result:
    """What the attempt gives, made again after a pause while it breaks, until several in a row have brought nothing."""
    failures, furthest = 0, arrived()
    while True:
        try:
            return attempt()
        except Broken as reason:
            failures = 1 if arrived() > furthest else failures + 1
            furthest = max(furthest, arrived())
            if failures >= ATTEMPTS:
                raise Unreachable(
                    f"{url}: {reason} ({ATTEMPTS} attempts in a row brought nothing); try again later"
                ) from reason
        time.sleep(PAUSE * 2 ** (failures - 1))


def _receive(url: str, part: Path, meter: Meter) -> None:
    """Bring the whole of a file into `part`, from where it broke off if the server knows ranges and the file is the same."""
    stamp = _read_stamp(part, url)
    begin = num_arrived(part) if stamp and stamp.total else 0
    if stamp and begin and begin == stamp.total:
        return
    try:
        with _open(url, begin=begin) as response:
            said = _said(url, response, begin=begin)
            if response.status == 200:
                part.unlink(missing_ok=True)
                write_text(_stamp_of(part), said.model_dump_json())
            elif response.status != 206:
                raise Broken(f"HTTP {response.status} {response.reason} instead of the file")
            elif said != stamp:
                raise Changed("the file has changed since its first part arrived")
            _copy(response, part, total=said.total, meter=meter)
    except Changed:
        part.unlink()
        raise
    if said.total not in (None, num_arrived(part)):
        raise Broken(f"the connection ended after {num_arrived(part)} of {said.total} bytes")


def _open(url: str, *, begin: int = 0) -> HTTPResponse:
    """The answer of the server to the request for a file, from a byte on."""
    headers = {"User-Agent": "modelforge"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the range begins behind the end
            raise Changed("the file is shorter than what has arrived of it") from error
        if error.code in PASSING or error.code >= 500:
            raise Broken(f"HTTP {error.code} {error.reason}") from error
        raise Unreachable(f"{url}: HTTP {error.code} {error.reason}; the file may have been moved") from error
    except URLError as error:
        raise Broken(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise Broken(str(error)) from error
    return response


def _said(url: str, response: HTTPResponse, *, begin: int) -> Stamp:
    """What an answer says of the whole file; without a total where it is not the range that was asked for."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(rf"bytes {begin}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length = found and found[1]
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return Stamp(url=url, tag=tag, total=int(length) if length else None)


def _copy(response: HTTPResponse, part: Path, *, total: int | None, meter: Meter) -> None:
    """Append to `part` what arrives."""
    done = num_arrived(part)
    if total:
        require_room(part, total - done)
    with part.open("ab") as file:
        while chunk := _next(response):
            file.write(chunk)
            done += len(chunk)
            meter(done, total)


def _next(response: HTTPResponse) -> bytes:
    """The bytes that have arrived, none at the end; errors of the network are told from errors of the disk here."""
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise Broken(str(error) or type(error).__name__) from error


def _stamp_of(part: Path) -> Path:
    return part.with_name(f".{part.name}.json")


def _read_stamp(part: Path, url: str) -> Stamp | None:
    """What was said of the file when its part arrived; none if it arrived from another address."""
    path = _stamp_of(part)
    stamp = Stamp.model_validate_json(path.read_bytes()) if path.is_file() else None
    return stamp if stamp and stamp.url == url else None
