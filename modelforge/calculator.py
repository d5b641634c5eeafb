"""The ASE calculator of a trained potential: energy, forces, stress and charges as atoms move."""

# mypy: allow-untyped-calls
# ASE annotates only a part of its functions.

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from modelforge.data.batching.batches import structure_table
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.model_file import load_potential
from modelforge.potentials.potential import PotentialFields
from modelforge.training.precision import matmul_precision

CHARGE_KEYS = ("charge", "total_charge")  # of atoms.info
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ModelforgeCalculator(Calculator):
    """Energy (eV), forces (eV/angstrom) and, in fully periodic structures, stress (eV/angstrom^3, Voigt order of ASE).

    A potential with partial charges also gives "charges" (e) and, for what is not periodic, "dipole" (e*angstrom, about the
    centre of mass). `potential` is a run folder or a potential.safetensors; `dtype` "float32" or "float64", by default that of
    the training. Edges are found anew at each call.

    Total charge and spin multiplicity, where the potential depends on them, are those of `atoms.info` ("charge" or
    "total_charge", "spin" or "spin_multiplicity"), else `charge` and `spin_multiplicity`, else 0 and 1. Beside direct forces
    the stress is the derivative of the energy, not that of the forces; an energy that was not trained is NaN, which lets
    dynamics and optimizers go on that only report it. Without trained energies and forces there are charges and dipoles alone.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self,
        potential: str | Path,
        *,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        charge: float | None = None,
        spin_multiplicity: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        precision = DTYPES[dtype] if isinstance(dtype, str) else dtype
        self.trained = load_potential(potential, device=device, dtype=precision)
        self.device = torch.device(device)
        self.inputs = StructureInputs(self.trained.potential, charge=charge, spin_multiplicity=spin_multiplicity)
        of_charges = ["charges", "dipole"] if self.trained.model.has_charges else []
        untrained = ["energy", "forces"] if self.trained.has_forces else []
        of_energies = ["energy", "free_energy", "forces", "stress"] if self.trained.has_energies else untrained
        self.implemented_properties = [*of_energies, *of_charges]

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; besides what ASE looks at, total charge and spin in `atoms.info`."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and self.inputs.of(atoms) != self.inputs.of(self.atoms):
            changes = [*changes, "info"]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for the atoms; ASE calls it when something has changed."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structures = _structures_of(self.atoms, *self.inputs.of(self.atoms))
        if unknown := sorted(set(structures.elements) - set(self.trained.elements)):
            raise UserError(f"the potential was not trained on atomic numbers {unknown}; it knows {self.trained.elements}")
        constants = self.trained.constants()
        with_stress = "stress" in properties and bool(structures.periodic.all())
        table = structure_table(structures, reach=self.trained.model.reach, self_energies=constants, dtype=self.trained.dtype)
        batch = table.batch(torch.zeros(1, dtype=torch.long)).to(self.device)
        with matmul_precision(self.trained.matmul_precision):
            prediction = self.trained.model(batch.graph, forces=self.trained.has_forces, stress=with_stress)
        fixed = self.trained.potential.fixed_terms.of(structures)
        energy = float(prediction.energy.double()) + float(constants[structures.atomic_numbers].sum()) + float(fixed.energy[0])
        forces = prediction.forces.double().cpu().numpy() + fixed.forces
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if not self.trained.has_energies:
            self.results = {"energy": float("nan"), "forces": forces} if self.trained.has_forces else {}
        if self.trained.model.has_charges:
            self.results["charges"] = prediction.partial_charges.double().cpu().numpy()
            if not self.atoms.pbc.any():
                self.results["dipole"] = prediction.dipole[0].double().cpu().numpy()
        if with_stress:
            stress = prediction.stress[0].double().cpu().numpy() + fixed.stress[0]
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


class StructureInputs:
    """Total charge and spin multiplicity of a structure, as far as a potential depends on them."""

    def __init__(self, potential: PotentialFields, *, charge: float | None, spin_multiplicity: int | None) -> None:
        self.charge, self.spin_multiplicity = charge, spin_multiplicity
        self.has_charge = potential.sees_charge or potential.partial_charges
        self._is_warned = False
        self.has_spin = potential.spin_embedding
        for name, value, is_seen in (
            ("charge", charge, self.has_charge),
            ("spin_multiplicity", spin_multiplicity, self.has_spin),
        ):
            if value is not None and not is_seen:
                raise UserError(f"{name}: the potential does not depend on it (got {value}); remove it")

    def of(self, atoms: Atoms) -> tuple[float, float]:
        """Total charge (e) and spin multiplicity; 0 and 1 where the potential does not depend on them."""
        charge = _told(atoms, CHARGE_KEYS, self.charge, usual=0.0) if self.has_charge else 0.0
        spin = _told(atoms, ("spin", "spin_multiplicity"), self.spin_multiplicity, usual=1.0) if self.has_spin else 1.0
        if spin < 1 or spin % 1:
            raise UserError(
                f'atoms.info["spin"]: must be the spin multiplicity 2S+1, a whole number of at least 1 (got {spin:g})'
            )
        if not (self.has_charge or self._is_warned) and any(atoms.info.get(key) for key in CHARGE_KEYS):
            warnings.warn("the structure has a total charge, which this potential does not depend on", stacklevel=2)
            self._is_warned = True
        return charge, spin


def _told(atoms: Atoms, keys: Sequence[str], given: float | None, *, usual: float) -> float:
    """The number that the atoms or the calculator tell; an error where they tell different ones."""
    told: dict[str, float] = {} if given is None else {f"the calculator's {keys[1].removeprefix('total_')}": float(given)}
    for key in keys:
        if (value := atoms.info.get(key)) is not None:
            told[f'atoms.info["{key}"]'] = _number(key, value)
    if len(set(told.values())) > 1:
        named = " and ".join(f"{place} is {value:g}" for place, value in told.items())
        raise UserError(f"{named}: they must be the same; remove all but one")
    return next(iter(told.values()), usual)


def _number(key: str, value: object) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value):
        return float(value)
    raise UserError(f'atoms.info["{key}"]: must be a number (got {value!r}); correct it, or remove it')


def _structures_of(atoms: Atoms, charge: float, spin_multiplicity: float) -> Structures:
    """One structure without labels."""
    zero, missing = np.zeros(1, dtype=np.int64), np.full(1, np.nan)
    return Structures(
        num_atoms=np.array([len(atoms)]),
        atomic_numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.astype(np.float64),
        cell=np.asarray(atoms.cell, dtype=np.float64)[None],
        periodic=np.asarray(atoms.pbc, dtype=bool)[None],
        energy=missing,
        forces=np.full((len(atoms), 3), np.nan),
        stress=np.full((1, 3, 3), np.nan),
        total_charge=np.array([charge]),
        spin_multiplicity=np.array([spin_multiplicity]),
        group=zero,
        subset=zero,
        file=zero,
        index_in_file=zero,
        files=("atoms",),
    )
