"""The table of layouts: which jobs run which experiments, and what is said of the others."""

import time
from dataclasses import replace

import pytest

from modelforge.errors import UserError
from modelforge.slurm.allocation import Allocation
from modelforge.slurm.preflight import refuse_mismatch
from modelforge.training.runtime import RuntimeSection


def job(nodes: int = 1, tasks: int = 1, gpus: int = 0, **changes: object) -> Allocation:
    """A job whose tasks srun started, as its batch script asked."""
    usual = Allocation(
        job_id="1",
        job_name="train",
        num_nodes=nodes,
        num_tasks=nodes * tasks,
        tasks_per_node=(tasks,) * nodes,
        asked_tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=None,
        is_step=True,
        rank=0,
    )
    return replace(usual, **changes)


WITHOUT_SRUN = {"is_step": False}
NO_TASKS_ASKED = {"is_step": False, "num_tasks": None, "asked_tasks_per_node": None}
CPU = {"accelerator": "cpu"}

FITTING = {
    "one process": ({}, job(), 0),
    "two on the CPU": ({**CPU, "devices": 2}, job(1, 2), 0),
    "a GPU for each task": ({"devices": 4}, job(1, 4, 4), 4),
    "auto takes all GPUs": ({"num_nodes": 2}, job(2, 4, 4), 4),
    "indices within the job": ({"devices": [0, 1]}, job(1, 2, 2), 2),
    "a batch script without srun and tasks": (CPU, job(**NO_TASKS_ASKED), 0),
    "Lightning starts the others": ({"devices": 4}, job(1, 1, 4, **NO_TASKS_ASKED), 4),
    "one task, without srun": (CPU, job(**WITHOUT_SRUN), 0),
    "salloc": ({"devices": 2}, job(1, 1, 2, job_name="interactive", is_step=False), 2),
    "srun --pty bash": ({"devices": 2}, job(1, 1, 2, job_name="bash"), 2),
}

REFUSED = {
    "too many tasks": (
        {**CPU, "devices": 1},
        job(1, 2),
        0,
        "runtime.devices: the experiment asks for 1 node with 1 process each (devices = 1), but srun started 2 tasks on 1 node",
        ["#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1", "--set runtime.num_nodes=1 --set runtime.devices=2"],
    ),
    "too few tasks": (
        {"devices": 4},
        job(1, 1, 4),
        4,
        "asks for 1 node with 4 GPUs each (devices = 4), but srun started 1 task on 1 node",
        ["#SBATCH --ntasks-per-node=4", "#SBATCH --gpus-per-node=4", "--set runtime.devices=1"],
    ),
    "auto with more GPUs than tasks": (
        {},
        job(1, 2, 4),
        4,
        '1 node with 4 GPUs each (devices = "auto"), but srun started 2 tasks on 1 node',
        ["#SBATCH --ntasks-per-node=4", "--set runtime.devices=2"],
    ),
    "other nodes": (
        {"num_nodes": 2, "devices": 2},
        job(1, 2, 2),
        2,
        "runtime.num_nodes: the experiment asks for 2 nodes with 2 GPUs each (devices = 2), but the job has 1 node",
        ["#SBATCH --nodes=2", "--set runtime.num_nodes=1 --set runtime.devices=2"],
    ),
    "more nodes than asked": ({**CPU}, job(2, 1), 0, "but the job has 2 nodes", ["--set runtime.num_nodes=2"]),
    "more tasks than GPUs": (
        {"devices": 4},
        job(1, 4, 2),
        2,
        "asks for 1 node with 4 GPUs each (devices = 4), but the node has 2 GPUs for this job",
        ["#SBATCH --gpus-per-node=4"],
    ),
    "a GPU for each task alone": (
        {"devices": 4},
        job(1, 4, 4),
        1,
        "each task sees 1 of the 4 GPUs of its node, and needs to see all; leave out --gpus-per-task and --gpu-bind",
        ["#SBATCH --gpus-per-node=4"],
    ),
    "auto with a GPU for each task alone": ({}, job(1, 4, 4), 1, "sees 1 of the 4 GPUs", ["#SBATCH --ntasks-per-node=4"]),
    "no GPU": ({"accelerator": "gpu", "devices": 1}, job(), 0, '"gpu" needs GPUs, but this task of the job sees none', []),
    "indices of another count": (
        {"devices": [2, 3]},
        job(1, 2, 2),
        2,
        "must be indices below 2, counted within the job (got [2, 3]); or a number, --set runtime.devices=2",
        [],
    ),
    "tasks without srun": (
        {"devices": 2},
        job(1, 2, 2, **WITHOUT_SRUN),
        2,
        "the job has 2 tasks, but only this one was started; write srun before modelforge train",
        ["srun modelforge train"],
    ),
    "devices without srun": (
        {"devices": 2},
        job(1, 1, 2, **WITHOUT_SRUN),
        2,
        "but the job starts one process, and that without srun",
        ["#SBATCH --ntasks-per-node=2", "--set runtime.devices=1"],
    ),
    "nodes without srun": ({"num_nodes": 2, **CPU}, job(2, 1, **NO_TASKS_ASKED), 0, "without srun", ["#SBATCH --nodes=2"]),
    "--ntasks only": (
        {**CPU, "devices": 2},
        job(1, 2, asked_tasks_per_node=None),
        0,
        "asks for --ntasks=2, which Lightning does not take; it needs the tasks of each node",
        ["#SBATCH --ntasks-per-node=2"],
    ),
    "another srun than sbatch": (
        {**CPU, "devices": 2},
        job(1, 2, asked_tasks_per_node=4),
        0,
        "srun started 2 tasks on each node, but the job asked for --ntasks-per-node=4",
        ["#SBATCH --ntasks-per-node=2"],
    ),
    "uneven tasks": (
        {**CPU, "num_nodes": 2, "devices": 2},
        job(2, 2, tasks_per_node=(3, 1)),
        0,
        "but the tasks are spread over the nodes as 3, 1",
        ["#SBATCH --ntasks-per-node=2"],
    ),
    "tasks in an interactive job": (
        {"devices": 2},
        job(1, 2, 2, job_name="interactive"),
        2,
        "srun started 2 tasks in a job named 'interactive', in which each of them would start all processes itself; name the "
        "step with srun --job-name=train",
        [],
    ),
    "nodes in an interactive job": (
        {"num_nodes": 2, "devices": 2},
        job(2, 1, 2, job_name="bash", is_step=False),
        2,
        "runtime.num_nodes: must be 1 in a job named 'bash', in which no other node is reached (got 2); start it with srun "
        "--job-name=train --nodes=2 --ntasks-per-node=2",
        [],
    ),
}


