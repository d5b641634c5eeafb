"""What SLURM gave to this process: nodes, tasks, GPUs and the end of the job, as its environment variables say.

Reference: the sections "output environment variables" of `man sbatch` and `man srun`.
"""

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

INTERACTIVE_NAMES = ("bash", "interactive")
SECONDS_TO_ANSWER = 10.0
REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Allocation:
    """What a job has, or a step of it, if srun started this process."""

    job_id: str
    """As `scontrol` and `squeue` take it: `123`, or `123_4` for a task of an array."""
    job_name: str
    num_nodes: int
    num_tasks: int | None
    """None where nobody asked for a number of tasks."""
    tasks_per_node: tuple[int, ...]
    """The tasks of each node; empty where that is not known."""
    asked_tasks_per_node: int | None
    """What --ntasks-per-node said, if it was given."""
    gpus_per_node: int
    cpus_per_task: int | None
    is_step: bool
    """Whether srun started this process."""
    rank: int

    @property
    def is_interactive(self) -> bool:
        """Whether Lightning takes no notice of SLURM and starts the processes of this node itself."""
        return self.job_name in INTERACTIVE_NAMES


def read_allocation(environ: Mapping[str, str]) -> Allocation | None:
    """The allocation that the environment tells of; None outside a job."""
    if "SLURM_JOB_ID" not in environ:
        return None
    is_step = "SLURM_STEP_ID" in environ
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") if is_step else environ.get("SLURM_TASKS_PER_NODE")
    return Allocation(
        job_id=job_id_of(environ),
        job_name=environ.get("SLURM_JOB_NAME", ""),
        num_nodes=_number(environ, "SLURM_STEP_NUM_NODES" if is_step else "SLURM_NNODES", "SLURM_NNODES") or 1,
        num_tasks=_number(environ, "SLURM_NTASKS"),
        tasks_per_node=counts(tasks or ""),
        asked_tasks_per_node=_number(environ, "SLURM_NTASKS_PER_NODE"),
        gpus_per_node=_gpus(environ),
        cpus_per_task=_number(environ, "SLURM_CPUS_PER_TASK"),
        is_step=is_step,
        rank=_number(environ, "SLURM_PROCID") or 0,
    )


def job_id_of(environ: Mapping[str, str]) -> str:
    """The id of the job; of an array the task's, as the plain number of one of its tasks names the whole array."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def end_time(environ: Mapping[str, str]) -> float | None:
    """When SLURM ends this job, in unix seconds; None outside a job, without a limit, or where nobody can tell."""
    if "SLURM_JOB_ID" not in environ:
        return None
    told = environ.get("SLURM_JOB_END_TIME") or _end_in_queue(environ)
    return float(told) if told.isdigit() and int(told) > 0 else None


def counts(text: str) -> tuple[int, ...]:
    """Counts of nodes as SLURM writes them: `4(x2),3` is 4, 4, 3."""
    return tuple(int(count) for count, times in REPEATED.findall(text) for _ in range(int(times or 1)))


def _end_in_queue(environ: Mapping[str, str]) -> str:
    """What squeue says of the end, in unix seconds; empty if there is no squeue or it does not answer."""
    command = ["squeue", "--noheader", "--jobs", job_id_of(environ), "--format", "%e"]
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            command,
            env={**environ, "SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
            check=True,
        )
        return told.stdout.strip()
    return ""


def _gpus(environ: Mapping[str, str]) -> int:
    """GPUs of this node: their number, or what was asked for (`4` or `a100:4`), or the list of their indices (`0,1`)."""
    if (number := _number(environ, "SLURM_GPUS_ON_NODE")) is not None:
        return number
    if asked := environ.get("SLURM_GPUS_PER_NODE"):
        return sum(int(part.rpartition(":")[2]) for part in asked.split(","))
    return len(list(filter(None, environ.get("SLURM_JOB_GPUS", "").split(","))))


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is there and a number."""
    return next((int(environ[name]) for name in names if environ.get(name, "").isdigit()), None)
