"""ANI networks of TorchANI and NeuroChem, one member of an ensemble: weights `<symbol>.<layer>.weight` (out, in) and `.bias`.

Their symmetry functions have the elements in the order of `species`, ours by atomic number: the columns of first layers move.
Constants have the names of the package: eta_R is "EtaR", R_s "ShfR", theta_s "ShfZ". Energies are in hartree.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Annotated

import torch
from ase.data import atomic_numbers, chemical_symbols
from pydantic import Field, field_validator
from torch import Tensor

from modelforge.atoms.units import ENERGY_IN_EV
from modelforge.errors import UserError
from modelforge.importing.hyper import PLACE, PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.weights import PREFIX, Weights
from modelforge.potentials.ani import CELU_ALPHA, ANISection
from modelforge.section import Positive

Numbers = Annotated[tuple[float, ...], Field(min_length=1)]
ROUNDING = 1e-6  # of shifts, in angstrom or radians


class TorchANIHyper(PeerHyper):
    """Constants of the symmetry functions, as TorchANI names them."""

    energy_unit: str = "hartree"
    species: Annotated[tuple[str, ...], Field(min_length=1)]
    Rcr: Positive
    Rca: Positive
    EtaR: Positive
    ShfR: Numbers
    EtaA: Positive
    Zeta: Positive
    ShfA: Numbers
    ShfZ: Numbers
    celu_alpha: float = CELU_ALPHA
    self_energies_hartree: tuple[float, ...] = ()

    @field_validator("species")
    @classmethod
    def are_elements(cls, species: tuple[str, ...]) -> tuple[str, ...]:
        """Symbols, each once."""
        cls.names_elements(species)
        return species

    @field_validator("celu_alpha")
    @classmethod
    def is_ours(cls, alpha: float) -> float:
        """It is no option here."""
        if alpha != CELU_ALPHA:
            raise ValueError(f"must be {CELU_ALPHA:g} (got {alpha:g}); a network with another one cannot be imported")
        return alpha


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options, arrays = read_hyper(TorchANIHyper, hyper), Weights(weights)
    species = [atomic_numbers[symbol] for symbol in options.species]
    elements = options.elements_among(species)
    columns = torch.tensor(columns_of(species, elements, num_radial=len(options.ShfR), num_angular=_num_angular(options)))
    num_in = aev_length(len(species), num_radial=len(options.ShfR), num_angular=_num_angular(options))
    state: dict[str, Tensor] = {}
    widths: dict[str, tuple[int, ...]] = {}
    for symbol in options.species:
        network, widths[symbol] = _network(arrays, symbol, num_in)
        network[f"{symbol}.0.weight"] = network[f"{symbol}.0.weight"][:, columns]
        if atomic_numbers[symbol] in elements:
            state |= {f"networks.networks.{name}": tensor for name, tensor in network.items()}
    arrays.refuse_rest("an ANI network")
    section = _section(options, widths)
    return ImportedPotential(section, elements, state, _self_energies(options, elements), options.energy)


def aev_length(num_elements: int, *, num_radial: int, num_angular: int) -> int:
    """Radial functions for each element, angular ones for each unordered pair of elements."""
    return num_elements * num_radial + num_elements * (num_elements + 1) // 2 * num_angular


def columns_of(theirs: Sequence[int], ours: Sequence[int], *, num_radial: int, num_angular: int) -> list[int]:
    """The column of their symmetry functions that each of ours is, for elements in their order and in ours."""
    place_of_pair = {frozenset(pair): place for place, pair in enumerate(combinations_with_replacement(theirs, 2))}
    columns = [num_radial * theirs.index(element) + k for element in ours for k in range(num_radial)]
    first = num_radial * len(theirs)
    for pair in combinations_with_replacement(ours, 2):
        columns += [first + num_angular * place_of_pair[frozenset(pair)] + k for k in range(num_angular)]
    return columns


def _num_angular(options: TorchANIHyper) -> int:
    return len(options.ShfA) * len(options.ShfZ)


def _network(weights: Weights, symbol: str, num_in: int) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The layers of an element by the names of the file, and the widths of the hidden ones."""
    layers: dict[str, Tensor] = {}
    widths: list[int] = []
    while f"{symbol}.{len(widths)}.weight" in weights or not widths:
        name = f"{symbol}.{len(widths)}"
        num_out = weights.num_rows(f"{name}.weight")
        layers |= weights.take_layer(name, name, widths[-1] if widths else num_in, num_out)
        widths.append(num_out)
    if widths[-1] != 1 or len(widths) < 2:
        raise UserError(
            f"{PREFIX}{symbol}.{len(widths) - 1}.weight: the last layer must have one output, and hidden layers before it (has "
            f"{widths[-1]}); write all layers of the network"
        )
    return layers, tuple(widths[:-1])


def _section(options: TorchANIHyper, widths: dict[str, tuple[int, ...]]) -> ANISection:
    if len(depths := {len(some) for some in widths.values()}) > 1:
        raise UserError(f"{PREFIX}*: networks of all elements must have as many layers (have {sorted(depths)} hidden ones)")
    _check_shifts("ShfR", options.ShfR, begin=options.ShfR[0], end=options.Rcr)
    _check_shifts("ShfA", options.ShfA, begin=options.ShfR[0], end=options.Rca)
    _check_shifts("ShfZ", options.ShfZ, begin=math.pi / (2 * len(options.ShfZ)), end=math.pi * (1 + 0.5 / len(options.ShfZ)))
    return ANISection(
        name="ani",
        cutoff=options.Rcr * options.length,
        angular_cutoff=options.Rca * options.length,
        num_radial=len(options.ShfR),
        radial_eta=options.EtaR / options.length**2,
        first_shift=options.ShfR[0] * options.length,
        num_shells=len(options.ShfA),
        angular_eta=options.EtaA / options.length**2,
        num_angles=len(options.ShfZ),
        zeta=options.Zeta,
        widths=widths,
        other_widths=next(iter(widths.values())),
    )


def _check_shifts(name: str, shifts: Sequence[float], *, begin: float, end: float) -> None:
    expected = [begin + k * (end - begin) / len(shifts) for k in range(len(shifts))]
    if max(abs(a - b) for a, b in zip(shifts, expected, strict=True)) > ROUNDING:
        listed = ", ".join(f"{value:g}" for value in expected)
        raise UserError(
            f"{PLACE}.{name}: must be in equal steps, {listed} (got {', '.join(f'{value:g}' for value in shifts)}); a network "
            "with other shifts cannot be imported"
        )


def _self_energies(options: TorchANIHyper, elements: Sequence[int]) -> dict[int, float]:
    constants = options.constants(elements)
    if not options.self_energies_hartree:
        return constants
    if options.self_energies or len(options.self_energies_hartree) != len(options.species):
        raise UserError(
            f"{PLACE}.self_energies_hartree: must be one number for each of species, without self_energies beside it (got "
            f"{len(options.self_energies_hartree)} for {len(options.species)}); correct it"
        )
    given = dict(zip(options.species, options.self_energies_hartree, strict=True))
    # As the key says, in hartree, also where the network is in another unit.
    return {z: constants[z] + ENERGY_IN_EV["hartree"] * given[chemical_symbols[z]] for z in elements}
