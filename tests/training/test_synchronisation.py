"""A training step never waits for the device: nothing of a real run's steps reads a tensor back, Lightning's part included."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from toy_experiment import TOML, waters
from traced_programs import TracingInThisProcess

from modelforge.atoms.graph import Batch
from modelforge.data.batching.order import TrainingBatches
from modelforge.experiment import load
from modelforge.train import train
from modelforge.training import compilation
from modelforge.training import task as task_module
from modelforge.training.step import CompiledStep
from modelforge.training.task import TrainingTask

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # what Inductor imports

WAITS = {
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
}
FIRST, NUM_STEPS = 4, 10  # steps that are watched, all of one epoch
SETTINGS = (
    "dataset.split.counts=[34, 2, 0]",
    "dataset.audit=report",  # the labels are made up
    "training.batch_size=2",
    "training.max_epochs=1",
    "runtime.log_interval=3600",
    "runtime.num_threads=1",
)


GATHERING = "gathering of a batch"  # it works on tables in the host's memory, so nothing that it reads is waited for


class Watch:
    """Counts the operations between the beginning of one training step and that of a later one, without the gathering."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.steps = 0

    def __call__(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def training_step(task: TrainingTask, batch: Batch, batch_idx: int) -> Tensor:
            if self.steps == FIRST:
                self.profiler.start()
            if self.steps == FIRST + NUM_STEPS:
                self.profiler.stop()
            self.steps += 1
            return real(task, batch, batch_idx)

        return training_step

    def counts(self) -> Counter[str]:
        return Counter(event.name for event in self.profiler.events() if not of_gathering(event))


def of_gathering(event: FunctionEvent | None) -> bool:
    return event is not None and (event.name == GATHERING or of_gathering(event.cpu_parent))


def marked(real: Callable[[TrainingBatches], Iterator[Batch]]) -> Callable[[TrainingBatches], Iterator[Batch]]:
    """Batches whose gathering has a name in the profile."""

    def batches(self: TrainingBatches) -> Iterator[Batch]:
        iterator = real(self)
        for _ in range(len(self)):
            with record_function(GATHERING):
                batch = next(iterator)
            yield batch

    return batches


def plain_descent(section: object, model: nn.Module) -> torch.optim.Optimizer:
    """In the place of Adam, which reads its count of steps back on the CPU, and there only."""
    return torch.optim.SGD(model.parameters(), lr=1e-6)


@pytest.fixture
def counts_of_a_run(tmp_path: Path, monkeypatch) -> Iterator[Callable[..., Counter[str]]]:
    def run(*settings: str) -> Counter[str]:
        (tmp_path / "water.xyz").write_text(waters(36))
        (tmp_path / "x.toml").write_text(TOML)
        watch = Watch()
        monkeypatch.setattr(task_module, "build_optimizer", plain_descent)
        monkeypatch.setattr(TrainingBatches, "__iter__", marked(TrainingBatches.__iter__))
        monkeypatch.setattr(TrainingTask, "training_step", watch(TrainingTask.training_step))
        train(load(tmp_path / "x.toml", [*SETTINGS, *settings]), Console(file=io.StringIO()))
        assert watch.steps == 17
        return watch.counts()

    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_eager_step_reads_nothing_back(counts_of_a_run, precision):
    counts = counts_of_a_run("runtime.compile=false", f'runtime.precision="{precision}"')
    assert counts["aten::_foreach_norm"] == NUM_STEPS, "the steps were not all there"
    assert {name: counts[name] for name in WAITS & counts.keys()} == {}


def test_a_compiled_step_reads_nothing_back(counts_of_a_run, monkeypatch):
    compiled: list[str | None] = []
    monkeypatch.setattr(compilation, "CompilingProcess", TracingInThisProcess)
    made = CompiledStep.__call__

    def call(step: CompiledStep, *arguments: Any) -> Any:
        compiled.append(step.failure)
        return made(step, *arguments)

    monkeypatch.setattr(CompiledStep, "__call__", call)
    counts = counts_of_a_run("runtime.compile=true")
    assert set(compiled) == {None}
    assert len(compiled) >= NUM_STEPS, "the steps were not compiled"
    assert counts["aten::_foreach_norm"] == NUM_STEPS
    assert {name: counts[name] for name in WAITS & counts.keys()} == {}
