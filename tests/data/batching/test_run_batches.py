"""The batches of a run on several processes: which structures a step sees, and the heaviest batches of all.

Structures are rows of water molecules that do not see each other, so their sizes count.
"""

from pathlib import Path

import numpy as np
import pytest
from toy_experiment import TOML, water

from modelforge.assembly import run_batches
from modelforge.data.batching.run_batches import RunBatches
from modelforge.data.prepare import PreparedData, prepare
from modelforge.experiment import Experiment, load

TRAINING, VALIDATION = (1, 1, 2, 1, 3, 1, 1, 2, 1, 1, 2), (4, 1, 2)  # molecules in each structure
EDGES = 6  # of a molecule


def row_of_waters(num: int, number: int) -> str:
    lines = water(number, energy=f"energy={-2079.0 * num}").splitlines()
    atoms = [
        " ".join([symbol, str(float(x) + 20.0 * place), *rest])
        for place in range(num)
        for symbol, x, *rest in (line.split() for line in lines[2:])
    ]
    return "\n".join([str(3 * num), lines[1], *atoms]) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waters")
    sizes = (*TRAINING, *VALIDATION)
    (folder / "water.xyz").write_text("".join(row_of_waters(num, number) for number, num in enumerate(sizes)))
    counts = f'strategy = "blocks"\ncounts = [{len(TRAINING)}, {len(VALIDATION)}, 0]'
    (folder / "x.toml").write_text(
        TOML.replace("counts = [6, 2, 0]", counts)
        .replace("batch_size = 4\n", "")
        .replace("[dataset.split]", 'audit = "report"\n[dataset.split]')
    )
    return folder


def prepared(folder: Path, *overrides: str) -> tuple[Experiment, PreparedData]:
    experiment = load(folder / "x.toml", overrides).experiment
    return experiment, prepare(experiment.dataset, weights={"energy": 1.0, "forces": 1.0})


def all_processes(folder: Path, num_processes: int, *overrides: str) -> list[RunBatches]:
    experiment, data = prepared(folder, *overrides)
    return [run_batches(experiment, data, rank=rank, num_processes=num_processes) for rank in range(num_processes)]


BATCHES = [
    "training.batch_size=4",
    f"training.max_edges={4 * EDGES}",
    f"training.max_edges={2 * EDGES}",
    "training.max_atoms=9",
]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("how", [*BATCHES, 'dataset.split={strategy = "random", counts = [2, 1, 0]}'])
def test_the_structures_of_a_step_are_those_of_its_batches(folder: Path, num_processes: int, how: str) -> None:
    """Also where only a few structures are used, which are then copied into a table of their own."""
    processes = all_processes(folder, num_processes, how)
    steps = processes[0].steps_per_epoch
    for rank, batches in enumerate(processes):
        assert batches.steps_per_epoch == steps
        for step, batch in enumerate(batches.training(0, 2 * steps)):
            chosen, structures = batches.structures_of_step(step, rank), batches.data.structures
            assert (structures.num_atoms[chosen] == np.bincount(batch.graph.structure_index)).all()
            if batch.indices.tolist() != [-1]:
                np.testing.assert_allclose(batch.labels.forces, structures.forces[structures.atoms_of(chosen)], rtol=1e-6)
            whole = batches.structures_of_step(step)
            parts = [batches.structures_of_step(step, each) for each in range(min(num_processes, len(whole)))]
            assert sorted(np.concatenate(parts)) == sorted(whole)


def test_the_number_of_steps_does_not_depend_on_the_number_of_processes(folder: Path) -> None:
    for how in BATCHES:
        assert len({batches.steps_per_epoch for num in (1, 2, 3, 20) for batches in all_processes(folder, num, how)[:1]}) == 1


@pytest.mark.parametrize(
    ("how", "num_processes", "expected"),
    [
        ("training.batch_size=4", 1, [[4, 2, 7, 10]]),
        ("training.batch_size=4", 2, [[4, 10], [2, 7]]),
        ("training.batch_size=4", 3, [[4], [2, 10], [7]]),
        ("training.batch_size=2", 3, [[4], [2], [2]]),
        (f"training.max_edges={2 * EDGES}", 1, [[4]]),
        (f"training.max_edges={2 * EDGES}", 2, [[4], [4]]),
    ],
)
def test_the_heaviest_training_batch_is_shared_out(
    folder: Path, how: str, num_processes: int, expected: list[list[int]]
) -> None:
    """A process beyond the structures of its batch has a stand-in, which is as much work."""
    processes = all_processes(folder, num_processes, how)
    assert [batches.heaviest_places("training").tolist() for batches in processes] == expected
    for batches, places in zip(processes, expected, strict=True):
        batch = batches.heaviest_training()
        assert np.bincount(batch.graph.structure_index).tolist() == [3 * TRAINING[place] for place in places]
    own = [batches.heaviest_training() for batches in processes]
    assert sum(int(batch.labels.energy.isfinite().sum()) for batch in own) == int(own[0].label_counts[0])


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("how", BATCHES)
def test_no_batch_of_the_first_epochs_is_heavier_than_the_heaviest(folder: Path, num_processes: int, how: str) -> None:
    for batches in all_processes(folder, num_processes, how):
        heaviest = batches.heaviest_training().graph.num_edges
        num_epochs = 5 if "batch_size" in how else 1
        edges = [batch.graph.num_edges for batch in batches.training(0, num_epochs * batches.steps_per_epoch)]
        assert max(edges) <= heaviest
        assert num_epochs > 1 or max(edges) == heaviest


def test_the_heaviest_validation_batch_has_the_most_edges(folder: Path) -> None:
    one = all_processes(folder, 1, "training.evaluation_batch_size=2")[0]
    assert one.heaviest_places("validation").tolist() == [len(TRAINING), len(TRAINING) + 1]
    assert one.heaviest_validation().graph.num_edges == 5 * EDGES
    assert one.heaviest_validation().label_counts.tolist() == [2.0, 2.0, 45.0, 0.0, 0.0, 0.0, 0.0, 15.0]


def test_more_processes_than_validation_structures_all_have_a_batch(folder: Path) -> None:
    """The last ones have a stand-in in the validation, and rehearse with what process 0 has."""
    processes = all_processes(folder, 5)
    assert [[batch.indices.tolist() for batch in batches.validation()] for batches in processes] == [
        [[11]],
        [[13]],
        [[12]],
        [[-1]],
        [[-1]],
    ]
    assert [batches.heaviest_places("validation").tolist() for batches in processes] == [[11], [13], [12], [11], [11]]
    assert processes[-1].heaviest_validation().labels.energy.isfinite().all()


def test_label_counts_are_of_all_batches_that_accumulate(folder: Path) -> None:
    for batches in all_processes(folder, 2, "training.accumulate_batches=2", "training.batch_size=4"):
        assert [int(batch.label_counts[0]) for batch in batches.training(0, 3)] == [8, 8, 3]
        assert [int(batch.label_counts[0]) for batch in batches.training(1, 3)] == [7, 7]
