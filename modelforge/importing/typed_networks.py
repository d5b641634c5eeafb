"""What networks of nequip and of its extension allegro have in common: types of atoms, their scales and shifts.

Their `state_dict` has the prefix `model.func`. T types.
"""

import math
from typing import Annotated, Literal

import torch
from ase.data import atomic_numbers
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from modelforge.errors import UserError
from modelforge.importing.hyper import PeerHyper
from modelforge.importing.imported import ImportedPotential
from modelforge.importing.weights import PREFIX, Weights
from modelforge.potentials import PotentialSection
from modelforge.section import Count, Positive, SectionError

State = dict[str, Tensor]
OfTypes = float | dict[str, float] | tuple[float, ...] | None
"""A number for all types, or one for each: by name, or in their order."""

ROOT = "model.func"
SCALE_SHIFT = f"{ROOT}.per_type_energy_scale_shift"
RECIPROCAL_CUTOFF = f"{ROOT}.edge_norm._rmax_recip"
SAME = 1e-6  # relative; files may be in single precision


class TypedHyper(PeerHyper):
    """Options that both have."""

    r_max: Positive
    type_names: tuple[str, ...]
    avg_num_neighbors: Positive
    l_max: Annotated[int, Field(ge=0, le=6)]
    parity: bool = True
    num_layers: Count
    per_type_energy_scales: OfTypes = None
    per_type_energy_shifts: OfTypes = None
    per_edge_type_cutoff: None = None
    pair_potential: None = None
    # what changes nothing once the network is trained
    per_type_energy_scales_trainable: bool = False
    per_type_energy_shifts_trainable: bool = False
    seed: int | None = None
    model_dtype: str | None = None
    compile_mode: str | None = None
    do_derivatives: bool = True

    @field_validator("per_edge_type_cutoff", "pair_potential", mode="before")
    @classmethod
    def _is_not_there(cls, given: object) -> object:
        if given is not None:
            raise ValueError(f"networks with one cannot be imported (got {given})")
        return given

    @model_validator(mode="after")
    def _types_are_elements(self) -> "TypedHyper":
        unknown = [name for name in self.type_names if name not in atomic_numbers or name == "X"]
        if unknown or not self.type_names:
            raise SectionError(("type_names", f"must be symbols of elements (got {', '.join(unknown) or 'none'})"))
        return self

    @model_validator(mode="after")
    def _each_type_has_a_scale_and_a_shift(self) -> "TypedHyper":
        for key in ("per_type_energy_scales", "per_type_energy_shifts"):
            given = getattr(self, key)
            known = set(self.type_names) if isinstance(given, dict) else len(self.type_names)
            found = set(given) if isinstance(given, dict) else len(given) if isinstance(given, tuple) else known
            if found != known:
                raise SectionError((key, f"must have one number for each of type_names (got {given})"))
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of its types, in their order."""
        return tuple(atomic_numbers[name] for name in self.type_names)

    @property
    def chosen(self) -> tuple[int, ...]:
        """Atomic numbers of the elements that are taken over, ascending."""
        return self.elements_among(self.numbers)

    @property
    def rows(self) -> list[int]:
        """Their places among the types."""
        return [self.numbers.index(element) for element in self.chosen]


def imported_network(
    options: TypedHyper, arrays: Weights, section: PotentialSection, state: State, *, what: str
) -> ImportedPotential:
    """A network whose weights have been taken but for the scales and shifts of its types; `what` it is, for messages."""
    _refuse_other_cutoffs(options, arrays)
    scales = _of_types(options, arrays, "scales", options.per_type_energy_scales, default=1.0)
    shifts = _of_types(options, arrays, "shifts", options.per_type_energy_shifts, default=0.0)
    arrays.refuse_rest(what)
    constants = options.constants(options.chosen)
    return ImportedPotential(
        section,
        options.chosen,
        state | {"element_scales": scales[options.rows]},
        {z: constants[z] + options.energy * float(shifts[row]) for z, row in zip(options.chosen, options.rows, strict=True)},
        options.energy,
        options.unit_notes,
    )


def _refuse_other_cutoffs(options: TypedHyper, weights: Weights) -> None:
    """A `UserError` where the file's cutoff is not that of `hyper`, or there is one for each pair of types."""
    if RECIPROCAL_CUTOFF not in weights:
        return
    found = weights.take_any(RECIPROCAL_CUTOFF)
    if found.ndim:
        raise UserError(f"{PREFIX}{RECIPROCAL_CUTOFF}: networks with a cutoff for each pair of types cannot be imported")
    if not math.isclose(found.item() * options.r_max, 1.0, rel_tol=SAME):
        raise UserError(
            f"{PREFIX}{RECIPROCAL_CUTOFF}: must be 1/r_max by hyper, {1.0 / options.r_max:g} (is {found.item():g}); correct "
            "hyper, or write the weights of that very network"
        )


def _of_types(
    options: TypedHyper, weights: Weights, kind: Literal["scales", "shifts"], stated: OfTypes, *, default: float
) -> Tensor:
    """Scales or shifts of the types, (T,): from the weights, or else as `hyper` states them."""
    num_types, name = len(options.numbers), f"{SCALE_SHIFT}.{kind}"
    values = weights.take_any(name).ravel() if name in weights else ()
    if len(values):
        if len(values) not in (1, num_types):
            raise UserError(f"{PREFIX}{name}: must be one number or {num_types} by hyper (has {len(values)}); correct hyper")
        return torch.as_tensor(values, dtype=torch.float64).expand(num_types)
    if isinstance(stated, dict):
        stated = tuple(stated[symbol] for symbol in options.type_names)
    return torch.as_tensor(default if stated is None else stated, dtype=torch.float64).expand(num_types)
