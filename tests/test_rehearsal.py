"""The rehearsal: it finds what would fail later, says where and what to do, and leaves nothing behind."""

import copy
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from made_structures import crystal, labelled, structures_of
from small_runs import write_experiment
from torch import Tensor

from modelforge.assembly import build_model, run_batches
from modelforge.atoms.graph import AtomicGraph, Batch, Prediction
from modelforge.data.prepare import PreparedData, prepare
from modelforge.data.structures import Structures
from modelforge.errors import UserError
from modelforge.evaluate import evaluate, write_predictions
from modelforge.experiment import load
from modelforge.model_file import TrainedPotential
from modelforge.potentials.energy_model import EnergyModel
from modelforge.rehearsal import ending
from modelforge.rehearsal.ending import BYTES_PER_ATOM, BYTES_PER_STRUCTURE
from modelforge.rehearsal.rehearsal import Rehearsal, RehearsalFailed
from modelforge.rehearsal.rehearsing import rehearse
from modelforge.run_folder import RunFolder
from modelforge.training.checkpoint import SCHEMA, Checkpoint
from modelforge.training.eager_step import EagerStep, StepResult
from modelforge.training.loss import weights_of

NUM_TRAIN, NUM_VALIDATION, NUM_HOT, BATCH_SIZE = 32, 8, 10, 5
TOML = f"""\
[potential]
name = "schnet"
cutoff = 3.5
num_features = 8
num_layers = 1
num_radial = 8
[dataset]
name = "extxyz"
path = "train.xyz"
[dataset.test_paths]
hot = "hot.xyz"
[dataset.split]
counts = [{NUM_TRAIN}, {NUM_VALIDATION}, 0]
[training]
[runtime]
accelerator = "cpu"
"""
CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"
CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)
NO_MEMORY = [torch.OutOfMemoryError(CUDA_SAYS), RuntimeError(CPU_SAYS), MemoryError()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with the experiment, 40 structures to train on and 10 to test on."""
    folder = tmp_path_factory.mktemp("rehearsal")
    return write_experiment(folder, TOML, num_structures=NUM_TRAIN + NUM_VALIDATION, num_test=NUM_HOT).parent


def same(tensor: Tensor) -> Tensor:
    """The sum over the one process that there is."""
    return tensor


def rehearsal(data: Path, folder: Path, *overrides: str, rank: int = 0, num_processes: int = 1) -> Rehearsal:
    """A run that is about to start in this folder."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    batch_size = () if any("max_" in key for key in overrides) else (f"training.batch_size={BATCH_SIZE}",)
    experiment = load(data / "x.toml", [f"runtime.run_folder={folder}", *batch_size, *overrides]).experiment
    prepared = prepare(experiment.dataset, weights=weights_of(experiment.training.widest_loss))
    model = build_model(experiment, prepared)
    reference = prepared.reference
    trained = TrainedPotential(
        model,
        experiment.potential,
        experiment.dataset,
        reference.self_energies,
        reference.shifts,
        experiment="",
        weights="first weights",
        training_precision="32-true",
        matmul_precision="highest",
    )

    def make_checkpoint() -> Checkpoint:
        task = {"weights": dict(model.state_dict()), "optimizer": {}}
        return {"schema": SCHEMA, "experiment": "", "task": task, "progress": {}, "best": []}

    return Rehearsal(
        trained=trained,
        experiment=experiment,
        batches=run_batches(experiment, prepared, rank=rank, num_processes=num_processes),
        data=prepared,
        folder=RunFolder(folder),
        device=torch.device("cpu"),
        autocast=nullcontext,
        sum_over_processes=same,
        make_checkpoint=make_checkpoint,
        is_first=rank == 0,
    )


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Rehearsal:
    return rehearsal(data, tmp_path / "run")


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def message(run: Rehearsal, kind: type[Exception] = UserError) -> str:
    """How the rehearsal fails; whatever it is, no file is left."""
    before = content(run.folder.path)
    with pytest.raises(kind) as caught:
        rehearse(run)
    assert content(run.folder.path) == before
    return str(caught.value)


def places(run: Rehearsal, numbers: np.ndarray) -> list[str]:
    return [run.data.structures.place(int(number)) for number in numbers]


# What passes


def test_a_rehearsal_that_passes_says_what_the_run_takes(run: Rehearsal):
    (line,) = rehearse(run)
    figures = re.fullmatch(
        r"rehearsal \(([\d.]+) s\): heaviest batch 5 structures, 55 atoms, ([\d,]+) edges, forward and backward [\d.]+ s, "
        r"peak memory of the process so far [\d.]+ [MG]B; validation, test and report work; checkpoint \(0\.\d+ MB in "
        r"[\de.-]+ s\) works, disk 0\.\d+ MB needed, [\d,.]+ [MG]B free",
        line,
    )
    assert figures
    batch = run.batches.heaviest_training()
    assert int(figures[2].replace(",", "")) == batch.graph.num_edges == max(each.graph.num_edges for each in heavy_batches(run))


def heavy_batches(run: Rehearsal) -> Iterator[Batch]:
    """The batches of three epochs, and the heaviest."""
    yield run.batches.heaviest_training()
    yield from run.batches.training(0, 3 * run.batches.steps_per_epoch)


def test_a_rehearsal_leaves_no_trace(run: Rehearsal):
    """Files, weights, gradients, modes and random streams are those from before; building a network draws from them."""
    model = run.trained.model
    (run.folder.path / "log.txt").write_text("before")
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global stream is what must not change
    before = content(run.folder.path), copy.deepcopy(model.state_dict()), torch.get_rng_state(), random.getstate()
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002
    rehearse(run)
    assert content(run.folder.path) == before[0]
    assert all(torch.equal(weight, before[1][name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3]
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.max_edges=600",),
        ("training.max_atoms=60",),
        ("runtime.precision=64-true", "training.loss.energy_weight=0"),
        ("training.optimizer.name=adam", "training.clipping.name=none", "training.loss.forces_weight=0"),
        ("dataset.split.counts=[20,8,12]", "training.evaluation_batch_size=3"),
    ],
    ids=str,
)
def test_other_settings_are_rehearsed_too(data: Path, tmp_path: Path, overrides: tuple[str, ...]):
    assert rehearse(rehearsal(data, tmp_path, *overrides))[0].startswith("rehearsal (")


def test_the_checkpoint_is_as_large_as_that_of_a_run_in_full_swing(run: Rehearsal, monkeypatch):
    """Averages of the gradient and of its square for every weight, and the best weights: the first has none of these."""
    written: list[Checkpoint] = []
    monkeypatch.setattr(ending, "save_checkpoint", keeping(written, ending.save_checkpoint))
    rehearse(run)
    (checkpoint,) = written
    kept = checkpoint["task"]["optimizer"]["state"].values()
    shapes = sorted(weight.shape for weight in run.trained.model.parameters())
    for moment in ("exp_avg", "exp_avg_sq"):
        assert sorted(state[moment].shape for state in kept) == shapes
    assert [best["weights"].keys() for best in checkpoint["best"]] == [run.trained.model.state_dict().keys()]


def keeping(calls: list, function: Callable) -> Callable:
    """The function, whose second argument is remembered."""

    def kept(*arguments: object, **options: object) -> object:
        calls.append(arguments[1])
        return function(*arguments, **options)

    return kept


def test_the_largest_batch_of_a_test_set_is_tried_before_its_extremes(data: Path, tmp_path: Path, monkeypatch):
    run = rehearsal(data, tmp_path, "training.evaluation_batch_size=3")
    tested: list[PreparedData] = []
    monkeypatch.setattr(ending, "evaluate_sets", keeping(tested, ending.evaluate_sets))
    assert run.data.tests["hot"].structures.num_atoms.tolist() == 5 * [11, 10]
    rehearse(with_test_set(run, lambda structures: structures.take(np.array([1, 1, 1, 0, 0, 0, 1, 0, 1, 0]))))
    sets = tested[0].evaluated_sets()
    sizes = {name: structures.num_atoms[members].tolist() for name, (structures, members) in sets.items()}
    assert sorted(sizes["validation"]) == [10, 10, 11, 11]
    assert sizes["hot"] == [11, 11, 11, 10, 10, 11, 11]


def test_the_room_for_predictions_is_estimated_from_above_and_not_by_far(run: Rehearsal, tmp_path: Path):
    structures = structures_of([labelled(crystal(40, (1, 6, 7, 8), seed=seed), seed=seed) for seed in range(5)])
    write_predictions(tmp_path / "x.extxyz", structures, evaluate(run.trained, structures))
    expected = BYTES_PER_ATOM * structures.num_atoms.sum() + BYTES_PER_STRUCTURE * len(structures)
    assert 0.9 * expected < (tmp_path / "x.extxyz").stat().st_size < expected


# Memory


def faulty_step(monkeypatch: pytest.MonkeyPatch, fault: Callable[[EagerStep, Batch, StepResult], StepResult]) -> None:
    """Training steps whose results go through `fault`."""
    real = EagerStep.__call__
    monkeypatch.setattr(EagerStep, "__call__", lambda self, batch, scales: fault(self, batch, real(self, batch, scales)))


def small_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable[[AtomicGraph], bool], error: Exception) -> None:
    """A memory that takes these batches and no others."""

    def fault(step: EagerStep, batch: Batch, result: StepResult) -> StepResult:
        if not fits(batch.graph):
            raise error
        return result

    faulty_step(monkeypatch, fault)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_told_with_the_batch_size_that_fits(run: Rehearsal, monkeypatch, error: Exception):
    small_memory(monkeypatch, lambda graph: graph.num_structures <= 3, error)
    told = message(run)
    batch = run.batches.heaviest_training()
    sizes, named = batch.graph, places(run, run.batches.heaviest_places("training"))
    heaviest = run.batches.table.num_edges[batch.indices].argsort(descending=True)
    edges = int(run.batches.table.num_edges[batch.indices[heaviest[:3]]].sum())
    assert told.startswith(
        "training.batch_size: the heaviest batch must fit into the memory of the device, cpu (got 5 structures"
    )
    assert f"55 atoms, {sizes.num_edges:,} edges; the heaviest structure is {named[heaviest[0]]}; peak memory" in told
    assert f"{type(error).__name__}: {error}".rstrip(": ") in told
    assert f"The 3 heaviest of them fit: set training.batch_size = 3, or in its place training.max_edges = {edges}" in told
    assert told.endswith("(found by the rehearsal in its heaviest training batch; nothing was trained)")


