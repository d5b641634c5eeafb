"""Weights, inputs and outputs of published implementations: the arrays of a file."""

from pathlib import Path

import numpy as np

from modelforge.data.structures import Structures


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def structures_of(golden: dict[str, np.ndarray]) -> Structures:
    """The structures of a file, without labels."""
    num_atoms = golden["n_atoms"]
    num, total = len(num_atoms), int(num_atoms.sum())
    zeros = np.zeros(num, dtype=int)
    return Structures(
        num_atoms=num_atoms,
        atomic_numbers=golden["atomic_numbers"],
        positions=golden["positions"].astype(float),
        cell=golden.get("cell", np.zeros((num, 3, 3))),
        periodic=golden.get("pbc", np.zeros((num, 3), dtype=bool)),
        energy=np.full(num, np.nan),
        forces=np.full((total, 3), np.nan),
        stress=np.full((num, 3, 3), np.nan),
        group=zeros,
        subset=zeros,
        file=zeros,
        index_in_file=np.arange(num),
    )
