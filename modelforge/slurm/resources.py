"""What a job asks of SLURM: the options of `modelforge submit`, checked, and the nodes, tasks and GPUs that follow."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelforge.errors import UserError
from modelforge.slurm.time_limit import seconds_of

if TYPE_CHECKING:
    from modelforge.training.runtime import RuntimeSection

SECONDS_TO_STOP = 120
PART_OF_THE_TIME = 5  # at most a fifth of a short time limit is given up
GPUS = re.compile(r"(?:(?P<kind>[\w.-]+):)?(?P<number>\d+)")
MEMORY = re.compile(r"\d+[KMGT]?")
OWN_OPTIONS = {
    "array": "--config for each run",
    "chdir": "the folder where you call submit",
    "gpus-per-node": "--gpus-per-node",
    "no-requeue": "nothing: a run that is stopped is to go on",
    "nodes": "--nodes",
    "ntasks": "--nodes and --tasks-per-node",
    "ntasks-per-node": "--tasks-per-node",
    "open-mode": "nothing: a run that goes on keeps its log",
    "output": "--run-folder",
    "requeue": "nothing: it is always there",
    "signal": "--seconds-to-stop",
    "time": "--time",
}
"""Options of sbatch that the script sets itself, and what sets them here."""


@dataclass(frozen=True)
class Resources:
    """What is asked for; None where the experiment or the cluster decides."""

    nodes: int | None = None
    gpus_per_node: str | None = None
    """A number, or a kind and a number, such as `a100:4`."""
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    memory: str | None = None
    """Of a node, such as `32G`."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    seconds_to_stop: int | None = None
    """How long before the time limit the run is told to stop."""
    sbatch_options: tuple[str, ...] = ()
    """Further options of sbatch, such as `mail-type=END`."""
    setup: tuple[str, ...] = ()
    """Lines of the script before the run, such as `module load cuda`."""

    def __post_init__(self) -> None:
        """Refuse what SLURM would misread or the script would contradict."""
        if problems := list(self._problems()):
            raise UserError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        for name in ("nodes", "tasks_per_node", "cpus_per_task", "seconds_to_stop"):
            number = getattr(self, name)
            if number is not None and number < 1:
                yield f"--{name.replace('_', '-')}: must be at least 1 (got {number})"
        if self.gpus_per_node is not None and not GPUS.fullmatch(self.gpus_per_node):
            yield f"--gpus-per-node: must be a number or KIND:NUMBER, such as 4 or a100:4 (got {self.gpus_per_node!r})"
        if self.memory is not None and not MEMORY.fullmatch(self.memory):
            yield f"--memory: must be a number with K, M, G or T, such as 32G (got {self.memory!r})"
        if self.limit and self.seconds_to_stop and self.seconds_to_stop >= self.limit:
            yield f"--seconds-to-stop: must be less than --time {self.time} (got {self.seconds_to_stop})"
        for option in self.sbatch_options:
            name = re.split("[= ]", option.lstrip("-"))[0]
            if name in OWN_OPTIONS:
                yield f"--sbatch-option: {name} is set by {OWN_OPTIONS[name]} (got {option!r}); leave it out"
        for text in (
            *self.sbatch_options,
            *(text for text in (self.partition, self.account, self.qos, self.constraint) if text),
        ):
            if "\n" in text or not text.strip("- "):
                yield f"options of sbatch are one line each and not empty (got {text!r})"

    @property
    def limit(self) -> int | None:
        """The time limit in seconds."""
        return None if self.time is None else seconds_of(self.time)

    @property
    def seconds_before_the_end(self) -> int:
        """When the run is told to stop: what was asked for, or two minutes, or less where the time limit is short."""
        usual = SECONDS_TO_STOP if self.limit is None else min(SECONDS_TO_STOP, self.limit // PART_OF_THE_TIME)
        return self.seconds_to_stop or max(usual, 1)


@dataclass(frozen=True)
class Layout:
    """Nodes, and the processes and GPUs of each."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    gpu_kind: str = ""

    @property
    def gpus(self) -> str:
        """The GPUs of a node as sbatch takes them."""
        return f"{self.gpu_kind}:{self.gpus_per_node}" if self.gpu_kind else str(self.gpus_per_node)

    def __str__(self) -> str:
        return f"{self.nodes} x {self.tasks_per_node} tasks, {self.gpus_per_node} GPUs on each node"


def layout_of(resources: Resources, runtime: "RuntimeSection") -> Layout:
    """What is asked for, completed by what the experiment says: a process for each device, a GPU for each process."""
    devices = len(runtime.devices) if isinstance(runtime.devices, tuple) else runtime.devices
    wanted = devices if isinstance(devices, int) else 1
    if resources.gpus_per_node is not None and (match := GPUS.fullmatch(resources.gpus_per_node)):
        kind, gpus = match["kind"] or "", int(match["number"])
    else:
        kind, gpus = "", (resources.tasks_per_node or wanted) if runtime.accelerator in ("gpu", "cuda") else 0
    if not gpus and runtime.accelerator in ("gpu", "cuda"):
        raise UserError(
            f'--gpus-per-node: must be at least 1, as runtime.accelerator is "{runtime.accelerator}" (got 0); '
            'or train on the CPU with --set runtime.accelerator="cpu"'
        )
    per_gpu = gpus if gpus and runtime.accelerator != "cpu" else wanted
    return Layout(resources.nodes or runtime.num_nodes, resources.tasks_per_node or per_gpu, gpus, kind)


def settings_of(layout: Layout, runtime: "RuntimeSection") -> tuple[str, ...]:
    """The keys of the experiment that do not say what the layout says, as `--set` takes them."""
    devices = len(runtime.devices) if isinstance(runtime.devices, tuple) else runtime.devices
    settings: dict[str, tuple[object, object]] = {
        "num_nodes": (runtime.num_nodes, layout.nodes),
        "devices": (devices, layout.tasks_per_node),
    }
    if layout.gpus_per_node and runtime.accelerator == "auto":
        settings["accelerator"] = (runtime.accelerator, "gpu")  # one that fails is better than hours on the CPU
    return tuple(f"runtime.{key}={asked}" for key, (said, asked) in settings.items() if said != asked)