@pytest.mark.parametrize("key", ["max_edges", "max_atoms"])
def test_a_budget_that_is_too_large_is_told_with_one_that_fits(data: Path, tmp_path: Path, monkeypatch, key: str):
    run = rehearsal(data, tmp_path, f"training.{key}={1000 if key == 'max_edges' else 80}")
    count = {"max_edges": "num_edges", "max_atoms": "num_atoms"}[key]
    most = {"max_edges": 400, "max_atoms": 45}[key]
    small_memory(monkeypatch, lambda graph: getattr(graph, count) <= most, NO_MEMORY[0])
    told = message(run)
    assert told.startswith(f"training.{key}: the heaviest batch must fit")
    suggested = int(re.search(rf"set training\.{key} = (\d+) ", told)[1])
    assert 0.7 * most < suggested <= most
    rehearse(rehearsal(data, tmp_path, f"training.{key}={suggested}"))


def test_a_structure_that_is_too_large_alone_is_named(run: Rehearsal, monkeypatch):
    small_memory(monkeypatch, lambda graph: graph.num_structures < 1, NO_MEMORY[0])
    told = message(run)
    assert re.search(r"the heaviest structure is \S*train\.xyz:\d+; ", told)
    assert "Not even this one alone fits: leave it out, take a smaller network, or a device with more memory" in told


