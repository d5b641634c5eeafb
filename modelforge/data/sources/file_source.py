"""What all file formats have in common: paths, the keys of labels, and their units."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from modelforge.atoms.unit_names import factor_of
from modelforge.atoms.units import DipoleUnit, EnergyUnit, ForceUnit, LengthUnit, QuadrupoleUnit, StressUnit
from modelforge.data.sources.part import Part
from modelforge.data.sources.paths import expand_paths
from modelforge.data.sources.source import DataSource, SourceFiles
from modelforge.data.structures import LABELS
from modelforge.errors import UserError
from modelforge.section import PathText, SectionError

Key = Annotated[str, Field(min_length=1)]
AnySet = TypeVar("AnySet")
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # also a file name in the run folder


def one_or_several(paths: object) -> object:
    """A single path stands for a list of one."""
    return (paths,) if isinstance(paths, str) else paths


def refuse_taken_names(sets: dict[str, AnySet]) -> dict[str, AnySet]:
    """Named test sets, none of which is called like a set of the split."""
    if taken := [name for name in ("train", "validation") if name in sets]:
        raise SectionError(*((name, "is the name of a set of dataset.split; choose another") for name in taken))
    return sets


Paths = Annotated[tuple[PathText, ...], BeforeValidator(one_or_several), Field(min_length=1)]


class FileSource(DataSource):
    """Structures and labels from files of one format."""

    homes: ClassVar[tuple[str, str]] = ("keys", "per-atom keys")

    name: str
    path: Paths
    """One or several files or globs, relative to the experiment file."""
    test_paths: dict[SetName, Paths] = {}
    """Named test sets: each name with one or several files or globs."""
    energy_key: Key | None = "energy"
    """Key of a structure's energy; it is the total energy, not per atom."""
    forces_key: Key | None = "forces"
    """Key of the forces, which are minus the gradient of the energy."""
    gradient_key: Key | None = None
    """Key of the gradient of the energy, in place of `forces_key`: the forces are minus that."""
    stress_key: Key | None = None
    """Key of the stress: 9 numbers (3x3) or 6 (xx yy zz yz xz xy)."""
    virial_key: Key | None = None
    """Key of the virial, in place of `stress_key`: the stress is minus the virial over the volume."""
    stress_convention: Literal["tension_positive", "compression_positive"] = "tension_positive"
    """Sign of the stress in the file: ASE's is positive under tension, that of VASP's output under compression."""
    total_charge_key: Key | None = None
    """Key of the total charge, in elementary charges."""
    spin_multiplicity_key: Key | None = None
    """Key of the spin multiplicity 2S+1."""
    dipole_key: Key | None = None
    """Key of the dipole moment, 3 numbers."""
    quadrupole_key: Key | None = None
    """Key of the quadrupole moment, 9 numbers (3x3)."""
    partial_charges_key: Key | None = None
    """Key of the atoms' partial charges, in elementary charges."""
    weight_key: Key | None = None
    """Key of a structure's weight in the loss (`config_weight` in files for MACE); 1 where it is missing."""
    group_key: Key | None = None
    """Key that names the group of a structure; a group stays in one set with `split.strategy = "group"`."""
    subset_key: Key | None = "config_type"
    """Key that names the subset of a structure, by which errors are reported."""
    energy_unit: EnergyUnit | None = None
    """Unit of the energy, where the file does not state it."""
    length_unit: LengthUnit | None = None
    """Unit of positions and cells, where the file does not state it."""
    forces_unit: ForceUnit | None = None
    """Unit of the forces, where the file does not state it; by default the energy unit over the length unit."""
    stress_unit: StressUnit | None = None
    """Unit of the stress, where the file does not state it; by default the energy unit over the cubed length unit."""
    dipole_unit: DipoleUnit | None = None
    """Unit of the dipole moment, where the file does not state it; by default charge times the length unit."""
    quadrupole_unit: QuadrupoleUnit | None = None
    """Unit of the quadrupole moment, where the file does not state it; by default charge times the squared length unit."""

    @field_validator("stress_key")
    @classmethod
    def stress_is_no_virial(cls, key: str | None) -> str | None:
        """A virial has another unit and, mostly, another sign: read as a stress it would be wrong in silence."""
        if key and "virial" in key.lower():
            raise ValueError(f"must name a stress (got {key!r}); name a virial in virial_key")
        return key

    @field_validator("test_paths")
    @classmethod
    def names_are_free(cls, paths: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The sets that the split makes have these names in all that a run leaves."""
        return refuse_taken_names(paths)

    @model_validator(mode="after")
    def one_key_a_label(self) -> "FileSource":
        """Two keys for one label would leave open which of them counts."""
        given = self.model_fields_set
        problems = [
            (second, f"must not be given together with {first}, as both are read as {label}; remove one of them")
            for first, second, label in (("forces_key", "gradient_key", "forces"), ("stress_key", "virial_key", "stress"))
            if {first, second} <= given and getattr(self, first) and getattr(self, second)
        ]
        if self.virial_key:
            remedy = "has no effect with virial_key, whose unit is that of the energy and whose sign is fixed; remove it"
            problems += [(option, remedy) for option in ("stress_unit", "stress_convention") if option in given]
        if problems:
            raise SectionError(*problems)
        return self

    @model_serializer(mode="wrap")
    def what_may_be_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """What is written reads again: without the defaults that another key has taken the place of."""
        values: dict[str, object] = dump(self)
        unused = ["forces_key"] if self.gradient_key else []
        unused += ["stress_key", "stress_unit", "stress_convention"] if self.virial_key else []
        return {key: None if key in unused else value for key, value in values.items()}

    def training_files(self, key: str = "dataset") -> tuple[SourceFiles, ...]:
        """The files of `path`, and those that the split takes sets from."""
        patterns = {
            f"{key}.path": self.path,
            f"{key}.split.validation_files": self.split.validation_files,
            f"{key}.split.test_files": self.split.test_files,
        }
        return (self.files([path for place, some in patterns.items() for path in self.expand(some, key=place)]),)

    def test_files(self, key: str = "dataset") -> dict[str, tuple[SourceFiles, ...]]:
        """The files of `test_paths`."""
        return {
            name: (self.files(self.expand(paths, key=f"{key}.test_paths.{name}")),) for name, paths in self.test_paths.items()
        }

    def files(self, paths: Sequence[Path]) -> SourceFiles:
        """Other files, to be read with these keys and units."""
        return SourceFiles(self, tuple(dict.fromkeys(paths)))

    def expand(self, patterns: Sequence[str], *, key: str) -> list[Path]:
        """The files that paths and globs name."""
        return expand_paths(patterns, Path(), key=key)

    @abstractmethod
    def read_file(self, path: Path) -> Iterator[Part]:
        """The structures of a file in parts of bounded memory; a file that cannot be read to its end is a `UserError`."""

    def bytes_of(self, path: Path) -> Sequence[Path]:
        """The files whose bytes make up what is read."""
        return (path,)

    def options(self) -> dict[str, object]:
        """All that decides on what is read from given bytes."""
        return self.model_dump(mode="json", exclude={*DataSource.model_fields, "path", "test_paths"})

    def label_keys(self) -> Mapping[str, str]:
        """The key that each option such as "forces_key" names; a gradient or virial takes the place of the default key."""
        named = {option: getattr(self, option) for option in KEY_OPTIONS}
        for first, second in (("forces_key", "gradient_key"), ("stress_key", "virial_key")):
            if named[second]:
                named[first] = None
        return {option: key for option, key in named.items() if key}

    def unit_of(self, label: str, *, stated: str = "", usual: str = "", place: str = "") -> tuple[float, str]:
        """How many eV, angstrom and charges the unit of a label (or "length") is, and how the report names the unit.

        `stated` is what the file says, `usual` what its layout means where neither file nor TOML say anything. `place`
        begins the message where both contradict each other.
        """
        given = getattr(self, f"{label}_unit", None)
        if stated:
            return self._stated(label, stated, given, place)
        if given:
            return factor_of(given, label), given
        if usual:
            return factor_of(usual, label), usual
        if label in ("energy", "length"):
            raise UserError(f"dataset.{label}_unit: missing; {place or 'the file'} does not state it")
        return self._derived(label)

    def _stated(self, label: str, stated: str, given: str | None, place: str) -> tuple[float, str]:
        try:
            factor = factor_of(stated, label)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{place}: {label}: {error}") from None
        if given and not np.isclose(factor, factor_of(given, label), rtol=1e-3, atol=0.0):
            raise UserError(
                f"dataset.{label}_unit: must be the unit that the file states, {stated!r} (got {given!r}); remove the key "
                f"({place})"
            )
        return factor, f"{stated} (stated in the file)"

    def _derived(self, label: str) -> tuple[float, str]:
        """Units that follow from those of energy and length."""
        if label in ("total_charge", "spin_multiplicity", "partial_charges"):
            return 1.0, "e" if "charge" in label else "1"
        length, energy = self.length_unit or "angstrom", self.energy_unit or "eV"
        unit = {
            "forces": f"{energy}/{length}",
            "stress": f"{energy}/{length}^3",
            "virial": energy,
            "dipole": f"e*{length}",
            "quadrupole": f"e*{length}^2",
        }[label]
        return factor_of(unit, label), unit


LABEL_OF_OPTION = {f"{label}_key": label for label in LABELS} | {"gradient_key": "forces", "virial_key": "stress"}
"""The column of `Structures` that each option fills."""
KEY_OPTIONS = (*LABEL_OF_OPTION, "weight_key", "group_key", "subset_key")
PER_ATOM_OPTIONS = ("forces_key", "gradient_key", "partial_charges_key")
