"""Another process that compiles the step while training goes on, so that its kernels lie in Inductor's cache when wanted.

Run as a program, with the path of a job that the training process has written.
"""

import copy
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from modelforge.atoms.graph import Batch
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.loss import LossSection
from modelforge.training.step import try_to_compile

SUCCESS = "compiled"


class CompilingProcess:
    """Starts at once; ends with the process that started it, if not before. A Ctrl-C does not reach it."""

    def __init__(self, model: EnergyModel, loss: LossSection, batch: Batch, weights: Tensor) -> None:
        cpu, device = torch.device("cpu"), str(batch.indices.device)
        snapshot = copy.deepcopy(model).to(cpu)  # training goes on meanwhile
        with tempfile.NamedTemporaryFile(prefix="modelforge-", suffix=".job", delete=False) as file:
            torch.save((snapshot, loss, batch.to(cpu), weights.to(cpu), device, torch.get_num_threads()), file)
        self._job = Path(file.name)
        command = [sys.executable, "-m", "modelforge.training.compiling_process", file.name]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        weakref.finalize(self, _end, self._process, self._job)

    @property
    def is_running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def wait(self) -> str | None:
        """Wait for its end; None if all went well, else the reason."""
        output, _ = self._process.communicate()
        lines = output.split("\n")
        if SUCCESS in lines:
            return None
        said = next((line for line in reversed(lines) if line), "")
        return said or f"the compiling process ended early (exit code {self._process.returncode})"


def _end(process: "subprocess.Popen[str]", job: Path) -> None:
    process.kill()
    job.unlink(missing_ok=True)


def main(job: Path) -> None:
    """Compile once and say how it went."""
    os.nice(5)
    # The job is this program's own, written a moment ago by the process that started this one.
    model, loss, batch, weights, device, num_threads = torch.load(job, weights_only=False)
    torch.set_num_threads(num_threads)
    place = torch.device(device)
    _, reason = try_to_compile(model.to(place), loss, batch.to(place), weights.to(place))
    sys.stdout.write(f"\n{reason or SUCCESS}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
