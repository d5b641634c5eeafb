"""Errors against numpy and torchmetrics, and what they must not depend on."""

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled, structures_of, with_charges
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from modelforge.atoms.graph import Batch, Prediction, Reach
from modelforge.data.batching.batches import structure_table
from modelforge.data.batching.order import EvaluationBatches
from modelforge.data.structures import Structures
from modelforge.training.metrics import ErrorSums, errors, errors_by_element, errors_by_subset, without_energies

RELATIVE = 1e-12
NUM_STRUCTURES = 12


def some_atoms() -> list[Atoms]:
    """Molecules and crystals in two subsets; each third lacks its energy, each fourth its forces, each fifth its dipole."""
    found = []
    for seed in range(NUM_STRUCTURES):
        make = crystal if seed % 2 else cluster
        atoms = labelled(make(2 + seed % 4, (1, 6, 8), seed=seed), seed=seed)
        atoms = with_charges(atoms, seed=seed)
        atoms.info["subset"] = "hot" if seed % 3 else "cold"
        if seed % 3 == 2:
            del atoms.info["energy"]
        if seed % 4 == 3:
            del atoms.arrays["forces"]
        if seed % 5 == 4:
            del atoms.info["dipole"]
            atoms.arrays["partial_charges"][0] = np.nan
        found.append(atoms)
    return found


STRUCTURES = structures_of(some_atoms())
TABLE = structure_table(STRUCTURES, reach=Reach(3.0), self_energies=np.zeros(119), dtype=torch.float64)


def predicted(structures: Structures) -> Prediction:
    rng = np.random.default_rng(0)
    names = ("energy", "forces", "stress", "dipole", "quadrupole", "partial_charges")
    values = {name: rng.normal(size=getattr(structures, name).shape) for name in names}
    values["stress"][~structures.periodic.all(axis=1)] = np.nan
    for name in ("dipole", "quadrupole"):
        values[name][structures.periodic.any(axis=1)] = np.nan
    return Prediction(**{name: torch.from_numpy(x) for name, x in values.items()})


WHOLE = predicted(STRUCTURES)


def prediction_for(batch: Batch) -> Prediction:
    atoms = torch.from_numpy(STRUCTURES.atoms_of(batch.indices.numpy()))
    of_structures = (WHOLE.dipole[batch.indices], WHOLE.quadrupole[batch.indices])
    energy, stress = WHOLE.energy[batch.indices], WHOLE.stress[batch.indices]
    return Prediction(energy, WHOLE.forces[atoms], stress, *of_structures, WHOLE.partial_charges[atoms])


def sums_over(batches: list[Batch]) -> ErrorSums:
    sums = ErrorSums(len(STRUCTURES.subset_names), has_charges=True)
    for batch in batches:
        sums.update(prediction_for(batch), batch)
    return sums


