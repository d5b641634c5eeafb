"""The ASE calculator of a trained potential: energy, forces and stress as atoms move."""

# mypy: allow-untyped-calls
# ASE annotates only a part of its functions.

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
from modelforge.training.precision import matmul_precision

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ModelforgeCalculator(Calculator):
    """Energy (eV), forces (eV/angstrom) and, in fully periodic structures, stress (eV/angstrom^3, Voigt order of ASE).

    `potential` is a run folder or a potential.safetensors; `dtype` "float32" or "float64", by default that of the
    training. Edges are found anew at each call.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(
        self, potential: str | Path, *, device: str = "cpu", dtype: str | torch.dtype | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        precision = DTYPES[dtype] if isinstance(dtype, str) else dtype
        self.trained = load_potential(potential, device=device, dtype=precision)
        self.device = torch.device(device)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for the atoms; ASE calls it when something has changed."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structures = _structures_of(self.atoms)
        if unknown := sorted(set(structures.elements) - set(self.trained.elements)):
            raise UserError(f"the potential was not trained on atomic numbers {unknown}; it knows {self.trained.elements}")
        constants = self.trained.constants()
        with_stress = "stress" in properties and bool(structures.periodic.all())
        table = structure_table(structures, reach=self.trained.model.reach, self_energies=constants, dtype=self.trained.dtype)
        batch = table.batch(torch.zeros(1, dtype=torch.long)).to(self.device)
        with matmul_precision(self.trained.matmul_precision):
            prediction = self.trained.model(batch.graph, stress=with_stress)
        fixed = self.trained.potential.fixed_terms.of(structures)
        energy = float(prediction.energy.double()) + float(constants[structures.atomic_numbers].sum()) + float(fixed.energy[0])
        forces = prediction.forces.double().cpu().numpy() + fixed.forces
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if with_stress:
            stress = prediction.stress[0].double().cpu().numpy() + fixed.stress[0]
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def _structures_of(atoms: Atoms) -> Structures:
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
        group=zero,
        subset=zero,
        file=zero,
        index_in_file=zero,
        files=("atoms",),
    )
