"""`modelforge submit` up to the point where SLURM takes over; a script stands for sbatch, another for squeue."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from modelforge.cli import app
from modelforge.errors import UserError
from modelforge.experiment import load
from modelforge.run_folder import length_of
from modelforge.slurm.queue import remedy_for

TOML = '[potential]\nname = "schnet"\n[dataset]\nname = "extxyz"\npath = "water.xyz"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two experiments and, in PATH, an sbatch and a squeue."""
    for name in ("x", "y"):
        (tmp_path / f"{name}.toml").write_text(TOML)
    (tmp_path / "bin").mkdir()
    program(tmp_path, "sbatch", "echo '41;cluster'")
    program(tmp_path, "squeue", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # not where this machine may have its own
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, name: str, does: str) -> None:
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
    (folder / "bin" / name).chmod(0o755)


def submit(*words: str) -> Result:
    result = CliRunner().invoke(app, ["submit", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_the_script_lies_in_the_run_folder_and_the_log_beside_it(folder: Path) -> None:
    result = submit("-c", "x.toml", "--time", "1-0", "--set", "training.batch_size=4")
    slurm = folder / "runs" / "x" / "slurm"
    assert result.stdout == "41\n"
    assert f"log: {slurm}/41.log" in result.stderr
    assert "scancel 41" in result.stderr
    assert (slurm / "job_id").read_text() == "41\n"
    assert "--set training.batch_size=4" in (slurm / "train.sbatch").read_text()


def test_a_dry_run_prints_the_script_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    printed = submit("-c", "x.toml", "--nodes", "2", "--gpus-per-node", "4", "--dry-run").stdout
    assert printed.startswith("#!/bin/bash\n")
    assert "--set runtime.num_nodes=2 \\\n    --set runtime.devices=4 \\\n    --set runtime.accelerator=gpu" in printed
    assert subprocess.run(["/bin/bash", "-n"], input=printed, text=True, check=False).returncode == 0
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_is_what_is_submitted(folder: Path) -> None:
    printed = submit("-c", "x.toml", "--run-folder", "there", "--dry-run").stdout
    submit("-c", "x.toml", "--run-folder", "there")
    assert (folder / "there" / "slurm" / "train.sbatch").read_text() + "\n" == printed


def test_several_experiments_make_an_array_beside_their_run_folders(folder: Path) -> None:
    result = submit("-c", "x.toml", "-c", "y.toml", "--max-at-once", "1")
    (script,) = folder.glob("runs/array-*/train.sbatch")
    assert "#SBATCH --array=0-1%1" in script.read_text()
    assert [(folder / "runs" / name / "slurm" / "job_id").read_text() for name in "xy"] == ["41_0\n", "41_1\n"]
    assert f"log: {script.parent}/41_*.log" in result.stderr


def test_without_sbatch_the_dry_run_is_named(folder: Path) -> None:
    (folder / "bin" / "sbatch").unlink()
    with pytest.raises(UserError, match=r"^sbatch: is not on this machine; .* print the script with --dry-run$"):
        submit("-c", "x.toml")
    assert not (folder / "runs").exists()
    assert submit("-c", "x.toml", "--dry-run").stdout


def test_a_run_that_waits_or_runs_is_not_submitted_again(folder: Path) -> None:
    submit("-c", "x.toml")
    program(folder, "squeue", '[ "$*" = "--noheader --jobs 41 --format %T" ] && echo PENDING')
    with pytest.raises(
        UserError, match=r"runs/x: job 41 is pending for this run folder; wait for it, or end it with scancel 41"
    ):
        submit("-c", "x.toml")
    program(folder, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert submit("-c", "x.toml").stdout == "41\n"


def test_a_queue_that_does_not_answer_is_no_permission(folder: Path) -> None:
    submit("-c", "x.toml")
    program(folder, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match=r"Unable to contact slurm controller\nsqueue cannot tell whether job 41 still runs"):
        submit("-c", "x.toml")


def test_what_sbatch_says_is_passed_on(folder: Path) -> None:
    program(folder, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(
        UserError, match=r"^sbatch: error: invalid partition specified: nope\nSLURM refused .*: choose another --p"
    ):
        submit("-c", "x.toml")
    assert not (folder / "runs" / "x" / "slurm" / "job_id").exists()


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("Batch job submission failed: Invalid qos specification", "--qos"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("error: Invalid generic resource (gres) specification", "--gpus-per-node"),
        ("Batch job submission failed: Invalid feature specification", "--constraint"),
        ("error: Memory specification can not be satisfied", "--memory"),
        ("Batch job submission failed: Requested node configuration is not available", "sinfo -o"),
        ("Batch job submission failed: Node count specification invalid", "--nodes"),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", "try again later"),
        ("something new", "change the options"),
    ],
)
def test_messages_of_sbatch_have_a_remedy(message: str, remedy: str) -> None:
    assert remedy in remedy_for(message)


def test_a_finished_run_is_not_submitted(folder: Path) -> None:
    experiment = load(Path("x.toml")).experiment
    (folder / "runs" / "x").mkdir(parents=True)
    (folder / "runs" / "x" / "results.json").write_text(json.dumps({"length": length_of(experiment)}))
    result = submit("-c", "x.toml")
    assert (result.stdout, result.stderr) == ("", f"this run is finished: {folder}/runs/x\n")
    result = submit("-c", "x.toml", "-c", "y.toml")
    assert "this run is finished" in result.stderr
    assert (folder / "runs" / "y" / "slurm" / "train.sbatch").exists()


def test_a_run_folder_with_another_experiment_is_refused(folder: Path) -> None:
    (folder / "runs" / "x").mkdir(parents=True)
    (folder / "runs" / "x" / "experiment.toml").write_text(TOML.replace("schnet", "painn"))
    with pytest.raises(UserError, match=r"runs/x: holds a run with other settings"):
        submit("-c", "x.toml", "--dry-run")


def test_two_experiments_cannot_have_one_run_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^y.toml: has the run folder of another --config, .*; give each its own$"):
        submit("-c", "x.toml", "-c", "y.toml", "--run-folder", "both")


def test_experiments_of_an_array_ask_for_the_same(folder: Path) -> None:
    (folder / "y.toml").write_text(TOML + "[runtime]\nnum_nodes = 2\n")
    with pytest.raises(UserError, match=r"^y.toml: asks for other devices than x.toml "):
        submit("-c", "x.toml", "-c", "y.toml")
    printed = submit("-c", "x.toml", "-c", "y.toml", "--nodes", "1", "--dry-run").stdout
    assert printed.count("--set runtime.num_nodes=1") == printed.count("--set runtime.devices=1") == 1
    (folder / "y.toml").write_text(TOML + '[runtime]\naccelerator = "cpu"\n')
    with pytest.raises(UserError, match=r"^y.toml: asks for other devices"):
        submit("-c", "x.toml", "-c", "y.toml")


def test_what_the_job_could_not_run_is_refused_before_it_waits_in_the_queue(folder: Path) -> None:
    (folder / "x.toml").write_text(TOML + "[runtime]\ndevices = [2, 3]\n")
    with pytest.raises(UserError, match=r"^x.toml:7: runtime.devices: must be indices below 2, counted within the job"):
        submit("-c", "x.toml", "--gpus-per-node", "2")


def test_a_job_that_wastes_gpus_is_submitted_with_a_note(folder: Path) -> None:
    result = submit("-c", "x.toml", "--gpus-per-node", "4", "--tasks-per-node", "2")
    assert "note: the job has 4 GPUs on each node, of which the run uses 2" in result.stderr


def test_the_help_comes_without_torch() -> None:
    script = "import sys; sys.argv = ['modelforge', 'submit', '--help']\nimport modelforge.cli as c\n"
    script += "try: c.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_only_submit_itself_needs_torch() -> None:
    parts = ("allocation", "batch_script", "preflight", "queue", "resources", "time_limit")
    script = f"import sys, {', '.join(f'modelforge.slurm.{part}' for part in parts)}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
