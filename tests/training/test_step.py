"""The compiled step against the eager one, the ways back to eager, and that a step never waits for the device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ase import Atoms
from made_structures import batch_of, cluster, crystal, labelled
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from traced_programs import TracingInThisProcess, as_traced, traced_step

from modelforge.atoms.graph import Batch, Reach
from modelforge.potentials.energy_model import EnergyModel
from modelforge.potentials.schnet import SchNetSection
from modelforge.training import compilation
from modelforge.training import step as step_module
from modelforge.training.compilation import EAGER_STEPS, WORTH_STEPS, StepCompiler
from modelforge.training.compiled_program import CompiledProgram
from modelforge.training.eager_step import EagerStep, StepResult
from modelforge.training.loss import LossSection
from modelforge.training.section import TrainingSection
from modelforge.training.step import TOLERANCE, CompiledStep, fits_compilation, largest_difference, program_of
from modelforge.training.task import TrainingTask

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # what Inductor imports

CUTOFF = 3.0
LOSS = LossSection(stress_weight=0.1)
SIZES = (4, 2, 3, 7)  # structures; the compiler must not take any of them for a case of its own


def small_model(dtype: torch.dtype) -> EnergyModel:
    section = SchNetSection(name="schnet", cutoff=CUTOFF, num_features=4, num_layers=1, num_radial=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EnergyModel(section.build((1, 6, 8)), scale=1.3).to(dtype).train()


def batch(num_structures: int, dtype: torch.dtype) -> Batch:
    """Molecules, crystals and an isolated atom, some labels missing; enough atoms for the compiler's larger kernels."""
    made: list[Atoms] = []
    for seed in range(num_structures):
        make = crystal if seed % 2 else cluster
        made.append(labelled(make(24 + 3 * seed, (1, 6, 8), seed=seed), seed=seed))
    made[-1] = labelled(Atoms("O"), seed=9) if num_structures > 3 else made[-1]
    del made[0].info["energy"]
    return batch_of(made, cutoff=CUTOFF, dtype=dtype)


def weights(dtype: torch.dtype) -> Tensor:
    return torch.tensor([1.0, 100.0, 0.1], dtype=dtype)


@pytest.fixture(scope="session", params=[torch.float64, torch.float32], ids=["traced", "compiled"])
def compiled(request) -> Iterator[CompiledStep]:
    dtype, model = request.param, small_model(request.param)
    arguments = LOSS, batch(4, dtype), weights(dtype)
    is_traced_only = dtype == torch.float64
    step = traced_step(model, *arguments) if is_traced_only else CompiledStep(model, LOSS, program_of(model, *arguments))
    yield step
    assert step.failure is None, "an eager result in the place of a compiled one agrees with anything"


