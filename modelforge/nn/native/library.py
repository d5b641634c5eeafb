"""C sources of this package, compiled where they run, for the CPU that they run on, and kept for the next time.

They are small, have no headers of torch, and take a moment to compile. Where that fails, a warning says so, and torch does the
same, slower.
"""

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
HEADERS = Path(__file__).parent
REAL = {torch.float32: "float", torch.float64: "double"}
WIDTH = 64
"""Bytes of a vector, at most: those of the widest registers; narrower ones take a few at a time."""
SWITCH = "MODELFORGE_NATIVE"
"""Set to 0, this variable of the environment turns native code off."""


def native(source: Path, dtype: torch.dtype, **numbers: int) -> ctypes.CDLL | None:
    """A C file of this package for real numbers of this type and with these numbers defined; none without a compiler."""
    if dtype not in REAL or os.environ.get(SWITCH) == "0":
        return None
    return _library(source, tuple(f"-D{key}={value}" for key, value in {"REAL": REAL[dtype], **numbers}.items()))


def native_rows(source: Path, dtype: torch.dtype, num_channels: int) -> ctypes.CDLL | None:
    """A C file with `rows.h`, for rows of so many channels."""
    lanes = math.gcd(num_channels, WIDTH // dtype.itemsize)
    return native(source, dtype, LANES=lanes, VECTORS=num_channels // lanes)


@cache
def _library(source: Path, definitions: tuple[str, ...]) -> ctypes.CDLL | None:
    try:
        compiler = shlex.split(os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "")
        if not compiler:
            raise OSError("there is no C compiler (cc, gcc, clang or what CC says)")
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelforge" / "native"
        texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(HEADERS.glob("*.h")))]
        parts = (*texts, *compiler, *FLAGS, *definitions, _cpu())
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        library = folder / f"{source.stem}-{digest}.so"
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, definitions, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder; ValueError: CC that cannot be read
        warnings.warn(f"{source.name} is not used, torch does its work, slower: {error}", stacklevel=2)
        return None


def _compile(compiler: Sequence[str], source: Path, definitions: tuple[str, ...], library: Path) -> None:
    """With OpenMP, or else without; as one whole file or not at all. Raises `OSError` where neither works."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for options in (("-fopenmp",), ()):
            command = [
                *compiler,
                *FLAGS,
                *options,
                *definitions,
                f"-I{HEADERS}",
                "-shared",
                "-fPIC",
                str(source),
                "-o",
                str(made),
            ]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                made.replace(library)
                return
    raise OSError(f"{shlex.join(compiler)} cannot compile {source}")


def _cpu() -> str:
    """What native code depends on: machines that share a home folder differ in it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    known = dict.fromkeys(line for line in lines if line.startswith(("flags", "Features", "CPU part")))  # x86, ARM
    return " ".join((platform.machine(), platform.processor(), *known))
