"""Whether a job and an experiment fit together, found before anything waits for ranks that nobody starts.

Under srun each task is one process with one device, so there must be `devices` tasks on each of `num_nodes` nodes. Without
srun, and in jobs named `bash` or `interactive`, Lightning starts the processes of one node itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelforge.errors import UserError
from modelforge.slurm.allocation import Allocation

if TYPE_CHECKING:
    from modelforge.training.runtime import RuntimeSection


@dataclass(frozen=True)
class Asked:
    """What an experiment asks of a job."""

    nodes: int
    devices: int
    """On each node."""
    on_gpus: bool
    accelerator: str
    """As the TOML says it."""
    said_devices: str
    """The value of `devices` in the TOML."""
    largest_index: int
    """Of the devices."""

    @property
    def processes(self) -> int:
        """Over all nodes."""
        return self.nodes * self.devices

    def __str__(self) -> str:
        kind = "GPU" if self.on_gpus else "process"
        return f"{_counted(self.nodes, 'node')} with {_counted(self.devices, kind)} each (devices = {self.said_devices})"


def refuse_mismatch(runtime: "RuntimeSection", allocation: Allocation | None, *, num_visible_gpus: int) -> list[str]:
    """Stop if the job cannot run the experiment, with the lines that would; gives notes on what would be wasted.

    `num_visible_gpus`: those that this process can use.
    """
    if allocation is None:
        return []
    asked = asked_of(runtime, allocation, num_visible_gpus)
    if problems := list(_problems(asked, allocation, num_visible_gpus)):
        raise UserError("\n".join([*problems, *_remedy(asked, allocation, num_visible_gpus)]))
    return list(_notes(asked, allocation))


def asked_of(runtime: "RuntimeSection", allocation: Allocation, num_visible_gpus: int) -> Asked:
    """The experiment's layout on this machine: `auto` takes all GPUs of the node, or one process on the CPU."""
    on_gpus = runtime.accelerator != "cpu" and (runtime.accelerator != "auto" or num_visible_gpus > 0)
    if isinstance(runtime.devices, tuple):
        devices, said, largest = len(runtime.devices), str(list(runtime.devices)), max(runtime.devices)
    elif runtime.devices == "auto":
        devices = max(num_visible_gpus, allocation.gpus_per_node, 1) if on_gpus else 1
        said, largest = '"auto"', devices - 1
    else:
        devices, said, largest = runtime.devices, str(runtime.devices), runtime.devices - 1
    return Asked(runtime.num_nodes, devices, on_gpus, runtime.accelerator, said, largest)


def _problems(asked: Asked, job: Allocation, num_visible_gpus: int) -> Iterator[str]:
    """What is wrong: how it was started, how many tasks there are, which GPUs."""
    if job.is_interactive:
        yield from _interactive_problems(asked, job)
    elif not job.is_step:
        yield from _problems_without_srun(asked, job)
    else:
        yield from _layout_problems(asked, job)
    if asked.on_gpus:
        yield from _gpu_problems(asked, job, num_visible_gpus)


def _interactive_problems(asked: Asked, job: Allocation) -> Iterator[str]:
    if job.is_step and (job.num_tasks or 1) > 1:
        yield (
            f"srun started {job.num_tasks} tasks in a job named {job.job_name!r}, in which each of them would start all "
            "processes itself; name the step with srun --job-name=train, or start it without srun"
        )
    elif asked.nodes > 1:
        yield (
            f"runtime.num_nodes: must be 1 in a job named {job.job_name!r}, in which no other node is reached "
            f"(got {asked.nodes}); start it with srun --job-name=train --nodes={asked.nodes} "
            f"--ntasks-per-node={asked.devices} modelforge train ..."
        )


