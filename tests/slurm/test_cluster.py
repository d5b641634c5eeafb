"""Real runs as jobs of a real SLURM: to the end, over a time limit, after scancel and preemption, as an array, as two tasks.

What must wait for SLURM's clock, which looks at time limits every 30 s, goes on while other jobs run.
"""

import csv
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_slurm import NUM_CPUS, PrivateSlurm, await_that
from typer.testing import CliRunner

from modelforge.cli import app
from modelforge.slurm.allocation import Allocation

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
TIMES = {"seconds", "structures_per_second"}
LONG = ("--set", "training.max_epochs=150")  # some seconds of training
TELL = """\
import os, time
from modelforge.slurm.allocation import end_time, read_allocation
print(f"{read_allocation(os.environ)} in {end_time(os.environ) - time.time():.0f}\\n", end="", flush=True)
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


@pytest.fixture(scope="module")
def new_experiment(structures: Path) -> Iterator:
    """Makes TOMLs of equal content, each with a run folder of its own."""
    text = (structures / "x.toml").read_text()

    def make(name: str) -> Path:
        (structures / f"{name}.toml").write_text(text)
        return structures / f"{name}.toml"

    return make


def run_folder(config: Path) -> Path:
    return config.parent / "runs" / config.stem


def submit(slurm: PrivateSlurm, *words: str) -> str:
    """The id of the job."""
    result = CliRunner().invoke(app, ["submit", *words], env=slurm.environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def log_of(config: Path, job_id: str) -> str:
    return (run_folder(config) / "slurm" / f"{job_id}.log").read_text()


def rows(config: Path) -> list[dict[str, str]]:
    with (run_folder(config) / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def await_training(config: Path) -> None:
    """Until there is a row of metrics."""
    metrics = run_folder(config) / "metrics.csv"
    await_that(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 1, f"{config} trains", seconds=180)


def process_of(config: Path) -> int:
    """The process that trains."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0") if (folder / "cmdline").exists() else []
        if str(config).encode() in words and b"srun" not in words[0]:
            return int(folder.name)
    raise AssertionError(f"no process trains {config}")


@pytest.fixture(scope="module")
def limited(slurm: PrivateSlurm, new_experiment) -> tuple[Path, str]:
    """A run with a time limit, and its job; started again it has more time.

    The process stands still, so that it cannot end before SLURM signals, which lets it go on.
    """
    config = new_experiment("limited")
    more_time = '[[ $SLURM_RESTART_COUNT ]] && scontrol update JobId="$job" TimeLimit=60'
    job_id = submit(slurm, "--config", str(config), *LONG, "--time", "4", "--seconds-to-stop", "235", "--setup", more_time)
    await_training(config)
    os.kill(process_of(config), signal.SIGSTOP)
    return config, job_id


@pytest.fixture(scope="module")
def background(slurm: PrivateSlurm, structures, new_experiment, limited) -> dict[str, str]:
    """Jobs that run while others wait, by the name of the test."""
    whole, *four = (new_experiment(name) for name in ("whole", "one", "two", "three", "four"))
    array = [word for config in four for word in ("--config", str(config))]
    own = ("--chdir", str(structures), "--gpus-per-node=0", "--output=own.log", str(SCRIPT))
    return {
        "own": slurm.say("sbatch", "--parsable", *own, str(new_experiment("own")), "--set", "training.max_epochs=1"),
        "whole": submit(slurm, "--config", str(whole), *LONG),
        "array": submit(slurm, *array, "--max-at-once", "2", "--time", "10"),
        "gloo": submit(
            slurm, "--config", str(new_experiment("gloo")), "--tasks-per-node", "2", "--set", "runtime.strategy=ddp"
        ),
    }


def test_a_wrong_layout_ends_within_seconds_with_the_lines_that_are_right(slurm, new_experiment, background):
    config = new_experiment("wrong")
    script = run_folder(config) / "slurm" / "train.sbatch"
    submitted = submit(slurm, "--config", str(config), "--tasks-per-node", "2", "--dry-run")
    script.parent.mkdir(parents=True)
    script.write_text(submitted.replace("runtime.devices=2", "runtime.devices=1"))
    job_id = slurm.say("sbatch", "--parsable", str(script))
    assert slurm.await_state(job_id, *ENDED) == "FAILED"
    assert slurm.told_of(job_id, "ExitCode") == "2:0"
    log = log_of(config, job_id)
    assert "the experiment asks for 1 node with 1 process each (devices = 1), but srun started 2 tasks on 1 node" in log
    assert "#SBATCH --ntasks-per-node=1" in log
    assert "--set runtime.num_nodes=1 --set runtime.devices=2" in log
    assert not (run_folder(config) / "metrics.csv").exists()


def test_a_run_over_its_time_limit_is_requeued_and_ends_like_one_without(slurm, structures, limited, background):
    config, job_id = limited
    await_that(
        lambda: slurm.told_of(job_id, "Restarts") == "1", "SLURM signals, the run stops, the script requeues", seconds=90
    )
    assert slurm.await_state(job_id, *ENDED) == "COMPLETED"
    log = log_of(config, job_id)
    assert "stopped (SIGUSR1" in log
    assert "the same command goes on" in log
    assert slurm.await_state(background["whole"], *ENDED) == "COMPLETED"
    assert rows(config) == rows(structures / "whole.toml")


