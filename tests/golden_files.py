"""Weights, inputs and outputs of published implementations: the arrays of a file."""

from pathlib import Path

import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
