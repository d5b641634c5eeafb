"""Stresses and cells as formats write them: Voigt's order, asymmetry of rounding, vectors that span no volume.

Legend: R rows, one a structure.
"""

import numpy as np
from numpy.typing import NDArray

from modelforge.data.structures import Floats, Integers

VOIGT = (0, 5, 4, 5, 1, 3, 4, 3, 2)  # where xx xy xz, ... stand in xx yy zz yz xz xy
LARGEST_ASYMMETRY = 1e-2  # of a stress, relative to its largest component: more is no rounding
NOISE = 1e-6  # in any unit: below that, a stress may be as asymmetric as it likes
SMALLEST_VOLUME = 1e-6  # of a cell with edges of length 1: with less, its vectors are taken as dependent


def as_matrix(components: Floats) -> Floats:
    """9 numbers, or 6 in the order xx yy zz yz xz xy, (..., 3, 3)."""
    nine = components[..., np.array(VOIGT)] if components.shape[-1] == 6 else components  # (..., 9)
    return nine.reshape(*nine.shape[:-1], 3, 3)


def symmetric_part(stress: Floats) -> tuple[Floats, Integers]:
    """Stresses without the asymmetry of rounding, (R, 3, 3), and the rows that have more than that."""
    mirrored = stress.swapaxes(1, 2)
    asymmetry, largest = np.abs(stress - mirrored).max(axis=(1, 2)), np.abs(stress).max(axis=(1, 2))
    mean: Floats = (stress + mirrored) / 2
    return mean, np.flatnonzero(asymmetry > LARGEST_ASYMMETRY * largest + NOISE)


def spanned_volume(cell: Floats, periodic: NDArray[np.bool_]) -> Floats:
    """Volume (area, length) that the directions of the periodic vectors span, (R,): 1 if orthogonal, 0 if dependent."""
    lengths = np.linalg.norm(cell, axis=2, keepdims=True)  # (R, 3, 1)
    used = periodic[:, :, None] & (lengths > 0)  # (R, 3, 1)
    directions = np.divide(cell, lengths, out=np.zeros_like(cell), where=used)  # (R, 3, 3)
    others = np.eye(3) * ~periodic[:, None, :]  # (R, 3, 3)
    gram = directions @ directions.swapaxes(1, 2) + others  # (R, 3, 3)
    volume: Floats = np.sqrt(np.maximum(np.linalg.det(gram), 0.0))
    return volume