@pytest.mark.parametrize("num_structures", SIZES)
def test_the_compiled_step_agrees_with_the_eager_one(compiled: CompiledStep, num_structures: int):
    dtype = compiled.parameters[0].dtype
    sample = batch(num_structures, dtype)
    assert fits_compilation(sample, Reach(CUTOFF))
    assert largest_difference(compiled, sample, weights(dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("num_structures", SIZES)
def test_loss_terms_predictions_and_gradients_agree_one_by_one(compiled: CompiledStep, num_structures: int):
    dtype = compiled.parameters[0].dtype
    sample = batch(num_structures, dtype)
    results = [step(sample, weights(dtype)) for step in (compiled, compiled.eager)]
    gradients = [torch.autograd.grad(3 * result.loss, compiled.parameters) for result in results]
    pairs = [(result.loss, result.sums, *vars(result.prediction).values()) for result in results]
    for got, expected in zip((*pairs[0], *gradients[0]), (*pairs[1], *gradients[1]), strict=True):
        size = expected.detach().nan_to_num().abs().max().clamp(min=1e-6)
        torch.testing.assert_close(got / size, expected / size, rtol=0, atol=TOLERANCE[dtype], equal_nan=True)


def test_new_weights_reach_the_compiled_step(compiled: CompiledStep):
    """It must read the weights, not a copy of them from the time when it was compiled."""
    dtype = compiled.parameters[0].dtype
    sample = batch(3, dtype)
    before = float(compiled(sample, weights(dtype)).loss.detach())
    with torch.no_grad():
        for weight in compiled.parameters:
            weight += 0.05
    assert float(compiled(sample, weights(dtype)).loss.detach()) != pytest.approx(before, rel=1e-3)
    assert largest_difference(compiled, sample, weights(dtype)) < TOLERANCE[dtype]


def test_other_term_weights_reach_the_compiled_step(compiled: CompiledStep):
    dtype = compiled.parameters[0].dtype
    sample, other = batch(3, dtype), torch.tensor([7.0, 0.0, 2.0], dtype=dtype)
    got, expected = (float(step(sample, other).loss.detach()) for step in (compiled, compiled.eager))
    assert got == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("atoms", [[Atoms("O")], [Atoms("O"), Atoms("H")], [cluster(5, (1, 6), seed=0)]])
def test_batches_that_cannot_be_compiled_run_eagerly(compiled: CompiledStep, atoms: list[Atoms]):
    dtype = compiled.parameters[0].dtype
    sample = batch_of([labelled(one, seed=0) for one in atoms], cutoff=CUTOFF, dtype=dtype)
    assert not fits_compilation(sample, Reach(CUTOFF))
    got, expected = (step(sample, weights(dtype)).loss for step in (compiled, compiled.eager))
    assert torch.equal(got, expected)


# The ways back to eager


class NothingToCompile:
    """In the place of the other process, where the step is replaced as well."""

    is_running = False

    def __init__(self, *job: object) -> None: ...

    def wait(self) -> CompiledProgram:
        return CompiledProgram(lambda *tensors: tensors, None)


def compiler_with(monkeypatch: pytest.MonkeyPatch, replacement: object, **options: object) -> tuple[StepCompiler, list[str]]:
    monkeypatch.setattr(compilation, "CompilingProcess", NothingToCompile)
    monkeypatch.setattr(compilation, "CompiledStep", replacement)
    arguments = {"mode": True, "total_steps": 10, **options}
    compiler = StepCompiler(small_model(torch.float64), LOSS, **arguments)  # type: ignore[arg-type]
    messages: list[str] = []
    compiler.tell = messages.append
    return compiler, messages


def distorted(change: str) -> type:
    """An eager step in the place of a compiled one, with one of its results changed."""

    class Distorted:
        def __init__(self, model: EnergyModel, loss: LossSection, *programs: CompiledProgram) -> None:
            self.eager, self.parameters, self.failure = EagerStep(model, loss), list(model.parameters()), None
            self.programs = [*programs]

        def program_for(self, batch: Batch, scales: Tensor) -> CompiledProgram:
            return self.programs[0]

        def __call__(self, sample: Batch, weights: Tensor) -> StepResult:
            result = self.eager(sample, weights)
            loss = result.loss * 1.01 if change == "loss" else result.loss
            if change == "nan gradients":
                loss = loss + (0.0 * self.parameters[0].sum()).sqrt()
            return StepResult(loss, result.sums, result.prediction)

    return Distorted


def fails(*arguments: object) -> CompiledStep:
    raise RuntimeError("no compiler here\nmany lines more")


def test_a_compiled_step_that_agrees_is_taken(monkeypatch):
    compiler, messages = compiler_with(monkeypatch, distorted("nothing"))
    step = compiler.step(0, batch(2, torch.float64), weights(torch.float64))
    assert step is compiler.compiled
    assert messages[0] == "compiling the training step; the run waits for it"
    assert "agree with eager" in messages[1]


def test_a_compiler_that_raises_leaves_eager_steps_and_the_reason(monkeypatch):
    compiler, messages = compiler_with(monkeypatch, distorted("nothing"))
    monkeypatch.setattr(NothingToCompile, "wait", fails)
    for number in range(3):
        assert compiler.step(number, batch(2, torch.float64), weights(torch.float64)) is compiler.eager
    assert messages[1:] == ["not compiled, eager steps go on: RuntimeError: no compiler here"]


@pytest.mark.parametrize(("change", "reason"), [("loss", "1.0e-02"), ("nan gradients", "nan")])
def test_a_compiled_step_that_differs_is_dropped_with_the_reason(monkeypatch, change: str, reason: str):
    compiler, messages = compiler_with(monkeypatch, distorted(change))
    assert compiler.step(0, batch(2, torch.float64), weights(torch.float64)) is compiler.eager
    assert compiler.compiled is None
    assert messages[1:] == [
        f"not compiled, eager steps go on: the compiled step differs from the eager one by {reason} (relative)"
    ]


def test_a_refusal_is_told_once_and_only_to_those_who_asked(monkeypatch):
    sample = batch(2, torch.float64)
    for mode, expected in ((True, ["not compiled: no compiler for this"]), ("auto", []), (False, [])):
        compiler, messages = compiler_with(
            monkeypatch, fails, mode=mode, refusal="no compiler for this", total_steps=WORTH_STEPS
        )
        for number in range(2):
            assert compiler.step(number, sample, weights(torch.float64)) is compiler.eager
        assert messages == expected


def test_short_runs_and_runs_told_not_to_are_not_compiled(monkeypatch):
    for options in ({"mode": "auto", "total_steps": WORTH_STEPS - 1}, {"mode": False, "total_steps": 10**6}):
        compiler, messages = compiler_with(monkeypatch, distorted("nothing"), **options)
        for number in (0, EAGER_STEPS, EAGER_STEPS + 1):
            assert compiler.step(number, batch(2, torch.float64), weights(torch.float64)) is compiler.eager
        assert messages == []


def test_a_long_run_switches_at_a_fixed_step(monkeypatch):
    """However long the other process takes: the same run gives the same bits."""
    compiler, messages = compiler_with(monkeypatch, distorted("nothing"), mode="auto", total_steps=WORTH_STEPS)
    for number in (0, 1, EAGER_STEPS - 1):
        assert compiler.step(number, batch(2, torch.float64), weights(torch.float64)) is compiler.eager
    assert messages == [f"compiling beside the training; compiled steps from step {EAGER_STEPS} on"]
    assert compiler.step(EAGER_STEPS, batch(2, torch.float64), weights(torch.float64)) is compiler.compiled


def test_steps_beside_the_compiler_leave_a_core_to_it(monkeypatch):
    compiler, _ = compiler_with(monkeypatch, distorted("nothing"), mode="auto", total_steps=WORTH_STEPS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for number in (0, 1, EAGER_STEPS, EAGER_STEPS + 1):
        compiler.step(number, batch(2, torch.float64), weights(torch.float64))
    assert chosen == [3, 4]


def test_a_compiler_that_fails_at_a_later_size_leaves_eager_steps_and_the_reason(monkeypatch):
    compiler, messages = compiler_with(monkeypatch, distorted("nothing"))
    sample = batch(2, torch.float64)
    step = compiler.step(0, sample, weights(torch.float64))
    step.failure = "RuntimeError: no more memory"
    assert compiler.step(1, sample, weights(torch.float64)) is compiler.eager
    assert messages[-1] == "not compiled any more, eager steps go on: RuntimeError: no more memory"


# Programs hold for some sizes of batches


def for_few_atoms(step: CompiledStep, sample: Batch, atoms: int) -> CompiledStep:
    """The same with a program that holds for batches of at most so many atoms."""
    tensors, numbers = step._tensors(sample, weights(torch.float64)), sample.graph.atomic_numbers
    place = next(place for place, tensor in enumerate(tensors) if tensor is numbers)
    step.programs = [CompiledProgram(step.programs[0]._function, f"L['t{place}'].size()[0] <= {atoms}")]
    return step


@pytest.fixture
def compiler_for_few_atoms(monkeypatch) -> tuple[StepCompiler, list[str]]:
    """Compiled for batches of two structures, not for more atoms."""
    sample = batch(2, torch.float64)

    class FewAtoms(TracingInThisProcess):
        def __init__(self, *job: Any) -> None:
            super().__init__(*job)
            for_few_atoms(self.step, sample, sample.graph.num_atoms)

    monkeypatch.setattr(compilation, "CompilingProcess", FewAtoms)
    monkeypatch.setattr(step_module, "compiled_program", as_traced)
    compiler = StepCompiler(small_model(torch.float64), LOSS, mode=True, total_steps=10)
    messages: list[str] = []
    compiler.tell = messages.append
    compiler.step(0, sample, weights(torch.float64))
    assert "agree with eager" in messages.pop()
    messages.clear()
    return compiler, messages


def test_other_sizes_are_compiled_again_where_they_come(compiler_for_few_atoms):
    compiler, messages = compiler_for_few_atoms
    small, large = (batch(num, torch.float64) for num in (2, 3))
    for number, sample in enumerate((small, large, small, large)):
        step = compiler.step(number, sample, weights(torch.float64))
        assert step is compiler.compiled
        assert step.program_for(sample, weights(torch.float64)) is step.programs[number % 2]
        assert largest_difference(step, sample, weights(torch.float64)) < TOLERANCE[torch.float64]
    sizes = f"{large.graph.num_atoms} atoms, {large.graph.num_edges} edges"
    assert messages == [f"compiling again for batches as large as this one: {sizes}"]


def test_sizes_beyond_the_last_program_run_eagerly(compiler_for_few_atoms, monkeypatch):
    compiler, messages = compiler_for_few_atoms
    monkeypatch.setattr(compilation, "MOST_PROGRAMS", 1)
    sample = batch(3, torch.float64)
    step = compiler.step(0, sample, weights(torch.float64))
    assert step is compiler.compiled
    assert step.program_for(sample, weights(torch.float64)) is None
    got, expected = (one(sample, weights(torch.float64)).loss for one in (step, step.eager))
    assert torch.equal(got, expected)
    assert messages == []


def test_other_sizes_that_cannot_be_compiled_end_the_compiled_steps(compiler_for_few_atoms, monkeypatch):
    compiler, messages = compiler_for_few_atoms
    monkeypatch.setattr(compilation, "program_of", fails)
    sample = batch(3, torch.float64)
    step = compiler.step(0, sample, weights(torch.float64))
    got, expected = (one(sample, weights(torch.float64)).loss for one in (step, compiler.eager))
    assert torch.equal(got, expected)
    assert compiler.step(1, sample, weights(torch.float64)) is compiler.eager
    assert messages[1:] == ["not compiled any more, eager steps go on: RuntimeError: no compiler here"]


# Another process


def test_another_process_compiles_what_this_one_needs():
    """A real process; the program that it leaves gives the eager result."""
    model, sample = small_model(torch.float32), batch(4, torch.float32)
    compiler = StepCompiler(model, LOSS, mode="auto", total_steps=WORTH_STEPS)
    messages: list[str] = []
    compiler.tell = messages.append
    assert compiler.step(0, sample, weights(torch.float32)) is compiler.eager
    assert compiler.is_awaited(EAGER_STEPS)
    assert not compiler.is_awaited(EAGER_STEPS - 1)
    step = compiler.step(EAGER_STEPS, sample, weights(torch.float32))
    assert not compiler.is_awaited(EAGER_STEPS)
    assert messages[0] == f"compiling beside the training; compiled steps from step {EAGER_STEPS} on"
    assert messages[1].startswith("compiled steps from here on (agree with eager; ")
    assert isinstance(step, CompiledStep)
    assert largest_difference(step, sample, weights(torch.float32)) < TOLERANCE[torch.float32]


def test_a_batch_that_cannot_be_compiled_leaves_the_decision_to_the_next(monkeypatch):
    compiler, messages = compiler_with(monkeypatch, distorted("nothing"))
    lonely = batch_of([labelled(Atoms("O"), seed=0)], cutoff=CUTOFF)
    assert compiler.step(0, lonely, weights(torch.float64)) is compiler.eager
    assert messages == []
    assert compiler.step(1, batch(2, torch.float64), weights(torch.float64)) is compiler.compiled


# Waiting for the device

WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::unique_dim", "aten::_unique2")


def small_task(device: str) -> TrainingTask:
    model = small_model(torch.float32)
    compiler = StepCompiler(model, LOSS, mode=False, total_steps=10)
    task = TrainingTask(model, TrainingSection(loss=LOSS), compiler, steps_per_epoch=10, total_steps=10).to(device)
    task.configure_optimizers()
    return task


def step_without_optimizer(task: TrainingTask, sample: Batch) -> None:
    task.training_step(sample, 0).backward()
    task.configure_gradient_clipping(task.optimizer)
    task.learning_rate.set_for(task.optimizer_steps)
    task.average.update()


def test_a_training_step_never_waits_for_the_device():
    """Loss, gradients, clipping, rate, average, error sums. torch's fused Adam is left out: on the CPU, and there only, it
    reads its count of steps back."""
    task, sample = small_task("cpu"), batch(3, torch.float32)
    step_without_optimizer(task, sample)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step_without_optimizer(task, sample)
    counts = {event.key: event.count for event in recorded.key_averages()}
    assert counts["aten::_foreach_norm"] == 1
    assert {name: counts[name] for name in WAITS if name in counts} == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_training_step_with_its_optimizer_never_waits_for_a_gpu():
    task, sample = small_task("cuda"), batch(3, torch.float32).to(torch.device("cuda"))
    for _ in range(2):
        step_without_optimizer(task, sample)
        task.optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_without_optimizer(task, sample)
        task.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
