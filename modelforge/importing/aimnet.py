"""AIMNet2 of the package aimnet, with one channel of charges and its long-range Coulomb energy, which sees all pairs.

Shifts of atoms become self-energies. Rows of elements that the network was not trained on are NaN in released files: these
elements are left out. A features, K radial functions, H vectors.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.hyper import NUM_SYMBOLS, PLACE, PeerHyper, read_hyper
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential
from modelforge.importing.weights import PREFIX, Weights
from modelforge.potentials.aimnet2 import AIMNet2Section
from modelforge.potentials.coulomb import CoulombSection, NoCoulomb, SwitchedCoulomb
from modelforge.section import Count, Positive, SectionError

State = dict[str, Tensor]

TABLE = "afv.weight"
SHIFTS = "outputs.atomic_shift.shifts.weight"
HEAD = "outputs.energy_mlp.mlp"
ROUNDING = 1e-6  # relative; of constants in single precision
Widths = Annotated[list[Count], Field(min_length=1)]


class AIMNet2Hyper(PeerHyper):
    """Options of an AIMNet2; those with one choice can only be imported with that."""

    nfeature: Count
    nshifts: Count
    ncomb_v: Count
    cutoff: Positive
    rmin: Positive = 0.8
    hidden: Annotated[tuple[Widths, ...], Field(min_length=2)]
    aim_size: Count
    output_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 128)
    d2features: Literal[True] = True
    num_charge_channels: Literal[1] = 1
    lrcoulomb: bool = True
    coulomb_rc: Positive = 4.6

    @field_validator("length_unit")
    @classmethod
    def is_angstrom(cls, text: str) -> str:
        """Its Gaussians and its Coulomb energy are of plain distances."""
        if text.lower() not in ("angstrom", "ang", "a"):
            raise ValueError(f"must be angstrom (got {text!r}): the network sees distances as they are; train in angstrom")
        return text

    @model_validator(mode="after")
    def _coulomb_is_in_ev(self) -> "AIMNet2Hyper":
        if self.lrcoulomb and self.energy != 1.0:
            raise SectionError(("energy_unit", f"must be eV with lrcoulomb, whose energy is in eV (got {self.energy_unit!r})"))
        return self


def imported(hyper: Hyper, weights: Arrays) -> ImportedPotential:
    """The network that `hyper` describes."""
    options = read_hyper(AIMNet2Hyper, hyper)
    known, arrays = _known_elements(weights)
    elements = options.elements_among(known)
    features = options.nfeature * options.nshifts
    rows, num_rows = list(elements), arrays.num_rows(TABLE)
    state = (
        {"embedding.weight": arrays.take(TABLE, num_rows, features)[rows]} | _mixing(options, arrays) | _radial(options, arrays)
    )
    for t, widths in enumerate(_widths(options)):
        state |= _network(arrays, f"mlps.{t}", f"networks.{t}", *widths)
    state |= _network(arrays, HEAD, "readout", options.aim_size, *options.output_hidden, 1)
    shifts = arrays.take(SHIFTS, num_rows, 1)[:, 0].tolist() if SHIFTS in arrays else [0.0] * num_rows
    coulomb = _coulomb(options, arrays)
    arrays.refuse_rest("an AIMNet2 with an energy and a Coulomb energy")
    section = AIMNet2Section(
        name="aimnet2",
        cutoff=options.cutoff,
        num_features=options.nfeature,
        num_radial=options.nshifts,
        first_radial=options.rmin,
        num_vectors=options.ncomb_v,
        hidden_widths=tuple(tuple(widths) for widths in options.hidden),
        num_outputs=options.aim_size,
        readout_widths=options.output_hidden,
        coulomb=coulomb,
    )
    constants = options.constants(elements)
    self_energies = {z: constants[z] + options.energy * shifts[z] for z in elements}
    notes = options.notes(elements) if len(known) == num_rows - 1 else options.unit_notes
    return ImportedPotential(section, elements, state, self_energies, options.energy, notes)


def _known_elements(weights: Arrays) -> tuple[list[int], Weights]:
    """Elements whose rows are numbers, and the weights with zeros in the rows of the others."""
    if TABLE not in weights or weights[TABLE].ndim != 2:
        return [], Weights(weights)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(weights[TABLE]).all(axis=1))
    known[:1] = False  # of no element
    known[NUM_SYMBOLS:] = False
    tables = {name: weights[name] for name in (TABLE, SHIFTS) if name in weights}
    filled = {
        name: np.where(known[:, None], table, 0.0) if table.shape[:1] == known.shape else table
        for name, table in tables.items()
    }
    return np.flatnonzero(known).tolist(), Weights({**weights, **filled})


def _widths(options: AIMNet2Hyper) -> list[list[int]]:
    """Widths of the layers of each pass, from its inputs to its outputs."""
    features = options.nfeature * options.nshifts
    seen = features + options.nfeature * (options.nshifts + options.ncomb_v)
    of_charges = 1 + options.nshifts + options.ncomb_v
    first, *others = options.hidden
    widths = [[seen, *first], *([seen + of_charges, *hidden] for hidden in others)]
    return [*([*all_but_last, 2 + features] for all_but_last in widths[:-1]), [*widths[-1], options.aim_size]]


def _network(weights: Weights, theirs: str, ours: str, *widths: int) -> State:
    """Dense layers with an activation between: numbered 0, 2, 4, ..., of which the last one is apart here."""
    state: State = {}
    num_layers = len(widths) - 1
    for n in range(num_layers):
        name = f"{ours}.hidden.{2 * n}" if n < num_layers - 1 else f"{ours}.output"
        state |= weights.take_layer(f"{theirs}.{2 * n}", name, widths[n], widths[n + 1])
    return state


def _mixing(options: AIMNet2Hyper, weights: Weights) -> State:
    """Mixtures of radial functions for each feature, and for the charges."""
    of_features = weights.take("conv_a.agh", options.nfeature, options.nshifts, options.ncomb_v)
    of_charges = weights.take("conv_q.agh", 1, options.nshifts, options.ncomb_v)
    return {"mixing": torch.cat([of_features, of_charges])}


def _radial(options: AIMNet2Hyper, weights: Weights) -> State:
    """The Gaussians of the file, which must be the same for sums over distances (s) and over directions (v)."""
    for name, shape in (("rc", ()), ("eta", ()), ("shifts", (options.nshifts,))):
        if not torch.equal(weights.take(f"aev.{name}_s", *shape), weights.take(f"aev.{name}_v", *shape)):
            raise UserError(
                f"{PREFIX}aev.{name}_v: must be equal to aev.{name}_s; a network with other radial functions for directions "
                "than for distances cannot be imported"
            )
    centres, steepness = weights.take("aev.shifts_s", options.nshifts), weights.take("aev.eta_s")
    _is_what_hyper_says("cutoff", options.cutoff, "aev.rc_s", float(weights.take("aev.rc_s")))
    _is_what_hyper_says("rmin", options.rmin, "aev.shifts_s", float(centres[0]))
    return {"centres": centres, "steepness": steepness.expand(options.nshifts).clone()}


def _coulomb(options: AIMNet2Hyper, weights: Weights) -> CoulombSection:
    if not options.lrcoulomb:
        return NoCoulomb()
    if (name := "outputs.lrcoulomb.rc") in weights:
        _is_what_hyper_says("coulomb_rc", options.coulomb_rc, name, float(weights.take(name)))
    return SwitchedCoulomb(length=options.coulomb_rc)


def _is_what_hyper_says(key: str, value: float, name: str, found: float) -> None:
    if abs(found - value) > ROUNDING * value:
        raise UserError(f"{PLACE}.{key}: must be {found:g}, as {PREFIX}{name} says (got {value:g}); correct it")
