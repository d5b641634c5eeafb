"""What direct forces leave that the forces of an energy do not: a force on the whole structure, and a torque.

S structures, N atoms.
"""

import numpy as np

from modelforge.data.batching.batches import positions_from_centre
from modelforge.data.structures import Floats, Structures

MILLI = 1e3
NetForces = dict[str, float | None]


def net_forces(structures: Structures, forces: Floats) -> NetForces:
    """Root mean squares over structures of |sum F|, of that over the number of atoms, and of the torque |sum r x F|.

    `forces` (N, 3) in eV/angstrom. The torque is that about the centre of mass, of structures that are not periodic; None
    where all are.
    """
    starts = structures.offsets[:-1]
    net = np.linalg.norm(np.add.reduceat(forces, starts), axis=1)  # (S,)
    torque = np.linalg.norm(np.add.reduceat(np.cross(positions_from_centre(structures), forces), starts), axis=1)  # (S,)
    return {
        "net_force_rms_mev_per_angstrom": _rms(net),
        "net_force_per_atom_rms_mev_per_angstrom": _rms(net / structures.num_atoms),
        "net_torque_rms_mev": _rms(torque),
    }


def _rms(values: Floats) -> float | None:
    """Root mean square in thousandths of what is not NaN."""
    known = values[np.isfinite(values)]
    return MILLI * float(np.sqrt(np.mean(known**2))) if len(known) else None