def test_errors_are_those_of_numpy():
    found = errors(sums_over([TABLE.batch(torch.arange(NUM_STRUCTURES))]))
    energy = 1e3 * (WHOLE.energy.numpy() - STRUCTURES.energy)
    forces, stress = (1e3 * (getattr(WHOLE, name).numpy() - getattr(STRUCTURES, name)) for name in ("forces", "stress"))
    dipole, quadrupole, charges = (
        1e3 * (getattr(WHOLE, name).numpy() - getattr(STRUCTURES, name)) for name in ("dipole", "quadrupole", "partial_charges")
    )
    quadrupole = np.array([moments - np.trace(moments) / 3 * np.eye(3) for moments in quadrupole])
    per_atom = energy / STRUCTURES.num_atoms
    expected = {
        "energy_mae_mev_per_atom": np.nanmean(np.abs(per_atom)),
        "energy_rmse_mev_per_atom": np.sqrt(np.nanmean(per_atom**2)),
        "energy_mae_mev": np.nanmean(np.abs(energy)),
        "energy_rmse_mev": np.sqrt(np.nanmean(energy**2)),
        "forces_mae_mev_per_angstrom": np.nanmean(np.abs(forces)),
        "forces_rmse_mev_per_angstrom": np.sqrt(np.nanmean(forces**2)),
        "stress_mae_mev_per_angstrom3": np.nanmean(np.abs(stress)),
        "stress_rmse_mev_per_angstrom3": np.sqrt(np.nanmean(stress**2)),
        "num_structures": NUM_STRUCTURES,
        "num_energy_labels": 8,
        "num_force_components": int(np.isfinite(forces).sum()),
        "num_stress_components": 9 * 6,
        "dipole_mae_me_angstrom": np.nanmean(np.abs(dipole)),
        "dipole_rmse_me_angstrom": np.sqrt(np.nanmean(dipole**2)),
        "quadrupole_mae_me_angstrom2": np.nanmean(np.abs(quadrupole)),
        "quadrupole_rmse_me_angstrom2": np.sqrt(np.nanmean(quadrupole**2)),
        "partial_charges_mae_me": np.nanmean(np.abs(charges)),
        "partial_charges_rmse_me": np.sqrt(np.nanmean(charges**2)),
        "num_dipole_components": 3 * 5,
        "num_quadrupole_components": 9 * 6,
        "num_partial_charges": STRUCTURES.num_atoms.sum() - 2,
    }
    assert found == pytest.approx(expected, rel=RELATIVE)


def test_errors_are_those_of_torchmetrics():
    found = errors(sums_over([TABLE.batch(torch.arange(NUM_STRUCTURES))]))
    for name, unit in (("energy", "mev"), ("forces", "mev_per_angstrom")):
        reference = torch.from_numpy(getattr(STRUCTURES, name))
        known = reference.isfinite()
        mae, rmse = MeanAbsoluteError().set_dtype(torch.float64), MeanSquaredError(squared=False).set_dtype(torch.float64)
        pair = (getattr(WHOLE, name)[known], reference[known])
        assert found[f"{name}_mae_{unit}"] == pytest.approx(1e3 * float(mae(*pair)), rel=1e-6)
        assert found[f"{name}_rmse_{unit}"] == pytest.approx(1e3 * float(rmse(*pair)), rel=1e-6)


def nearly_equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(nearly_equal(one[key], other[key]) for key in one)
    return one == other if one is None or other is None else one == pytest.approx(other, rel=RELATIVE)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_errors_do_not_depend_on_the_size_of_batches(batch_size: int):
    whole = sums_over([TABLE.batch(torch.arange(NUM_STRUCTURES))])
    parts = sums_over(list(EvaluationBatches(TABLE, batch_size)))
    assert nearly_equal(errors(parts), errors(whole))
    assert nearly_equal(errors_by_element(parts), errors_by_element(whole))
    names = STRUCTURES.subset_names
    assert nearly_equal(errors_by_subset(parts, names), errors_by_subset(whole, names))


def test_errors_do_not_depend_on_the_order():
    order = torch.randperm(NUM_STRUCTURES, generator=torch.Generator().manual_seed(1))
    assert nearly_equal(errors(sums_over([TABLE.batch(order)])), errors(sums_over([TABLE.batch(order.sort().values)])))


def test_errors_do_not_depend_on_the_number_of_processes():
    """Each takes its share; sums add up, and no structure counts twice."""
    shares = [sums_over(list(EvaluationBatches(TABLE, 5, rank=rank, num_processes=5))) for rank in range(5)]
    together = ErrorSums(len(STRUCTURES.subset_names))
    together.by_subset = torch.stack([share.by_subset for share in shares]).sum(0)
    together.by_element = torch.stack([share.by_element for share in shares]).sum(0)
    together._update_count = 1
    assert nearly_equal(errors(together), errors(sums_over(list(EvaluationBatches(TABLE, 64)))))


