"""The repulsion of nuclei behind their screening electrons, as Ziegler, Biersack and Littmark (ZBL) fitted it.

    V(r) = k Z_i Z_j / r * psi(x) * u(r / r_c),   x = (Z_i^0.23 + Z_j^0.23) r / a,   psi(x) = sum c_n exp(-d_n x)

Source: The Stopping and Range of Ions in Solids, vol. 1 (1985), with the constants of LAMMPS (pair_style zbl), which NequIP
uses too. The envelope u and the cutoff r_c = R_i + R_j, the sum of the covalent radii of Cordero et al. (2008), are those of
MACE: so there is repulsion between atoms that are closer than bonded ones, and hardly any elsewhere. P pairs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from ase.data import covalent_radii
from pydantic import Field
from torch import Tensor

from modelforge.atoms.units import BOHR, HARTREE
from modelforge.physics.pairs import Arrangements, FixedEnergy, pairs_within, refuse_elements, sum_over_pairs
from modelforge.section import Length, Section

COULOMB = HARTREE * BOHR  # eV angstrom, between two elementary charges
ENVELOPE_POWER = 6
LAST_RADIUS = 96  # atomic number; what the table says beyond is not measured


class NoRepulsion(Section):
    """No repulsion besides what the network learns."""

    name: Literal["none"] = "none"


class ZBL(Section):
    """The screened repulsion of nuclei at short distances (Ziegler, Biersack, Littmark), not trained."""

    name: Literal["zbl"] = "zbl"
    cutoff: Length | None = None
    """Distance at which the repulsion has gone to zero; by default for each pair the sum of its covalent radii."""


RepulsionSection = Annotated[NoRepulsion | ZBL, Field(discriminator="name")]


@dataclass(frozen=True)
class Screening:
    """How electrons screen two nuclei: psi as a sum of exponentials, and the length by which distances are measured."""

    factors: tuple[float, ...]
    decays: tuple[float, ...]
    exponent: float  # of the atomic numbers in the length
    length: float  # angstrom


UNIVERSAL = Screening((0.02817, 0.28022, 0.50986, 0.18175), (0.20162, 0.40290, 0.94229, 3.19980), 0.23, 0.46850)


def repulsion_of(section: ZBL, structures: Arrangements) -> FixedEnergy:
    """Energy, forces and stress of structures."""
    if section.cutoff is None:
        known = np.arange(len(covalent_radii)) <= LAST_RADIUS
        refuse_elements(
            structures, known, message="no covalent radius; set potential.repulsion.cutoff to a distance in angstrom"
        )
    radii = (
        torch.from_numpy(covalent_radii)
        if section.cutoff is None
        else torch.full((256,), section.cutoff / 2, dtype=torch.float64)
    )
    numbers = torch.from_numpy(structures.atomic_numbers.astype(np.int64))
    pairs = pairs_within(structures, cutoff=2 * float(radii[numbers].max()))
    first, second = numbers[pairs.first], numbers[pairs.second]
    distances = pairs.distances.clone().requires_grad_()
    energies = pair_energies(distances, first, second, cutoffs=radii[first] + radii[second])
    (slopes,) = torch.autograd.grad(energies.sum(), distances)
    return sum_over_pairs(structures, pairs, energies.detach(), slopes)


def pair_energies(
    distances: Tensor, first: Tensor, second: Tensor, *, cutoffs: Tensor, screening: Screening = UNIVERSAL
) -> Tensor:
    """Energies in eV (P,) of nuclei with these atomic numbers (P,) at distances in angstrom (P,), each with its cutoff."""
    charges = first.double(), second.double()
    scaled = (charges[0] ** screening.exponent + charges[1] ** screening.exponent) * distances / screening.length
    factors, decays = distances.new_tensor(screening.factors), distances.new_tensor(screening.decays)
    screened = torch.exp(-decays * scaled[:, None]) @ factors
    return COULOMB * charges[0] * charges[1] / distances * screened * envelope(distances / cutoffs)


def envelope(x: Tensor) -> Tensor:
    """The polynomial that falls from 1 at 0 to 0 at 1 with two derivatives, and stays there (DimeNet, equation 8)."""
    p = ENVELOPE_POWER
    inside = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return torch.where(x < 1, inside, 0.0)
