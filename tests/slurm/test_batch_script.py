"""The script as text, and what its last lines do, with commands in place of SLURM's."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from modelforge.slurm.batch_script import BatchJob, PlannedRun, batch_script, executable
from modelforge.slurm.resources import Layout, Resources

EVERYTHING = Resources(
    cpus_per_task=8,
    time="1-12",
    memory="64G",
    partition="gpu",
    account="chem",
    qos="long",
    constraint="a100|h100",
    sbatch_options=("--mail-type=END", "exclusive"),
    setup=("module load cuda", "source /venv/bin/activate"),
)


@pytest.fixture
def job(tmp_path: Path) -> BatchJob:
    """A job of one run on two nodes with four GPUs each."""
    return BatchJob(
        name="x",
        script=tmp_path / "runs" / "x" / "slurm" / "train.sbatch",
        runs=(PlannedRun(tmp_path / "x.toml", tmp_path / "runs" / "x"),),
        settings=("training.batch_size=8", 'potential.name="painn"'),
        resources=Resources(),
        layout=Layout(2, 4, 4, "a100"),
        working_folder=tmp_path,
    )


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_all_that_is_asked_for_is_a_directive(job: BatchJob, tmp_path: Path) -> None:
    text = batch_script(replace(job, resources=EVERYTHING))
    assert directives(text) == [
        "job-name=x",
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=a100:4",
        "cpus-per-task=8",
        "mem=64G",
        "time=1-12",
        "partition=gpu",
        "account=chem",
        "qos=long",
        "constraint='a100|h100'",
        "mail-type=END",
        "exclusive",
        f"chdir={tmp_path}",
        f"output={tmp_path}/runs/x/slurm/%j.log",
        "open-mode=append",
        "requeue",
        "signal=USR1@120",
    ]
    assert "module load cuda\nsource /venv/bin/activate\nexport OMP_NUM_THREADS=8\n" in text
    assert "srun --cpus-per-task=8 --kill-on-bad-exit=0 --wait=0 modelforge train " in text


def test_what_is_not_asked_for_is_left_to_the_cluster(job: BatchJob) -> None:
    names = {line.partition("=")[0] for line in directives(batch_script(replace(job, layout=Layout(1, 1, 0))))}
    assert not names & {"gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account", "qos", "constraint", "array"}


def test_directives_stand_before_the_first_command(job: BatchJob) -> None:
    lines = batch_script(job).splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < first


def test_a_signal_comes_earlier_where_more_time_is_asked_for(job: BatchJob) -> None:
    assert "signal=USR1@300" in directives(batch_script(replace(job, resources=Resources(time="60", seconds_to_stop=300))))


def test_an_array_has_a_task_for_each_run(job: BatchJob, tmp_path: Path) -> None:
    runs = tuple(PlannedRun(tmp_path / f"{name}.toml", tmp_path / "runs" / name) for name in "abc")
    text = batch_script(replace(job, runs=runs, max_at_once=2))
    assert "array=0-2%2" in directives(text)
    assert any(line.endswith("/%A_%a.log") for line in directives(text))
    shown = run_beginning(text, SLURM_JOB_ID="12", SLURM_ARRAY_JOB_ID="10", SLURM_ARRAY_TASK_ID="1")
    assert shown == [str(tmp_path / "b.toml"), str(tmp_path / "runs" / "b"), "10_1"]


def test_paths_with_odd_characters_stay_whole(job: BatchJob, tmp_path: Path) -> None:
    odd = tmp_path / "it's 100 % $HOME"
    text = batch_script(replace(job, runs=(PlannedRun(odd / "x.toml", odd),), script=odd / "slurm" / "train.sbatch"))
    assert run_beginning(text, SLURM_JOB_ID="1") == [str(odd / "x.toml"), str(odd), "1"]
    assert "100 %% $HOME/slurm/%j.log" in next(line for line in directives(text) if line.startswith("output="))


def test_settings_reach_the_command_as_they_were_given(job: BatchJob, tmp_path: Path) -> None:
    assert ran(job, tmp_path, code=0).words[3:] == [
        *("train", "--config", str(tmp_path / "x.toml"), "--set", "training.batch_size=8", "--set", 'potential.name="painn"'),
        *("--run-folder", str(tmp_path / "runs" / "x")),
    ]


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        (("source venv/bin/activate",), "modelforge"),
        (("module load conda", "conda activate train"), "modelforge"),
        (("conda deactivate",), "/modelforge"),
        ((), "/modelforge"),
    ],
)
def test_the_run_takes_this_environment_or_the_one_that_is_activated(setup: tuple[str, ...], expected: str) -> None:
    found = executable(setup)
    assert found == expected or (found.startswith("/") and found.endswith(expected))


# What the script does when the run has ended: srun, scontrol and sbatch are replaced by scripts that write down their words.


class Ran:
    """What a script did."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.output = done.returncode, done.stdout + done.stderr
        self.words, self.scontrol, self.sbatch = (self._words(folder / name) for name in ("srun", "scontrol", "sbatch"))

    @staticmethod
    def _words(program: Path) -> list[str]:
        told = program.with_suffix(".told")
        return told.read_text().splitlines() if told.exists() else []


