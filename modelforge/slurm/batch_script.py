"""The batch script of a run, or of an array of runs, as text: plain bash that people can read, change and submit themselves.

The run ends with 75 when it was asked to stop and has saved; then the script requeues the job. `scancel`, and preemption
without a time of grace, send TERM to the script's shell as well as to the run: then nothing is requeued here. SLURM itself
requeues what it preempts.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelforge.slurm.resources import Layout, Resources


@dataclass(frozen=True)
class PlannedRun:
    """A TOML and the folder of its run, both absolute."""

    config: Path
    run_folder: Path


@dataclass(frozen=True)
class BatchJob:
    """All that a batch script says."""

    name: str
    script: Path
    """Where the script will lie; its log lies beside it."""
    runs: tuple[PlannedRun, ...]
    settings: tuple[str, ...]
    resources: Resources
    layout: Layout
    working_folder: Path
    max_at_once: int | None = None

    @property
    def is_array(self) -> bool:
        """Whether each run is a task of its own."""
        return len(self.runs) > 1

    @property
    def log(self) -> str:
        """The log, with SLURM's `%j` for the id of the job, or `%A_%a` for those of an array."""
        folder = str(self.script.parent).replace("%", "%%")
        return f"{folder}/{'%A_%a' if self.is_array else '%j'}.log"


def batch_script(job: BatchJob) -> str:
    """The script as text."""
    blocks = [_head(job), _directives(job), _paths(job), _setup(job.resources), _start(job), ENDING]
    return "\n".join(block for block in blocks if block)


def _head(job: BatchJob) -> str:
    what = "several runs, a task of the array each" if job.is_array else "one run"
    return f"""\
#!/bin/bash
# Trains with modelforge: {what}. Written by `modelforge submit`; change it as you like, then
#   sbatch {shlex.quote(str(job.script))}
"""