def _problems_without_srun(asked: Asked, job: Allocation) -> Iterator[str]:
    """Started by a batch script itself; where a number of tasks was asked for, Lightning counts on srun for the others."""
    if (job.num_tasks or 1) > 1:
        yield f"the job has {job.num_tasks} tasks, but only this one was started; write srun before modelforge train"
    elif asked.processes > 1 and (job.num_tasks is not None or asked.nodes > 1):
        yield f"runtime.devices: the experiment asks for {asked}, but the job starts one process, and that without srun"


def _layout_problems(asked: Asked, job: Allocation) -> Iterator[str]:
    tasks = job.num_tasks or 1
    if job.num_nodes != asked.nodes:
        yield f"runtime.num_nodes: the experiment asks for {asked}, but the job has {_counted(job.num_nodes, 'node')}"
    elif tasks != asked.processes:
        started = f"{_counted(tasks, 'task')} on {_counted(job.num_nodes, 'node')}"
        yield f"runtime.devices: the experiment asks for {asked}, but srun started {started}"
    elif set(job.tasks_per_node) - {asked.devices}:
        spread = ", ".join(map(str, job.tasks_per_node))
        yield f"runtime.devices: the experiment asks for {asked}, but the tasks are spread over the nodes as {spread}"
    elif tasks > 1 and job.asked_tasks_per_node is None:
        yield f"the job asks for --ntasks={tasks}, which Lightning does not take; it needs the tasks of each node"
    elif tasks > 1 and job.asked_tasks_per_node != asked.devices:
        yield (
            f"srun started {_counted(asked.devices, 'task')} on each node, but the job asked for "
            f"--ntasks-per-node={job.asked_tasks_per_node}, which Lightning goes by"
        )


def _gpu_problems(asked: Asked, job: Allocation, num_visible_gpus: int) -> Iterator[str]:
    if num_visible_gpus == 0:
        yield f'runtime.accelerator: "{asked.accelerator}" needs GPUs, but this task of the job sees none'
    elif asked.devices > num_visible_gpus and job.gpus_per_node > num_visible_gpus:
        yield (
            f"runtime.devices: each task sees {num_visible_gpus} of the {job.gpus_per_node} GPUs of its node, and needs to "
            "see all; leave out --gpus-per-task and --gpu-bind"
        )
    elif asked.devices > num_visible_gpus:
        gpus = _counted(num_visible_gpus, "GPU")
        yield f"runtime.devices: the experiment asks for {asked}, but the node has {gpus} for this job"
    elif asked.largest_index >= num_visible_gpus:
        yield (
            f"runtime.devices: must be indices below {num_visible_gpus}, counted within the job (got {asked.said_devices}); "
            f"or a number, --set runtime.devices={asked.devices}"
        )


def _remedy(asked: Asked, job: Allocation, num_visible_gpus: int) -> Iterator[str]:
    """The lines of a batch script for the experiment, and the settings for the job as it is."""
    yield "For the experiment as it is, the batch script needs"
    yield f"  #SBATCH --nodes={asked.nodes}"
    yield f"  #SBATCH --ntasks-per-node={asked.devices}"
    if asked.on_gpus:
        yield f"  #SBATCH --gpus-per-node={asked.devices}"
    yield "  srun modelforge train ..."
    tasks = max(job.tasks_per_node, default=job.num_tasks or 1)
    other = replace(asked, nodes=job.num_nodes, devices=tasks, largest_index=tasks - 1)
    if not list(_problems(other, job, num_visible_gpus)):
        yield f"or, for the job as it is: --set runtime.num_nodes={other.nodes} --set runtime.devices={other.devices}"


def _notes(asked: Asked, job: Allocation) -> Iterator[str]:
    if job.gpus_per_node and not asked.on_gpus:
        yield f"the job has {_counted(job.gpus_per_node, 'GPU')} on each node, but the run takes the CPU"
    elif job.gpus_per_node > asked.devices:
        yield f"the job has {job.gpus_per_node} GPUs on each node, of which the run uses {asked.devices}"


def _counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