def test_several_processes_share_the_batch_size_that_fits(data: Path, tmp_path: Path, monkeypatch):
    run = rehearsal(data, tmp_path, "training.batch_size=12", num_processes=2)
    small_memory(monkeypatch, lambda graph: graph.num_structures <= 2, NO_MEMORY[0])
    assert "The 2 heaviest of them fit: set training.batch_size = 4," in message(run)


def test_too_little_memory_for_the_validation_names_its_batch_size(run: Rehearsal, monkeypatch):
    in_evaluation(monkeypatch, raising(NO_MEMORY[0]))
    told = message(run)
    assert told.startswith(
        "training.evaluation_batch_size: must be smaller (got 64): the rehearsal failed in its heaviest valid"
    )
    assert "CUDA out of memory" in told


def in_evaluation(monkeypatch: pytest.MonkeyPatch, change: Callable[[Prediction], Prediction]) -> None:
    """Predictions in evaluation mode go through `change`."""
    real = EnergyModel.forward

    def changed(self: EnergyModel, graph: AtomicGraph, **options: bool) -> Prediction:
        prediction = real(self, graph, **options)
        return prediction if self.training else change(prediction)

    monkeypatch.setattr(EnergyModel, "forward", changed)


def raising(error: Exception) -> Callable[..., Prediction]:
    def fail(*arguments: object) -> Prediction:
        raise error

    return fail


# Numbers that are not finite


