"""The number of processes changes nothing: shares of a batch have together the loss of the whole, and the same label counts.

S structures.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from made_structures import cluster, crystal, labelled, structures_of, with_charges
from torch import Tensor

from modelforge.atoms.graph import Batch, Prediction, Reach, tensors_of
from modelforge.data.batching.batches import StructureTable, known_force_components, structure_table
from modelforge.data.batching.order import BatchOrder, EvaluationBatches, TrainingBatches
from modelforge.data.store.columns import Columns, ColumnWriter
from modelforge.data.structures import Structures
from modelforge.training.loss import LossSection, term_sums
from modelforge.training.metrics import ErrorSums, errors

ENERGIES, FORCE_STRUCTURES, FORCE_COMPONENTS, STRESS_COMPONENTS, DIPOLES, QUADRUPOLES, CHARGES = range(7)
OF_CHARGES = {"energy_weight": 0.0, "forces_weight": 0.0, "dipole_weight": 1.0, "quadrupole_weight": 1.0}
SECTIONS = {
    "structure": (LossSection(stress_weight=0.1), [ENERGIES, FORCE_STRUCTURES, STRESS_COMPONENTS]),
    "charges": (LossSection(**OF_CHARGES, partial_charges_weight=1.0), [DIPOLES, QUADRUPOLES, CHARGES]),
    "component": (LossSection(stress_weight=0.1, forces_mean="component"), [ENERGIES, FORCE_COMPONENTS, STRESS_COMPONENTS]),
}
TERM_WEIGHTS = torch.tensor([1.0, 100.0, 0.1], dtype=torch.float64)
NUM, BATCH_SIZE, STEPS = 17, 4, 5


def all_atoms() -> list[Atoms]:
    """Of many sizes; some without energy, forces or a part of them, one with a stress that no volume goes with."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, NUM)
    made = [(crystal if place % 3 else cluster)(int(size), (1, 6, 8), seed=place) for place, size in enumerate(sizes)]
    made = [labelled(with_charges(atoms, seed=place), seed=place) if place != 7 else atoms for place, atoms in enumerate(made)]
    for place in (2, 5, 11):
        made[place].info["energy"] = np.nan
    made[4].arrays["forces"][:] = np.nan
    made[8].arrays["forces"][0, 1] = np.nan
    made[10].arrays["forces"][-1] = np.inf
    made[3].info["stress"] = np.eye(3)
    made[1].info["stress"][0] = np.nan
    made[0].info["dipole"][1] = np.nan  # of which nothing is left
    made[6].info["quadrupole"][0, 0] = np.inf
    made[9].arrays["partial_charges"][0] = np.nan
    made[2].arrays["partial_charges"][:] = np.nan
    assert not made[3].pbc.any()
    assert made[1].pbc.all()
    return made


def made_structures() -> Structures:
    structures = structures_of(all_atoms())
    return replace(structures, weight=np.random.default_rng(2).uniform(0.0, 3.0, NUM))


def table_of(dtype: torch.dtype = torch.float64) -> StructureTable:
    return structure_table(made_structures(), reach=Reach(3.0), self_energies=np.zeros(119), dtype=dtype)


TABLE, ORDER, OFFSETS = table_of(), BatchOrder(NUM, BATCH_SIZE, seed=0), made_structures().offsets


