"""Why a stage or a whole run ends, and what it waits for until then, in words."""

from modelforge.training.progress import Progress
from modelforge.training.section import TrainingSection
from modelforge.training.task import TrainingTask


def early_stopping(section: TrainingSection, progress: Progress) -> str | None:
    """The reason, if the validation loss has not improved for too long."""
    patience = section.early_stopping.patience
    if patience is None or progress.validations_without_improvement < patience:
        return None
    return f"early stopping: no improvement of the validation loss in {patience} validations"


def second_stage_due(section: TrainingSection, progress: Progress, task: TrainingTask) -> str | None:
    """The reason, if the second of two stages begins now: its epoch, or early stopping of the first one."""
    start = section.second_stage.start_epoch
    if start is None or task.is_second_stage or task.steps >= task.total_steps:
        return None
    if task.steps / task.steps_per_epoch >= start:
        return f"second_stage.start_epoch ({start:g}) reached"
    return early_stopping(section, progress)


def length_reached(section: TrainingSection, task: TrainingTask) -> str:
    """The reason of a run that ends because it is as long as it was to be."""
    if not task.total_steps:
        return "solved in closed form"
    has_all_steps = section.max_steps is not None and task.optimizer_steps >= section.max_steps
    return "max_steps reached" if has_all_steps else "max_epochs reached"


def waiting_for(section: TrainingSection, progress: Progress, task: TrainingTask) -> str:
    """What the learning rate and early stopping wait for."""
    patience = section.early_stopping.patience
    stopping = f"stop {progress.validations_without_improvement}/{patience}" if patience else None
    return ", ".join(filter(None, [task.learning_rate.in_words(), stopping]))