@pytest.mark.parametrize("term", ["energy", "forces"])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_what_is_not_finite_is_told_with_term_and_structure(run: Rehearsal, monkeypatch, term: str, fault: str):
    """One structure of the heaviest batch spoils one term: its value, or its derivative alone."""
    batch = run.batches.heaviest_training()
    bad = int(batch.indices[3])

    def spoil(step: EagerStep, batch: Batch, result: StepResult) -> StepResult:
        if bad not in batch.indices.tolist() or term not in weights_of(step.loss):
            return result
        nothing = 0.0 * result.loss
        return replace(result, loss=result.loss + (nothing.sqrt() if fault == "gradient" else nothing + torch.nan))

    faulty_step(monkeypatch, spoil)
    told = message(run)
    place = places(run, run.batches.heaviest_places("training"))[3]
    what = f"the {term} term of the loss" if fault == "loss" else f"the gradient of the {term} term"
    assert told.startswith(f"{place}: {what} must be finite, and is not before the first step. Look for atoms on top of each")


def test_what_is_not_finite_only_together_is_told_with_all_structures(run: Rehearsal, monkeypatch):
    def spoil(step: EagerStep, batch: Batch, result: StepResult) -> StepResult:
        return replace(result, loss=result.loss + torch.nan) if batch.graph.num_structures == BATCH_SIZE else result

    faulty_step(monkeypatch, spoil)
    assert message(run).startswith(", ".join(places(run, run.batches.heaviest_places("training"))) + ": the energy term of ")


def test_a_prediction_that_is_not_finite_is_told_with_its_structure(run: Rehearsal, monkeypatch):
    def spoil(prediction: Prediction) -> Prediction:
        forces = prediction.forces.clone()
        forces[24, 1] = torch.inf  # of 10 or 11 atoms each: the third structure
        return replace(prediction, forces=forces)

    in_evaluation(monkeypatch, spoil)
    place = places(run, run.batches.heaviest_places("validation"))[2]
    assert message(run).startswith(f"{place}: predicted energies and forces must be finite, and are not. ")


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory with these options."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a disk for the test")
        mounted.append(place)
        return place

    yield mount
    for each in mounted:
        subprocess.run(["umount", str(each)], check=True)


def test_a_disk_without_room_for_the_run_is_told_with_figures(data: Path, disk: Callable[[str], Path]):
    place = disk("size=64k")
    told = message(rehearsal(data, place / "run"))
    assert re.match(
        rf"runtime\.run_folder: needs about 0\.\d+ MB on its disk, {place} \(checkpoints 0\.\d+ MB, potential 0\.\d+ MB, "
        r"predictions 0\.\d+ MB\), and 0\.0\d MB are free there\. Make room, or choose a folder on another disk \(found by ",
        told,
    )


def test_checkpoints_that_are_there_already_need_no_room_again(data: Path, disk: Callable[[str], Path]):
    """A resumed run on a disk that it has filled itself."""
    run = rehearsal(data, disk("size=300k") / "run")
    told = rehearse(run)[0]
    assert "MB needed" in told
    filling = b"x" * (int(1e6 * float(re.search(r"needed, ([\d.]+) MB free", told)[1])) - 60_000)
    (run.folder.path / "other").write_bytes(filling)
    assert "needs about" in message(run)
    (run.folder.path / "other").rename(run.folder.last_checkpoint)
    rehearse(run)


