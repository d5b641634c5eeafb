"""Digests of files by their bytes, remembered by size and time of change, so that a large file is read once."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from modelforge.files import write_text

BLOCK = 1 << 22
SETTLED = 2.0  # seconds: a file changed more recently may change again without a new time


def file_digest(path: Path, cache: Path) -> str:
    """The digest of a file, 32 hexadecimal digits; `cache` is the folder where digests are kept."""
    status = path.stat()
    name = str(path.resolve())
    now = [name, status.st_size, status.st_mtime_ns, status.st_ino]
    kept = cache / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["file"] == now:
            return str(known["digest"])
    digest = _digest(path)
    if time.time() - status.st_mtime > SETTLED:
        with suppress(OSError):  # without a place to remember it, it is computed again
            cache.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps({"file": now, "digest": digest}))
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