@pytest.mark.parametrize(("runtime", "allocation", "num_gpus"), FITTING.values(), ids=FITTING)
def test_what_fits_is_let_through_without_a_word(runtime: dict, allocation: Allocation, num_gpus: int) -> None:
    assert refuse_mismatch(RuntimeSection(**runtime), allocation, num_visible_gpus=num_gpus) == []


@pytest.mark.parametrize(("runtime", "allocation", "num_gpus", "message", "lines"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_the_lines_that_would(
    runtime: dict, allocation: Allocation, num_gpus: int, message: str, lines: list[str]
) -> None:
    begun = time.perf_counter()
    with pytest.raises(UserError) as error:
        refuse_mismatch(RuntimeSection(**runtime), allocation, num_visible_gpus=num_gpus)
    assert time.perf_counter() - begun < 1
    for text in (message, *lines):
        assert text in str(error.value)


@pytest.mark.parametrize("case", ["more tasks than GPUs", "tasks without srun", "uneven tasks", "no GPU"])
def test_no_setting_is_offered_where_none_would_help(case: str) -> None:
    runtime, allocation, num_gpus, _, _ = REFUSED[case]
    with pytest.raises(UserError) as error:
        refuse_mismatch(RuntimeSection(**runtime), allocation, num_visible_gpus=num_gpus)
    assert "for the job as it is" not in str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_the_settings_that_are_offered_do_help(case: str) -> None:
    runtime, allocation, num_gpus, _, _ = REFUSED[case]
    with pytest.raises(UserError) as error:
        refuse_mismatch(RuntimeSection(**runtime), allocation, num_visible_gpus=num_gpus)
    if "for the job as it is: " not in str(error.value):
        return
    words = str(error.value).rpartition("for the job as it is: ")[2].split()
    settings = (word.removeprefix("runtime.").split("=") for word in words if "=" in word)
    offered = {**runtime, **{key: int(value) for key, value in settings}}
    refuse_mismatch(RuntimeSection(**offered), allocation, num_visible_gpus=num_gpus)


@pytest.mark.parametrize(
    ("runtime", "allocation", "num_gpus", "note"),
    [
        (CPU, job(1, 1, 4), 4, "the job has 4 GPUs on each node, but the run takes the CPU"),
        ({}, job(1, 1, 1), 0, "the job has 1 GPU on each node, but the run takes the CPU"),
        ({"devices": 2}, job(1, 2, 4), 4, "the job has 4 GPUs on each node, of which the run uses 2"),
    ],
)
def test_what_would_be_wasted_is_noted(runtime: dict, allocation: Allocation, num_gpus: int, note: str) -> None:
    assert refuse_mismatch(RuntimeSection(**runtime), allocation, num_visible_gpus=num_gpus) == [note]


def test_outside_a_job_nothing_is_refused() -> None:
    assert refuse_mismatch(RuntimeSection(devices=8, num_nodes=3), None, num_visible_gpus=0) == []