def ran(
    job: BatchJob,
    folder: Path,
    *,
    code: int,
    before: str = "",
    scontrol: int | None = 0,
    sbatch: int | None = 0,
    **environ: str,
) -> Ran:
    """Run a script; `before` is what its run does, `None` stands for a command that is not there."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for told in programs.iterdir():
        told.unlink()
    for name, does in (("srun", f"{before}\nexit {code}"), ("scontrol", scontrol), ("sbatch", sbatch)):
        if does is not None:
            does = does if name == "srun" else f"echo 77\nexit {does}"
            (programs / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {programs}/{name}.told\n{does}\n')
            (programs / name).chmod(0o755)
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "5", **environ}
    done = subprocess.run(["bash", "-c", batch_script(job)], env=environ, capture_output=True, text=True, check=False)
    return Ran(programs, done)


def run_beginning(text: str, **environ: str) -> list[str]:
    """Which run a script takes, and the name of its job."""
    beginning = text.partition("# What `modelforge submit`")[0] + '\nprintf "%s\\n" "$config" "$run_folder" "$job"'
    done = subprocess.run(
        ["bash", "-c", beginning], env={**environ, "PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def saving(job: BatchJob) -> str:
    """A run that writes a checkpoint."""
    folder = job.runs[0].run_folder / "checkpoints"
    return f"mkdir -p {folder}; sleep 0.05; touch {folder}/last.ckpt"


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_a_run_that_ended_or_failed_is_not_started_again(job: BatchJob, tmp_path: Path, code: int) -> None:
    found = ran(job, tmp_path, code=code)
    assert (found.code, found.scontrol, found.sbatch) == (code, [], [])
    assert (tmp_path / "runs" / "x" / "slurm" / "job_id").read_text() == "5\n"


@pytest.mark.parametrize("code", [75, 138])
def test_a_run_that_was_asked_to_stop_is_requeued(job: BatchJob, tmp_path: Path, code: int) -> None:
    found = ran(job, tmp_path, code=code, before=saving(job))
    assert (found.code, found.scontrol, found.sbatch) == (code, ["requeue", "5"], [])


def test_of_an_array_only_the_task_is_requeued(job: BatchJob, tmp_path: Path) -> None:
    runs = (*job.runs, PlannedRun(tmp_path / "y.toml", tmp_path / "runs" / "y"))
    array = replace(job, runs=runs)
    environ = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "1"}
    assert ran(array, tmp_path, code=75, **environ).scontrol == ["requeue", "10_1"]
    follower = ran(array, tmp_path, code=75, scontrol=None, **environ)
    assert follower.sbatch == ["--parsable", "--dependency=afterany:12", "--array=1", str(job.script)]
    assert (tmp_path / "runs" / "y" / "slurm" / "job_id").read_text() == "77_1\n"


def test_a_job_that_slurm_ends_is_not_requeued(job: BatchJob, tmp_path: Path) -> None:
    """TERM comes to the shell while the run saves."""
    found = ran(job, tmp_path, code=75, before="kill -TERM $PPID")
    assert (found.code, found.scontrol, found.sbatch) == (75, [], [])
    assert "SLURM ended the job" in found.output


@pytest.mark.parametrize("scontrol", [None, 1])
def test_where_a_node_cannot_requeue_a_job_follows(job: BatchJob, tmp_path: Path, scontrol: int | None) -> None:
    found = ran(job, tmp_path, code=75, scontrol=scontrol)
    assert found.sbatch == ["--parsable", "--dependency=afterany:5", str(job.script)]
    assert (tmp_path / "runs" / "x" / "slurm" / "job_id").read_text() == "77\n"
    assert "job 77 follows" in found.output


def test_where_nothing_can_be_started_the_command_to_type_is_told(job: BatchJob, tmp_path: Path) -> None:
    found = ran(job, tmp_path, code=75, scontrol=None, sbatch=None)
    assert f"Type: sbatch {job.script}\n" in found.output
    assert found.code == 75


def test_a_run_that_gets_nowhere_three_times_in_a_row_is_not_started_again(job: BatchJob, tmp_path: Path) -> None:
    starts = [ran(job, tmp_path, code=75, before=saving(job)) for _ in range(4)]
    assert [bool(start.scontrol) for start in starts] == [True, True, False, True]
    assert "Stopped for the third time in a row" in starts[2].output


@pytest.mark.parametrize(("saves", "starts_again"), [(True, True), (False, False)])
def test_a_long_round_is_progress_only_with_a_newer_checkpoint(
    job: BatchJob, tmp_path: Path, saves: bool, starts_again: bool
) -> None:
    """The clock of the shell is set forward, as if a round took a minute."""
    slow = replace(job, resources=Resources(setup=("SECONDS=60",)))
    rounds = [ran(slow, tmp_path, code=75, before=saving(job) if saves else "") for _ in range(3)]
    assert bool(rounds[-1].scontrol) is starts_again
