"""`submit`: look at the experiments, write their batch script, hand it to SLURM, and say how to follow the job."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelforge.errors import UserError
from modelforge.experiment import LoadedExperiment, load
from modelforge.files import write_text
from modelforge.run_folder import RunFolder
from modelforge.slurm.allocation import Allocation
from modelforge.slurm.batch_script import BatchJob, PlannedRun, batch_script
from modelforge.slurm.preflight import refuse_mismatch
from modelforge.slurm.queue import refuse_without_slurm, state_of, submit_script
from modelforge.slurm.resources import Layout, Resources, layout_of, settings_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class CheckedRun:
    """A run that may be submitted, and what it needs."""

    loaded: LoadedExperiment
    folder: RunFolder
    layout: Layout
    settings: tuple[str, ...]

    @property
    def is_on_cpu(self) -> bool:
        """Whether it leaves GPUs alone."""
        return self.loaded.experiment.runtime.accelerator == "cpu"

    @property
    def job_file(self) -> Path:
        """Which job was submitted for it last."""
        return self.folder.path / "slurm" / "job_id"


def submit(
    configs: Sequence[Path],
    settings: Sequence[str],
    resources: Resources,
    *,
    max_at_once: int | None,
    is_dry_run: bool,
    say: Say,
) -> str:
    """Submit one experiment, or several as an array; gives the script if nothing is to be done yet, else the job's id.

    `say` is told all the rest. Empty where every run is finished.
    """
    runs = [run for config in configs if (run := checked_run(config, settings, resources, say)) is not None]
    if not runs:
        return ""
    _refuse_unequal(runs)
    job = batch_job(runs, settings, resources, max_at_once)
    if is_dry_run:
        return batch_script(job)
    refuse_without_slurm()
    for run in runs:
        refuse_queued(run)
    return _hand_in(job, runs, say)


def checked_run(config: Path, settings: Sequence[str], resources: Resources, say: Say) -> CheckedRun | None:
    """What can be known of a run without its data; None if it is finished."""
    loaded = load(config, settings)
    folder = RunFolder(Path(loaded.experiment.runtime.run_folder))
    folder.refuse_other_experiment(loaded.experiment)
    folder.refuse_unwritable()
    if folder.finished_results(loaded.experiment) is not None:
        say(f"this run is finished: {folder.path}")
        return None
    layout = layout_of(resources, loaded.experiment.runtime)
    own = settings_of(layout, loaded.experiment.runtime)
    runtime = load(config, [*settings, *own]).experiment.runtime
    try:
        notes = refuse_mismatch(runtime, _planned(layout), num_visible_gpus=layout.gpus_per_node)
    except UserError as error:
        raise UserError(loaded.with_places(str(error))) from error
    for note in notes:
        say(f"note: {note}")
    return CheckedRun(loaded, folder, layout, own)


def batch_job(
    runs: Sequence[CheckedRun], settings: Sequence[str], resources: Resources, max_at_once: int | None = None
) -> BatchJob:
    """The job of these runs."""
    planned = tuple(PlannedRun(run.loaded.path.absolute(), run.folder.path) for run in runs)
    folder = script_folder([run.run_folder for run in planned])
    return BatchJob(
        name=folder.parent.name if len(planned) == 1 else folder.name,
        script=folder / "train.sbatch",
        runs=planned,
        settings=(*settings, *dict.fromkeys(setting for run in runs for setting in run.settings)),
        resources=resources,
        layout=runs[0].layout,
        working_folder=Path.cwd(),
        max_at_once=max_at_once,
    )


def script_folder(run_folders: Sequence[Path]) -> Path:
    """`slurm` in the run folder; for several a folder beside them, named by a hash of their names."""
    if len(run_folders) == 1:
        return run_folders[0] / "slurm"
    names = "\n".join(map(str, run_folders))
    return (
        Path(os.path.commonpath([folder.parent for folder in run_folders]))
        / f"array-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    )


def refuse_queued(run: CheckedRun) -> None:
    """Two jobs in one run folder would write over each other."""
    if not run.job_file.exists():
        return
    job_id = run.job_file.read_text().strip()
    if (state := state_of(job_id)) is not None:
        raise UserError(
            f"{run.folder.path}: job {job_id} is {state.lower()} for this run folder; wait for it, or end it with "
            f"scancel {job_id}"
        )


def _hand_in(job: BatchJob, runs: Sequence[CheckedRun], say: Say) -> str:
    for folder in (job.script.parent, *(run.job_file.parent for run in runs)):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(job.script, batch_script(job))
    job_id = submit_script(job.script)
    for task, run in enumerate(runs):
        write_text(run.job_file, f"{job_id}_{task}\n" if job.is_array else f"{job_id}\n")
    log = job.log.replace("%A", job_id).replace("%j", job_id).replace("%a", "*").replace("%%", "%")
    say(f"submitted {job.script}")
    say(f"log: {log}")
    say(f"follow it: squeue --jobs {job_id}; tail -F {log}")
    say(f"stop it: scancel {job_id}; it saves, and the same command submits the rest")
    return job_id


def _refuse_unequal(runs: Sequence[CheckedRun]) -> None:
    """The tasks of an array get the same resources, the same settings, and each its own folder."""
    first = runs[0]
    for index, run in enumerate(runs[1:], start=1):
        if run.folder in (other.folder for other in runs[:index]):
            raise UserError(f"{run.loaded.path}: has the run folder of another --config, {run.folder.path}; give each its own")
        if (run.layout, run.is_on_cpu) != (first.layout, first.is_on_cpu):
            raise UserError(
                f"{run.loaded.path}: asks for other devices than {first.loaded.path} ({run.layout}; {first.layout}), "
                "but the tasks of an array are alike; submit them one by one, or give runtime.num_nodes, runtime.devices and "
                "runtime.accelerator with --set"
            )


def _planned(layout: Layout) -> Allocation:
    """The allocation that the written script will get."""
    return Allocation(
        job_id="",
        job_name="train",
        num_nodes=layout.nodes,
        num_tasks=layout.nodes * layout.tasks_per_node,
        tasks_per_node=(layout.tasks_per_node,) * layout.nodes,
        asked_tasks_per_node=layout.tasks_per_node,
        gpus_per_node=layout.gpus_per_node,
        cpus_per_task=None,
        is_step=True,
        rank=0,
    )