def test_a_folder_that_cannot_be_written_to_is_told(data: Path, disk: Callable[[str], Path]):
    place = disk("size=1m")
    run = rehearsal(data, place / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    told = message(run)
    assert told.startswith(
        f"runtime.run_folder: must be a folder to write to (got {place / 'run'}: OSError: [Errno 30] Read-only"
    )
    assert "Mend the disk or its permissions, or choose another folder (found by the rehearsal in its checkpoint;" in told


def test_a_folder_that_was_removed_is_told(run: Rehearsal):
    (run.folder.path / "checkpoints").rmdir()
    assert "must be a folder to write to" in message(run)


# The end of a run


def with_test_set(run: Rehearsal, change: Callable[[Structures], Structures]) -> Rehearsal:
    opened = run.data.tests["hot"]
    changed = replace(opened, reading=opened.reading._replace(structures=change(opened.structures)))
    return replace(run, data=replace(run.data, tests={"hot": changed}))


def test_a_test_set_that_cannot_be_predicted_fails_before_the_training(run: Rehearsal):
    def chlorinated(structures: Structures) -> Structures:
        return replace(structures, atomic_numbers=np.full_like(structures.atomic_numbers, 17))

    told = message(with_test_set(run, chlorinated))
    assert re.match(r"\S*hot\.xyz:\d+: has Cl, which the potential was not trained on \(it knows H, C, N, O\)", told)
    assert told.endswith("(found by the rehearsal in its test; nothing was trained)")


def test_errors_of_a_test_set_that_would_be_left_out_fail_before_the_training(run: Rehearsal, monkeypatch):
    real = ending.evaluate_sets

    def spoiled(*arguments: object, **options: object) -> dict:
        metrics = real(*arguments, **options)
        metrics["hot"]["num_energy_labels"] -= 1
        return metrics

    monkeypatch.setattr(ending, "evaluate_sets", spoiled)
    assert re.match(r"dataset: the set 'hot' \(such as \S*hot\.xyz:\d+\): predicted energies and forces must be", message(run))


def test_a_model_that_cannot_be_saved_fails_before_the_training(run: Rehearsal):
    run.trained.model.register_buffer("twin", run.trained.model.scale)  # the format refuses tensors that share memory
    told = message(run, RehearsalFailed)
    assert told.startswith("the rehearsal failed in its saved potential (RuntimeError: ")
    assert "share memory" in told
    assert told.endswith("No setting is known to be the cause: please report it; --skip-rehearsal starts the run all the same")


def test_a_model_that_cannot_be_loaded_fails_before_the_training(run: Rehearsal):
    run.trained.model.register_buffer("unknown", torch.zeros(1))
    told = message(run, RehearsalFailed)
    assert told.startswith("the rehearsal failed in its test (RuntimeError: Error(s) in loading state_dict for EnergyModel")


def test_a_checkpoint_that_cannot_be_read_back_fails_before_the_training(run: Rehearsal):
    """Files are read without executing anything, so a number of numpy's is written and never read again."""
    made = run.make_checkpoint()
    told = message(replace(run, make_checkpoint=lambda: {**made, "progress": {"best_loss": np.float64(1.0)}}), RehearsalFailed)
    assert told.startswith("the rehearsal failed in its checkpoint (RehearsalFailed: a checkpoint cannot be read back: ")
    assert "Weights only load failed" in told


def test_an_error_of_the_program_is_told_with_its_part(run: Rehearsal, monkeypatch):
    monkeypatch.setattr("modelforge.rehearsal.ending.error_table", raising(KeyError("stress_rmse")))
    assert message(run, RehearsalFailed).startswith(
        "the rehearsal failed in its report (KeyError: 'stress_rmse'), where the run "
    )


# Several processes


def test_a_process_ends_where_another_has_failed(run: Rehearsal):
    told = message(replace(run, sum_over_processes=lambda tensor: tensor + 1.0))
    assert told == "the rehearsal failed in its heaviest training batch on 1 other processes, whose messages say why"


def test_a_process_that_fails_meets_the_others_first(run: Rehearsal, monkeypatch):
    met: list[float] = []
    small_memory(monkeypatch, lambda graph: graph.num_structures < 1, NO_MEMORY[0])
    message(replace(run, sum_over_processes=lambda tensor: (met.append(float(tensor)), tensor)[1]))
    assert met == [1.0]


def test_a_broken_sum_over_processes_is_found(run: Rehearsal):
    told = message(
        replace(run, sum_over_processes=lambda tensor: tensor * torch.nan if tensor.ndim else tensor), RehearsalFailed
    )
    assert told.startswith("the rehearsal failed in its sum of gradients over processes (RehearsalFailed: the sum of gradients")


def one_of_two(rank: int, data: Path, folder: Path) -> None:
    """A process that rehearses with another, and again where the second one fails; writes down what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    run = replace(rehearsal(data, folder / "run", rank=rank, num_processes=2), sum_over_processes=summed)
    lines = rehearse(run)
    if rank == 1:
        run.trained.model.scale.fill_(torch.nan)
    try:
        rehearse(run)
    except UserError as error:
        lines += (str(error),)
    (folder / f"{rank}.txt").write_text("\n".join(lines))
    dist.destroy_process_group()


def summed(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def test_two_processes_rehearse_together_and_fail_together(data: Path, tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.multiprocessing.spawn(one_of_two, (data, tmp_path), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    passed, failed = first.split("\n")
    assert passed.startswith("rehearsal (")
    assert "heaviest batch 3 structures, 33 atoms" in passed
    assert failed == "the rehearsal failed in its heaviest training batch on 1 other processes, whose messages say why"
    assert re.match(r"\S*train\.xyz:\d+: the energy term of the loss must be finite", second)
    assert list(content(tmp_path / "run")) == ["checkpoints"]
