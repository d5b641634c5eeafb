"""What the environment of a job says; the values are those of a real SLURM 22.05."""

import time
from pathlib import Path

import pytest

from modelforge.slurm.allocation import Allocation, counts, end_time, job_id_of, read_allocation

BATCH = {
    "SLURM_JOB_ID": "6",
    "SLURM_JOB_NAME": "x",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_PROCID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_PROCID": "1",
}


def test_outside_a_job_there_is_no_allocation() -> None:
    assert read_allocation({"PATH": "/bin"}) is None


def test_a_batch_script_is_known_from_a_step() -> None:
    batch = Allocation("6", "x", 1, 2, (2,), 2, 0, 2, is_step=False, rank=0)
    assert read_allocation(BATCH) == batch
    assert read_allocation(STEP) == Allocation("6", "x", 1, 2, (2,), 2, 0, 2, is_step=True, rank=1)


def test_a_step_may_have_less_than_its_job() -> None:
    found = read_allocation({**STEP, "SLURM_NNODES": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"})
    assert found is not None
    assert (found.num_nodes, found.num_tasks, found.tasks_per_node) == (2, 2, (1, 1))


def test_nobody_asked_for_a_number_of_tasks() -> None:
    environ = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "e.sh", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "1"}
    assert read_allocation(environ) == Allocation("1", "e.sh", 1, None, (1,), None, 0, None, is_step=False, rank=0)


@pytest.mark.parametrize(("text", "expected"), [("4(x2),3", (4, 4, 3)), ("2", (2,)), ("1(x3)", (1, 1, 1)), ("", ())])
def test_counts_of_nodes(text: str, expected: tuple[int, ...]) -> None:
    assert counts(text) == expected


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_GPUS": "0"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:2,v100:1"}, 3),
        ({"SLURM_JOB_GPUS": "0,3"}, 2),
        ({}, 0),
    ],
)
def test_gpus_of_a_node(environ: dict[str, str], gpus: int) -> None:
    found = read_allocation({**BATCH, **environ})
    assert found is not None
    assert found.gpus_per_node == gpus


@pytest.mark.parametrize(("name", "interactive"), [("bash", True), ("interactive", True), ("train", False)])
def test_jobs_that_lightning_takes_for_interactive(name: str, interactive: bool) -> None:
    found = read_allocation({**BATCH, "SLURM_JOB_NAME": name})
    assert found is not None
    assert found.is_interactive is interactive


def test_a_task_of_an_array_has_a_name_of_its_own() -> None:
    assert job_id_of({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}) == "10_3"


def test_the_end_of_a_job_is_in_the_environment(tmp_path: Path) -> None:
    assert end_time({**STEP, "SLURM_JOB_END_TIME": "1700000000"}) == 1700000000.0
    assert end_time({"SLURM_JOB_END_TIME": "1700000000"}) is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 1700000000", 1700000000.0),
        ("echo NONE", None),  # no limit
        ("echo 1700000000; exit 1", None),
        ('[ "$SLURM_TIME_FORMAT $*" = "%s --noheader --jobs 6 --format %e" ] && echo 17', 17.0),
    ],
)
def test_otherwise_squeue_is_asked(tmp_path: Path, script: str, expected: float | None, monkeypatch) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert end_time({**STEP, "PATH": f"{tmp_path}:/bin"}) == expected


def test_without_squeue_nobody_knows_the_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_time({**STEP, "PATH": str(tmp_path)}) is None


def test_a_squeue_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr("modelforge.slurm.allocation.SECONDS_TO_ANSWER", 0.2)
    begun = time.monotonic()
    assert end_time({**STEP, "PATH": f"{tmp_path}:/bin"}) is None
    assert time.monotonic() - begun < 10
