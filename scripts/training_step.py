"""Our optimizer step alone on fixed batches: no gathering of batches, no validation, no Trainer.

A step is that of a run: energies, forces, loss and gradients by `TrainingTask`, clipping, optimizer, weight average.
`benchmark_training.py --step-only` runs this file, `profile_step.py` looks into its steps.

    python scripts/training_step.py configs/quickstart.toml --batches 20 --passes 6
"""

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from benchmark_sides import is_embedding

from modelforge.assembly import build_model, run_batches, total_steps_of
from modelforge.atoms.graph import Batch
from modelforge.data.prepare import prepare
from modelforge.experiment import Experiment, load
from modelforge.training.compilation import StepCompiler
from modelforge.training.loss import weights_of
from modelforge.training.task import TrainingTask


@dataclass(eq=False)
class TrainingStep:
    """A run's optimizer step, and some of its batches."""

    task: TrainingTask
    batches: list[Batch]

    def __call__(self, batch: Batch) -> None:
        """Train on a batch."""
        task = self.task
        task.learning_rate.set_for(task.steps)
        loss = task.training_step(batch, 0)
        task.optimizer.zero_grad()
        task.backward(loss)
        task.configure_gradient_clipping(task.optimizer)
        task.optimizer.step()
        task.average.update()

    @property
    def is_compiled(self) -> bool:
        """Whether the steps of now are compiled."""
        return self.task.compiler.compiled is not None


def training_step(experiment: Experiment, *, num_batches: int, beside: bool = True) -> TrainingStep:
    """The step of an experiment at its start, compiled at the first call if `runtime.compile` is true.

    `beside`: by another process, which does not know of changes to Inductor's settings in this one.
    """
    training, runtime = experiment.training, experiment.runtime
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    data = prepare(experiment.dataset, weights=weights_of(training.widest_loss), split_file=None, say=print)
    batches = run_batches(experiment, data)
    if num_batches > batches.steps_per_epoch:
        raise SystemExit(f"--batches: at most those of an epoch, {batches.steps_per_epoch} (got {num_batches})")
    model = build_model(experiment, data)
    total_steps = total_steps_of(experiment, batches.steps_per_epoch)
    is_compiled = runtime.compile is True
    compiler = StepCompiler(model, training.widest_loss, mode=is_compiled, total_steps=total_steps, beside=beside)
    compiler.tell = print
    task = TrainingTask(
        model,
        training,
        compiler,
        steps_per_epoch=batches.steps_per_epoch,
        total_steps=total_steps,
        num_subsets=len(data.structures.subset_names),
    )
    task.configure_optimizers()
    return TrainingStep(task, list(islice(batches.training(0, num_batches), num_batches)))


def main() -> None:
    """Take the steps and write figures.json."""
    options = _options()
    warnings.filterwarnings("ignore")
    experiment = load(options.config).experiment
    step = training_step(experiment, num_batches=options.batches)
    seconds = []
    for _ in range(options.passes):
        for batch in step.batches:
            step(batch)
        seconds.append(time.perf_counter())
    if experiment.runtime.compile is True and not step.is_compiled:
        raise SystemExit("the training step was not compiled, so there is no compiled figure")
    weights = [(name, weight.numel()) for name, weight in step.task.model.named_parameters() if weight.requires_grad]
    figures = {
        "seconds": seconds,
        "num_parameters": sum(size for _, size in weights),
        "num_embedding": sum(size for name, size in weights if is_embedding(name)),
        "versions": {"modelforge": version("modelforge"), "torch": torch.__version__},
    }
    Path("figures.json").write_text(json.dumps(figures), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our optimizer step alone on fixed batches, timed; writes figures.json.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--batches", type=int, default=20, help="the first of the first epoch")
    parser.add_argument("--passes", type=int, default=6, help="over these batches")
    return parser.parse_args()


if __name__ == "__main__":
    main()
