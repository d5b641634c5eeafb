"""SLURM's queue as its commands show it: hand in a script, and ask for the state of a job."""

import os
import shutil
import subprocess
from pathlib import Path

from modelforge.errors import UserError

REMEDIES = {
    "account": "give another --account; sacctmgr show associations user=$USER lists yours",
    "partition": "choose another --partition; sinfo lists them",
    "qos": "choose another --qos; sacctmgr show qos lists them",
    "time limit": "give a shorter --time; sinfo -o '%P %l' lists the limits of the partitions",
    "generic resource": "change --gpus-per-node; sinfo -o '%P %G' lists the GPUs of the partitions",
    "feature": "change --constraint; sinfo -o '%P %f' lists the features of the nodes",
    "memory": "ask for less --memory; sinfo -o '%P %m' lists the MB of the nodes",
    "node configuration": "no node has all that at once: ask for less, see sinfo -o '%P %D %c %m %G' (nodes, CPUs, MB, GPUs)",
    "node count": "ask for fewer --nodes; sinfo -o '%P %D' lists how many there are",
    "contact": "SLURM does not answer; try again later",
}
"""What to do, by a word of sbatch's message; the first one that is there."""


def refuse_without_slurm() -> None:
    """Stop where nothing can be submitted."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch: is not on this machine; submit from a login node of the cluster, or print the script with --dry-run"
        )


def submit_script(script: Path) -> str:
    """The id of the job that SLURM makes of a script."""
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{done.stderr.strip()}\nSLURM refused {script}: {remedy_for(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def remedy_for(message: str) -> str:
    """What to do about a message of sbatch."""
    found = (remedy for word, remedy in REMEDIES.items() if word in message.lower())
    return next(found, "change the options or the script and submit it again")


def state_of(job_id: str) -> str | None:
    """The state of a job that is waiting or running, such as `PENDING`; None if it has ended or SLURM does not know it."""
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if told.returncode and "Invalid job id" not in told.stderr:
        raise UserError(f"{told.stderr.strip()}\nsqueue cannot tell whether job {job_id} still runs; try again later")
    return next(iter(told.stdout.split()), None)