def test_a_job_knows_what_it_has_and_when_it_ends(slurm, structures, background):
    script = structures / "tell.py"
    script.write_text(TELL)
    words = ("--time=7", "--ntasks-per-node=2", "--cpus-per-task=3", "--array=4", f"--output={structures}/%A.told")
    job_id = slurm.say("sbatch", "--parsable", *words, f"--wrap=srun --ntasks=2 {sys.executable} {script}")
    assert slurm.await_state(f"{job_id}_4", *ENDED) == "COMPLETED"
    told = sorted((structures / f"{job_id}.told").read_text().splitlines())
    assert [line.rpartition(" in ")[0] for line in told] == [
        f"{Allocation(f'{job_id}_4', 'wrap', 1, 2, (2,), 2, 0, 3, is_step=True, rank=rank)}" for rank in range(2)
    ]
    assert all(350 < float(line.rpartition(" in ")[2]) <= 420 for line in told)


@pytest.fixture(scope="module")
def cancelled(slurm, new_experiment, background) -> dict[int, tuple[Path, str]]:
    """Runs of one and of two tasks that were ended with scancel, and their jobs, by the number of tasks."""
    jobs = {}
    for num_tasks, epochs in ((1, LONG), (2, ("--set", "training.max_epochs=5000"))):
        config = new_experiment(f"cancelled_{num_tasks}")
        jobs[num_tasks] = config, submit(slurm, "--config", str(config), "--tasks-per-node", str(num_tasks), *epochs)
    for config, job_id in jobs.values():
        await_training(config)
        slurm.say("scancel", job_id)
    return jobs


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_scancel_saves_and_does_not_requeue(slurm, cancelled, num_tasks):
    config, job_id = cancelled[num_tasks]
    assert slurm.await_state(job_id, *ENDED) == "CANCELLED"
    assert slurm.told_of(job_id, "Restarts") == "0"
    assert "stopped (SIGTERM " in log_of(config, job_id)
    assert "SLURM ended the job" in log_of(config, job_id)
    assert (run_folder(config) / "checkpoints" / "last.ckpt").exists()
    assert not (run_folder(config) / "results.json").exists()


def test_a_later_submit_goes_on_and_survives_a_job_of_higher_priority(slurm, cancelled, background):
    """SLURM itself starts what it has preempted again."""
    config, _ = cancelled[1]
    for job in background.values():  # they are not to be preempted
        slurm.await_state(job, *ENDED)
    done = len(rows(config))
    job_id = submit(slurm, "--config", str(config), *LONG)
    await_that(lambda: len(rows(config)) > done, "the run goes on", seconds=180)
    urgent = slurm.say(
        "sbatch", "--parsable", "--partition=urgent", f"--ntasks={NUM_CPUS}", "--output=/dev/null", "--wrap=true"
    )
    await_that(lambda: slurm.told_of(job_id, "Restarts") == "1", "the job is requeued", seconds=60)
    assert slurm.await_state(urgent, *ENDED) == "COMPLETED"
    assert slurm.await_state(job_id, *ENDED) == "COMPLETED"
    assert (run_folder(config) / "slurm" / "job_id").read_text().strip() == job_id
    assert rows(config) == rows(config.with_name("whole.toml"))


def test_four_experiments_make_one_array_and_each_comes_to_its_end(slurm, structures, background):
    tasks = [f"{background['array']}_{number}" for number in range(4)]
    assert [slurm.await_state(task, *ENDED) for task in tasks] == ["COMPLETED"] * 4
    for task, name in zip(tasks, ("one", "two", "three", "four"), strict=True):
        assert json.loads((structures / "runs" / name / "results.json").read_text())["status"] == "finished"
        assert (structures / "runs" / name / "slurm" / "job_id").read_text().strip() == task


def test_the_script_to_copy_trains(slurm, structures, background):
    assert slurm.await_state(background["own"], *ENDED) == "COMPLETED", (structures / "own.log").read_text()
    assert (structures / "runs" / "own" / "results.json").exists()


def test_two_tasks_train_one_model_with_gloo(slurm, structures, background):
    assert slurm.await_state(background["gloo"], *ENDED) == "COMPLETED", log_of(structures / "gloo.toml", background["gloo"])
    found = json.loads((structures / "runs" / "gloo" / "results.json").read_text())
    assert found["metrics"]["validation"]["num_structures"] == 8
    assert log_of(structures / "gloo.toml", background["gloo"]).count("run folder: ") == 1  # the first process speaks for both


def test_a_second_job_for_a_run_folder_is_refused_while_the_first_is_there(slurm, new_experiment):
    config = new_experiment("waiting")
    job_id = submit(slurm, "--config", str(config), "--sbatch-option", "hold")
    result = CliRunner().invoke(app, ["submit", "--config", str(config)], env=slurm.environment)
    assert f"job {job_id} is pending for this run folder" in str(result.exception)
    slurm.say("scancel", job_id)
    assert slurm.await_state(job_id, *ENDED) == "CANCELLED"
    assert submit(slurm, "--config", str(config), "--sbatch-option", "hold") != job_id


def test_what_sbatch_refuses_is_told_with_a_remedy(slurm, new_experiment):
    result = CliRunner().invoke(
        app, ["submit", "--config", str(new_experiment("refused")), "--partition", "gpu"], env=slurm.environment
    )
    assert "invalid partition specified: gpu" in str(result.exception)
    assert "choose another --partition; sinfo lists them" in str(result.exception)


def test_nothing_of_slurm_is_left_in_the_environment(slurm, background):
    assert not [name for name in os.environ if name.startswith("SLURM")]
