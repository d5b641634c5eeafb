"""Hyper-parameters of other packages as sections: what is not known is refused, with the words of an experiment's TOML."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from ase.data import atomic_numbers, chemical_symbols
from pydantic import Field, ValidationError, field_validator

from modelforge.atoms.unit_names import factor_of
from modelforge.configuration.explanations import explain
from modelforge.configuration.mistakes import Mistake, kind_at, mistakes
from modelforge.configuration.schema import Kind, sections_in
from modelforge.configuration.writing import dotted
from modelforge.data.sources.read_report import did_you_mean
from modelforge.errors import UserError
from modelforge.importing.imported import Hyper
from modelforge.section import Section

PLACE = "hyper"
NUM_SYMBOLS = len(chemical_symbols)  # atomic numbers below it have a symbol

AnyHyper = TypeVar("AnyHyper", bound="PeerHyper")
AnyNames = TypeVar("AnyNames", tuple[str, ...] | None, dict[str, float])


class PeerHyper(Section):
    """What can be said of a network of any package."""

    energy_unit: str = "eV"
    """Unit of its energies."""
    length_unit: str = "angstrom"
    """Unit of its positions and of the cutoff."""
    elements: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Symbols of the elements that it was trained on."""
    mean_per_atom: float = 0.0
    """Energy of each atom beside that of the network, in `energy_unit`."""
    self_energies: dict[str, float] = {}
    """The same for each element, by symbol."""

    @field_validator("energy_unit")
    @classmethod
    def is_unit_of_energy(cls, text: str) -> str:
        """Units as files spell them."""
        factor_of(text, "energy")
        return text

    @field_validator("length_unit")
    @classmethod
    def is_unit_of_length(cls, text: str) -> str:
        """Units as files spell them."""
        factor_of(text, "length")
        return text

    @field_validator("elements", "self_energies")
    @classmethod
    def names_elements(cls, named: AnyNames) -> AnyNames:
        """Symbols, each once."""
        names = list(named or ())
        if unknown := [name for name in names if name not in atomic_numbers or name == "X"]:
            raise ValueError(f"unknown element {unknown[0]!r}; use symbols such as H or Cl")
        if len(set(names)) < len(names):
            raise ValueError(f"must name each element once (got {', '.join(names)})")
        return named

    @property
    def energy(self) -> float:
        """Its unit of energy in eV."""
        return factor_of(self.energy_unit, "energy")

    @property
    def length(self) -> float:
        """Its unit of length in angstrom."""
        return factor_of(self.length_unit, "length")

    def elements_among(self, known: Sequence[int]) -> tuple[int, ...]:
        """Atomic numbers of the elements that are named, or all that the network has rows for, ascending."""
        if self.elements is None:
            return tuple(sorted(known))
        numbers = sorted(atomic_numbers[symbol] for symbol in self.elements)
        if unknown := [chemical_symbols[z] for z in numbers if z not in known]:
            have = ", ".join(chemical_symbols[z] for z in sorted(known))
            raise UserError(f"{PLACE}.elements: the network has no {', '.join(unknown)} (it has {have}); leave them out")
        return tuple(numbers)

    def constants(self, elements: Sequence[int]) -> dict[int, float]:
        """What is added for each atom of these elements, in eV."""
        lacking = [chemical_symbols[z] for z in elements if chemical_symbols[z] not in self.self_energies]
        if self.self_energies and lacking:
            raise UserError(
                f"{PLACE}.self_energies: must name each element of the network (lacks {', '.join(lacking)}); add them, or "
                "leave these elements out with --elements"
            )
        named = {atomic_numbers[symbol]: value for symbol, value in self.self_energies.items()}
        return {z: self.energy * (self.mean_per_atom + named.get(z, 0.0)) for z in elements}

    @property
    def unit_notes(self) -> tuple[str, ...]:
        """Units that nobody has stated, and what is taken instead."""
        notes = {
            "energy_unit": "no unit of energy is stated: eV is taken; --energy-unit says otherwise",
            "length_unit": "no unit of length is stated: angstrom is taken; --length-unit says otherwise",
        }
        return tuple(note for key, note in notes.items() if key not in self.model_fields_set)

    def notes(self, elements: Sequence[int]) -> tuple[str, ...]:
        """The same for a network with a row for each element, trained or not."""
        note = (
            f"all {len(elements)} elements of its table are taken over, also those that it was never trained on; name those of "
            "its training data with --elements, so that others are refused"
        )
        return self.unit_notes if self.elements else (note, *self.unit_notes)


def read_hyper(kind: type[AnyHyper], hyper: Hyper) -> AnyHyper:
    """Hyper-parameters of a network; all mistakes come in one `UserError`."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in hyper.items()}
    try:
        return kind.model_validate(values, strict=True)
    except ValidationError as error:
        found = mistakes(error, Kind(kind), values)
        raise UserError("\n".join(f"{PLACE}.{_in_words(mistake, kind, values)}" for mistake in found)) from error


def _in_words(mistake: Mistake, kind: type[PeerHyper], values: dict[str, object]) -> str:
    if mistake.type != "extra_forbidden":
        return str(explain(mistake, Kind(kind), values))
    known = _known(kind_at(Kind(kind), values, mistake.path[:-1]))
    near = did_you_mean(str(mistake.path[-1]), known)
    what = f"no option that can be imported{near}; remove it if it changes nothing (known: {', '.join(known)})"
    return f"{dotted(mistake.path)}: {what}"


def _known(kind: Kind) -> list[str]:
    """The keys of a table as files spell them."""
    fields = {name: field for section in sections_in(kind) for name, field in section.model_fields.items()}
    return [field.alias or name for name, field in fields.items()]
