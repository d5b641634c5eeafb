"""Stretches: the batches from one validation to the next, which are the epochs of Lightning's Trainer here."""

from modelforge.data.module import DataModule
from modelforge.training.section import TrainingSection
from modelforge.training.task import TrainingTask


def next_stretch(data: DataModule, task: TrainingTask, section: TrainingSection) -> None:
    """Let the data module hand out the batches up to the next validation."""
    length = section.validation_interval(task.steps_per_epoch)
    data.first_step = task.steps
    data.last_step = max(task.steps, min((task.steps // length + 1) * length, task.total_steps))


def num_stretches(task: TrainingTask, section: TrainingSection) -> int:
    """Stretches that are still to come."""
    length = section.validation_interval(task.steps_per_epoch)
    return max(0, -(-task.total_steps // length) - task.steps // length)