def test_unlabelled_structures_change_nothing_but_their_number():
    labelled_ones = [place for place in range(NUM_STRUCTURES) if place % 3 != 2]
    energies_only = errors(sums_over([TABLE.batch(torch.tensor(labelled_ones))]))
    all_of_them = errors(sums_over([TABLE.batch(torch.arange(NUM_STRUCTURES))]))
    for name in ("energy_mae_mev_per_atom", "energy_rmse_mev_per_atom", "energy_mae_mev", "num_energy_labels"):
        assert all_of_them[name] == pytest.approx(energies_only[name], rel=RELATIVE)
    assert all_of_them["num_structures"] != energies_only["num_structures"]


def test_what_was_not_measured_is_none_and_not_zero():
    unlabelled = cluster(3, (1, 6), seed=0)
    sums = ErrorSums()
    batch = batch_of([unlabelled], cutoff=3.0)
    sums.update(Prediction(torch.zeros(1), torch.zeros(3, 3), torch.full((1, 3, 3), torch.nan)), batch)
    found = errors(sums)
    assert {name for name, value in found.items() if value is None} == {name for name in found if not name.startswith("num_")}
    assert {name for name, value in found.items() if value == 0} == {name for name in found if name.startswith("num_")} - {
        "num_structures"
    }
    assert found["num_structures"] == 1
    assert errors_by_element(sums) == {}


def test_a_prediction_that_was_not_computed_is_not_measured():
    batch = TABLE.batch(torch.tensor([0]))
    sums = ErrorSums()
    prediction = prediction_for(batch)
    sums.update(Prediction(prediction.energy, torch.full_like(prediction.forces, torch.nan), prediction.stress), batch)
    found = errors(sums)
    assert found["forces_mae_mev_per_angstrom"] is None
    assert found["energy_mae_mev"] is not None


def test_energies_that_nothing_has_trained_are_not_measured():
    batch = TABLE.batch(torch.arange(NUM_STRUCTURES))
    sums = ErrorSums(len(STRUCTURES.subset_names), has_charges=True)
    sums.update(without_energies(prediction_for(batch)), batch)
    found, whole = errors(sums), errors(sums_over([batch]))
    assert found["num_energy_labels"] == 0
    energies = {name for name in found if name.startswith(("energy", "num_energy"))}
    assert {name for name in found if found[name] != whole[name]} == energies
    assert {found[name] for name in energies} == {None, 0}


def test_errors_by_element_and_by_subset_are_those_of_their_parts():
    sums = sums_over([TABLE.batch(torch.arange(NUM_STRUCTURES))])
    forces = 1e3 * (WHOLE.forces.numpy() - STRUCTURES.forces)
    for symbol, element in (("H", 1), ("C", 6), ("O", 8)):
        part = forces[STRUCTURES.atomic_numbers == element]
        found = errors_by_element(sums)[symbol]
        assert found["forces_rmse_mev_per_angstrom"] == pytest.approx(np.sqrt(np.nanmean(part**2)), rel=RELATIVE)
        assert found["num_force_components"] == np.isfinite(part).sum()
    assert set(errors_by_element(sums)) == {"H", "C", "O"}
    energy = 1e3 * (WHOLE.energy.numpy() - STRUCTURES.energy)
    for place, name in enumerate(STRUCTURES.subset_names):
        found = errors_by_subset(sums, STRUCTURES.subset_names)[name]
        assert found["energy_mae_mev"] == pytest.approx(np.nanmean(np.abs(energy[STRUCTURES.subset == place])), rel=RELATIVE)
        assert found["num_structures"] == (STRUCTURES.subset == place).sum()


def test_small_errors_of_single_precision_add_up_in_double():
    """A million equal squares: a float32 sum would stop growing."""
    sums = ErrorSums()
    batch = batch_of([labelled(Atoms("H"), seed=0)], cutoff=1.0, dtype=torch.float32)
    labels = batch.labels
    prediction = Prediction(labels.energy + 0.1, labels.forces, labels.stress)
    error = float(prediction.energy.double() - labels.energy.double())
    sums.update(prediction, batch)
    assert sums.by_subset.dtype == torch.float64
    sums.by_subset *= 1_000_003
    sums.update(prediction, batch)
    assert errors(sums)["energy_rmse_mev"] == pytest.approx(1e3 * abs(error), rel=RELATIVE)