def _directives(job: BatchJob) -> str:
    asked, lead = job.resources, job.resources.seconds_before_the_end
    options = {
        "job-name": job.name,
        "nodes": job.layout.nodes,
        "ntasks-per-node": job.layout.tasks_per_node,
        "gpus-per-node": job.layout.gpus if job.layout.gpus_per_node else None,
        "cpus-per-task": asked.cpus_per_task,
        "mem": asked.memory,
        "time": asked.time,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "array": f"0-{len(job.runs) - 1}{f'%{job.max_at_once}' if job.max_at_once else ''}" if job.is_array else None,
    }
    lines = ["# What each task of the array gets." if job.is_array else "# What the job gets."]
    lines += [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    lines += [f"#SBATCH --{option.lstrip('-')}" for option in asked.sbatch_options]
    lines += ["# Where it starts, and its log. A job that is requeued goes on in the same log."]
    lines += [f"#SBATCH --chdir={shlex.quote(str(job.working_folder))}", f"#SBATCH --output={shlex.quote(job.log)}"]
    lines += ["#SBATCH --open-mode=append", "#SBATCH --requeue"]
    lines += [f"# Tell the run {lead} seconds before the time limit to save and stop.", f"#SBATCH --signal=USR1@{lead}"]
    return "\n".join(lines) + "\n"


def _paths(job: BatchJob) -> str:
    """Which run it is, and the name that SLURM knows the job by."""
    script = f"script={shlex.quote(str(job.script))}"
    if not job.is_array:
        run = job.runs[0]
        lines = [f"config={shlex.quote(str(run.config))}", f"run_folder={shlex.quote(str(run.run_folder))}", script]
        lines += ["job=$SLURM_JOB_ID", "again=()", 'by_hand="sbatch $script"']
        return "\n".join(["# The experiment and its run folder.", *lines]) + "\n"
    lines = ["# The experiments and their run folders, in the order of the array.", "configs=("]
    lines += [f"    {shlex.quote(str(run.config))}" for run in job.runs] + [")", "run_folders=("]
    lines += [f"    {shlex.quote(str(run.run_folder))}" for run in job.runs] + [")"]
    lines += ["config=${configs[$SLURM_ARRAY_TASK_ID]}", "run_folder=${run_folders[$SLURM_ARRAY_TASK_ID]}", script]
    lines += ["job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "again=(--array=$SLURM_ARRAY_TASK_ID)"]
    lines += ['by_hand="sbatch $again $script"']
    return "\n".join(lines) + "\n"


def _setup(resources: Resources) -> str:
    lines = list(resources.setup)
    if resources.cpus_per_task:
        lines.append(f"export OMP_NUM_THREADS={resources.cpus_per_task}")
    return "\n".join(["# The environment of the run.", *lines]) + "\n" if lines else ""


def _start(job: BatchJob) -> str:
    cpus = f" --cpus-per-task={job.resources.cpus_per_task}" if job.resources.cpus_per_task else ""
    settings = "".join(f" \\\n    --set {shlex.quote(setting)}" for setting in job.settings)
    return BEGINNING + (
        f"srun{cpus} --kill-on-bad-exit=0 --wait=0 {executable(job.resources.setup)} train \\\n"
        f'    --config "$config"{settings} \\\n    --run-folder "$run_folder"\ncode=$?\n'
    )


def executable(setup: Sequence[str]) -> str:
    """This installation's `modelforge`; that of the environment which a line such as `source venv/bin/activate` activates."""
    if any("activate" in line.replace("deactivate", "") for line in setup):
        return "modelforge"
    beside = Path(sys.executable).parent / "modelforge"
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m modelforge.cli"


BEGINNING = """\
# What `modelforge submit` looks at before it submits this run once more.
mkdir -p "$run_folder/slurm"
echo "$job" > "$run_folder/slurm/job_id"

# TERM comes to this shell when SLURM ends the job: after scancel, for a job of higher priority, at the time limit.
trap 'ended_by_slurm=yes' TERM

# The run starts, goes on from its last checkpoint, or says that it is finished. Of several tasks one may end while the
# first still saves: therefore the others are not killed.
touch "$run_folder/slurm/started"
"""

ENDING = """\
# Rounds in a row that got nowhere: over within half a minute, or without a newer checkpoint.
rounds_file=$run_folder/slurm/rounds_without_progress
if (( SECONDS < 30 )) || ! [[ $run_folder/checkpoints/last.ckpt -nt $run_folder/slurm/started ]]; then
    rounds=$(( $(cat "$rounds_file" 2> /dev/null || echo 0) + 1 ))
else
    rounds=0
fi

# Start the job again: by requeueing it or, where a compute node may not do that, with a job that follows it.
start_again() {
    trap '' TERM  # requeueing ends this shell
    echo "$rounds" > "$rounds_file"
    scontrol requeue "$job" && return
    next=$(sbatch --parsable --dependency="afterany:$SLURM_JOB_ID" "${again[@]}" "$script") && next=${next%%;*} &&
        echo "$next${again:+_$SLURM_ARRAY_TASK_ID}" > "$run_folder/slurm/job_id" && echo "job $next follows" && return
    echo "The run has saved, but the job cannot be started again from this node. Type: $by_hand"
}

# 75: the run was asked to stop and has saved. 138: it was asked before it listened. 0: finished. All else is a failure.
if [[ $ended_by_slurm ]]; then
    echo "SLURM ended the job (scancel, preemption or time limit). What it preempts it starts again itself;" \\
        "otherwise the run goes on from its last checkpoint with: $by_hand"
elif (( code != 75 && code != 138 )); then
    rm -f "$rounds_file"
elif (( rounds >= 3 )); then
    rm -f "$rounds_file"
    echo "Stopped for the third time in a row without getting further, so the job is not started again. Is the time limit" \\
        "too short? When that is mended: $by_hand"
else
    start_again
fi
exit "$code"
"""