def prediction_for(batch: Batch) -> Prediction:
    """The same for a structure in any batch; a stand-in has that of any other."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((), (3, 3), (3,), (3, 3))
    of_structures = [torch.randn(NUM, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    forces = torch.randn(int(OFFSETS[-1]), 3, generator=generator, dtype=torch.float64)
    sizes = torch.bincount(batch.graph.structure_index).tolist()
    first_atoms = OFFSETS[batch.indices.clamp(min=0).numpy()]
    atoms = torch.cat([torch.arange(size) + first for first, size in zip(first_atoms, sizes, strict=True)])
    dtype = batch.labels.energy.dtype
    energy, stress, dipole, quadrupole = (values[batch.indices].to(dtype) for values in of_structures)
    charges = forces[atoms].to(dtype).sum(dim=1)
    return Prediction(energy, forces[atoms].to(dtype), stress, dipole, quadrupole, charges)


def sums_of(section: LossSection, batch: Batch) -> Tensor:
    return term_sums(section, prediction_for(batch), batch.labels, batch.graph, batch.weight)


def batches_of(rank: int, num_processes: int, *, accumulate: int = 1, first_step: int = 0) -> list[Batch]:
    process = {"rank": rank, "num_processes": num_processes, "accumulate": accumulate}
    return list(TrainingBatches(TABLE, ORDER, first_step=first_step, last_step=first_step + STEPS, **process))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("section", "columns"), SECTIONS.values(), ids=SECTIONS)
def test_the_label_counts_of_a_batch_are_the_divisors_of_its_loss(
    section: LossSection, columns: list[int], dtype: torch.dtype
) -> None:
    table = table_of(dtype)
    whole = torch.arange(NUM)
    for batch in [
        table.batch(whole),
        *TrainingBatches(table, ORDER, first_step=0, last_step=STEPS),
        *EvaluationBatches(table, 3),
    ]:
        assert batch.label_counts.dtype == dtype
        assert batch.label_counts[columns].tolist() == sums_of(section, batch)[:, 1].tolist()
    counts = table.num_labels(whole).tolist()
    assert counts[ENERGIES] == NUM - 4
    assert counts[FORCE_STRUCTURES] == NUM - 2
    assert 0 < counts[STRESS_COMPONENTS] < int(TABLE.stress.isfinite().sum())
    num_molecules = int((~made_structures().periodic.any(axis=1)).sum())
    assert counts[DIPOLES] == 3 * (num_molecules - 1), "one is not whole"
    assert counts[QUADRUPOLES] == 9 * (num_molecules - 1)
    sizes = made_structures().num_atoms
    assert counts[CHARGES] == sizes.sum() - sizes[7] - sizes[2] - 1


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
@pytest.mark.parametrize(("section", "columns"), SECTIONS.values(), ids=SECTIONS)
def test_shares_have_together_the_loss_of_the_whole_optimizer_step(
    section: LossSection, columns: list[int], num_processes: int, accumulate: int
) -> None:
    """Also where structures have weights and miss labels, and where the last optimizer step has fewer batches."""
    first_step = 2
    shares = [batches_of(rank, num_processes, accumulate=accumulate, first_step=first_step) for rank in range(num_processes)]
    wholes = [batch.indices for batch in batches_of(0, 1, first_step=first_step)]
    for first in range(0, STEPS, accumulate):
        group = [batch for share in shares for batch in share[first : first + accumulate]]
        whole = TABLE.batch(torch.cat(wholes[first : first + accumulate]))
        assert all(torch.equal(batch.label_counts, whole.label_counts) for batch in group)
        terms = sum(sums_of(section, batch)[:, 0] / batch.label_counts[columns].clamp(min=1.0) for batch in group)
        sums = sums_of(section, whole)
        expected = ((sums[:, 0] / sums[:, 1].clamp(min=1.0)) * TERM_WEIGHTS).sum()
        assert float((terms * TERM_WEIGHTS).sum()) == pytest.approx(float(expected), rel=1e-12)


def test_spare_processes_have_stand_ins() -> None:
    shares = [batches_of(rank, 5) for rank in range(5)]
    assert [len(ORDER.epoch(0)[step]) for step in range(STEPS)] == [4, 4, 4, 4, 1]
    assert [[batch.indices.tolist() == [-1] for batch in share] for share in shares] == [
        [False] * 5,
        *[[False] * 4 + [True]] * 3,
        [True] * 5,
    ]


def test_a_stand_in_counts_nowhere() -> None:
    batches = [*batches_of(4, 5), *EvaluationBatches(TABLE, 4, rank=4, num_processes=5)]
    assert len(batches) == STEPS + 1
    for batch in batches:
        assert batch.indices.tolist() == [-1]
        assert batch.graph.num_atoms >= 1
        assert not any(values.isfinite().any() for values in tensors_of(batch.labels))
        for section, _ in SECTIONS.values():
            assert not sums_of(section, batch).any()
        sums = ErrorSums(1, has_charges=True, over_processes=False)
        sums.update(prediction_for(batch), batch)
        assert not sums.by_subset.any()
        assert not sums.by_element.any()
    assert all(batch.label_counts.any() for batch in batches[:-1]), "those of the others"
    assert not batches[-1].label_counts.any()


def test_a_stand_in_gives_no_gradient() -> None:
    batch = batches_of(4, 5)[0]
    prediction = Prediction(*(values.requires_grad_() for values in tensors_of(prediction_for(batch))))
    for section, _ in SECTIONS.values():
        loss = term_sums(section, prediction, batch.labels, batch.graph, batch.weight)[:, 0].sum()
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, tensors_of(prediction), materialize_grads=True))


def test_a_share_is_the_batch_of_its_structures() -> None:
    """Nothing is changed in it but the label counts."""
    for batch in chain.from_iterable(batches_of(rank, 3) for rank in range(3)):
        if batch.indices.tolist() != [-1]:
            alone = TABLE.batch(batch.indices)
            pairs = zip(
                (*tensors_of(batch.graph), *tensors_of(batch.labels)),
                (*tensors_of(alone.graph), *tensors_of(alone.labels)),
                strict=True,
            )
            assert all(torch.equal(one.nan_to_num(-7.0), other.nan_to_num(-7.0)) for one, other in pairs)
            assert torch.equal(batch.weight, alone.weight)


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_evaluation_of_all_processes_is_that_of_one(num_processes: int, budget: int | None) -> None:
    section, _ = SECTIONS["component"]
    batches = [
        batch
        for rank in range(num_processes)
        for batch in EvaluationBatches(TABLE, 4, max_edges=budget, rank=rank, num_processes=num_processes)
    ]
    whole = TABLE.batch(torch.arange(NUM))
    torch.testing.assert_close(sum(sums_of(section, batch) for batch in batches), sums_of(section, whole), rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(batch.label_counts for batch in batches), whole.label_counts, rtol=0, atol=0)
    sums, expected = (ErrorSums(1, has_charges=True, over_processes=False) for _ in range(2))
    for batch in batches:
        sums.update(prediction_for(batch), batch)
    expected.update(prediction_for(whole), whole)
    assert errors(sums) == pytest.approx(errors(expected), rel=1e-12)
    assert errors(sums)["num_structures"] == NUM


@pytest.mark.parametrize("missing", ["none", "some", "all"])
def test_forces_in_a_file_are_counted_like_those_in_memory(tmp_path: Path, missing: str) -> None:
    structures = made_structures()
    if missing != "some":
        structures = replace(structures, forces=np.full_like(structures.forces, 1.0 if missing == "none" else np.nan))
    expected = [int(np.isfinite(structures.forces[atoms]).sum()) for atoms in map(structures.atoms_of, np.arange(NUM)[:, None])]
    assert known_force_components(structures, None).tolist() == expected
    writer = ColumnWriter(tmp_path / "columns")
    writer.add("forces", structures.forces)
    writer.finish({})
    columns = Columns(tmp_path / "columns")
    assert known_force_components(replace(structures, forces=columns.arrays["forces"]), columns).tolist() == expected


def test_forces_whose_sum_is_too_large_are_known() -> None:
    structures = made_structures()
    huge = replace(structures, forces=np.full_like(structures.forces, 1e308))
    assert known_force_components(huge, None).tolist() == (3 * structures.num_atoms).tolist()
