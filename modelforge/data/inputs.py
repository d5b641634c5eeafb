"""What a network sees of a structure besides its atoms, or its charges depend on: total charge and spin multiplicity.

Also what moments of charges are about: those of the model are about the centre of mass. S structures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from modelforge.data.batching.batches import of_molecules, positions_from_centre
from modelforge.data.labels import MOMENTS
from modelforge.data.structures import Floats, Integers, Structures
from modelforge.errors import UserError

FAR = 1e-3  # angstrom from the origin of coordinates
MISSING_CHARGE = 0.02  # e: more than rounded charges of a large molecule lack
TRACELESS = 1e-6  # of the largest component
MOST_VALUES = 6  # that a note names


@dataclass(frozen=True)
class Inputs:
    """Which inputs change the energy of a potential, by the keys of `[potential]`."""

    charge: bool = False
    """Whether the energy depends on the total charge."""
    charge_embedding: bool = False
    """Whether there are weights that only see the total charge."""
    spin_embedding: bool = False
    """Whether there are weights that only see the spin multiplicity."""
    partial_charges: bool = False
    """Whether partial charges are predicted, which add up to the total charge."""


class Input(NamedTuple):
    """A column of the structures that a network may see."""

    column: str
    option: str  # of [potential]
    words: str
    where_missing: float

    def values(self, structures: Structures, members: Integers) -> Floats:
        """The numbers that the network would see of the members (S,)."""
        values: Floats = getattr(structures, self.column)[members]
        return np.nan_to_num(values, nan=self.where_missing)


CHARGE = Input("total_charge", "charge_embedding", "total charge", 0.0)
SPIN = Input("spin_multiplicity", "spin_embedding", "spin multiplicity", 1.0)


def input_notes(structures: Structures, training: Integers, inputs: Inputs, weights: Mapping[str, float]) -> tuple[str, ...]:
    """What the user should know of inputs and moments; an input that the data do not have is an error."""
    return (
        *_notes_of(CHARGE, structures, training, inputs),
        *_notes_of(SPIN, structures, training, inputs),
        *(f"of the training set {note}" for note in unsaid_notes(structures, inputs, training)),
        *(note for moment in MOMENTS if moment in weights for note in _origin_notes(structures, training, moment)),
        *(_traceless_notes(structures, training) if "quadrupole" in weights else ()),
        *(_charge_sum_notes(structures, training) if "partial_charges" in weights else ()),
    )


def unsaid_notes(structures: Structures, inputs: Inputs, members: Integers | slice = slice(None)) -> Iterator[str]:
    """How many structures do not say what a potential needs to know; nothing where none says it and it is not embedded."""
    embedded = {CHARGE: inputs.charge_embedding, SPIN: inputs.spin_embedding}
    used = {CHARGE: inputs.charge or inputs.partial_charges, SPIN: inputs.spin_embedding}
    for kind in (CHARGE, SPIN):
        known = structures.has(kind.column)[members]
        if used[kind] and not known.all() and (embedded[kind] or known.any()):
            num = int((~known).sum())
            yield f"{num} of {len(known)} structures do not say their {kind.words}: {kind.where_missing:g} is taken"


def _notes_of(kind: Input, structures: Structures, training: Integers, inputs: Inputs) -> Iterator[str]:
    is_embedded = inputs.charge_embedding if kind is CHARGE else inputs.spin_embedding
    is_seen = inputs.charge if kind is CHARGE else inputs.spin_embedding
    if is_embedded and not structures.has(kind.column)[training].any():
        raise UserError(
            f"potential.{kind.option}: is true, but no training structure says its {kind.words}; name its key in "
            f"dataset.{kind.column}_key, or set this to false"
        )
    values = np.unique(kind.values(structures, training))
    named = ", ".join(f"{value:g}" for value in values[:MOST_VALUES]) + (", ..." if len(values) > MOST_VALUES else "")
    if len(values) > 1 and not is_seen:
        yield (
            f"the training set has several values of the {kind.words} ({named}), which the energy of this potential does not "
            f"depend on: it cannot tell structures apart that differ in nothing else; set potential.{kind.option} = true"
        )
    if is_embedded and len(values) == 1:
        yield (
            f"potential.{kind.option} is true, but all training structures have the {kind.words} {named}: "
            "nothing is learnt for any other"
        )


def _origin_notes(structures: Structures, training: Integers, moment: str) -> Iterator[str]:
    """Moments that depend on the origin: the dipole of what is charged, and any quadrupole beside a dipole.

    Files do not say what their moments are about. Where atoms are centred it does not matter.
    """
    known = np.isfinite(of_molecules(structures, moment)[training]).reshape(len(training), -1)
    has = np.asarray(known.all(axis=1))
    if moment == "dipole":
        has &= CHARGE.values(structures, training) != 0
    distance = max((_from_origin(piece) for piece in structures.taken(training[has])), default=0.0) if has.any() else 0.0
    if distance > FAR:
        kind = "charged structures" if moment == "dipole" else "structures"
        shift = "subtract total charge times centre of mass" if moment == "dipole" else "convert them"
        yield (
            f"{int(has.sum())} {kind} have a {moment} that depends on its origin, and their centres of mass are up to "
            f"{distance:.3g} angstrom from the origin of coordinates; {moment}s must be about the centre of mass: if those of "
            f"the data are not, {shift}"
        )


def _from_origin(structures: Structures) -> float:
    """The largest distance of a centre of mass from the origin of coordinates, angstrom."""
    centres = structures.positions - positions_from_centre(structures)  # (N, 3), the same for all atoms of a structure
    return float(np.linalg.norm(centres, axis=1).max())


def _charge_sum_notes(structures: Structures, training: Integers) -> Iterator[str]:
    """Whether the charges of the data add up: the predicted ones always do, so what is missing is an error that stays."""
    complete = training[structures.has("partial_charges")[training]]
    if not len(complete):
        return
    sums = np.concatenate([np.add.reduceat(piece.partial_charges, piece.offsets[:-1]) for piece in structures.taken(complete)])
    missing = np.abs(sums - CHARGE.values(structures, complete))
    if (num := int((missing > MISSING_CHARGE).sum())) > 0:
        worst = int(missing.argmax())
        yield (
            f"the partial charges of {num} of {len(complete)} structures do not add up to the total charge (off by up to "
            f"{missing[worst]:.3g} e: {structures.place(int(complete[worst]))}, where they add up to {sums[worst]:.3g}); "
            "those that are predicted always do"
        )


def _traceless_notes(structures: Structures, training: Integers) -> Iterator[str]:
    """Whether the labels seem to be of another definition."""
    quadrupoles = of_molecules(structures, "quadrupole")[training]
    known = quadrupoles[np.isfinite(quadrupoles).all(axis=(1, 2))]
    if len(known) and np.abs(np.trace(known, axis1=1, axis2=2)).max() <= TRACELESS * np.abs(known).max():
        yield (
            "the quadrupoles of the data have no trace: if they follow Buckingham's definition they are 3/2 of the second "
            "moments sum q r r^T that are predicted here; multiply them by 2/3"
        )
