"""Another process that compiles the step, while training goes on; the memory that this takes goes with it.

Run as a program, with a folder in which the training process has put a job, and in which it leaves the compiled program. A job
is plain data, tensors and JSON, from which the model is built again. T loss terms.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import TypedDict

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch._inductor.cpu_vec_isa import pick_vec_isa

from modelforge.atoms.graph import AtomicGraph, Batch, Labels, tensors_of
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training.compiled_program import CompiledProgram, read_program
from modelforge.training.loss import LossSection
from modelforge.training.step import CompiledStep, disagreement, in_a_line, program_of

JOB, SUCCESS = "job.pt", "compiled"

_potentials: TypeAdapter[PotentialSection] = TypeAdapter(PotentialSection)


class Job(TypedDict):
    """What is compiled, and with which settings of torch: Inductor's cache tells them apart."""

    potential: str  # its section, JSON
    elements: list[int]
    loss: str  # its section, JSON
    weights: dict[str, Tensor]  # of the model, buffers too
    frozen: list[str]  # those that are not trained
    dtype: torch.dtype
    graph: tuple[Tensor, ...]  # fields of the batch's graph, of its labels, and its own further ones
    labels: tuple[Tensor, ...]
    others: tuple[Tensor, ...]
    scales: Tensor  # (T,)
    device: str
    num_threads: int
    matmul_precision: str
    deterministic: bool


class CompilingProcess:
    """Starts at once; ends with the process that started it, if not before. A Ctrl-C does not reach it."""

    def __init__(self, model: EnergyModel, loss: LossSection, batch: Batch, scales: Tensor) -> None:
        self._folder, self._device = Path(tempfile.mkdtemp(prefix="modelforge-")), scales.device
        torch.save(_job_of(model, loss, batch, scales), self._folder / JOB)
        command = [sys.executable, "-m", "modelforge.training.compiling_process", str(self._folder)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process, self._folder)

    @property
    def is_running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def wait(self) -> CompiledProgram | str:
        """Wait for its end, once; what it has compiled, or why it has not."""
        output, _ = self._process.communicate()
        lines = output.split("\n")
        try:
            if SUCCESS in lines:
                return read_program(self._folder, self._device)
        finally:
            self._end()
        said = next((line for line in reversed(lines) if line), "")
        return said or f"the compiling process ended early (exit code {self._process.returncode})"


def _end(process: "subprocess.Popen[str]", folder: Path) -> None:
    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def main(folder: Path) -> None:
    """Compile once and say how it went."""
    os.nice(5)
    parent = os.getppid()
    read: Job = torch.load(folder / JOB, map_location="cpu", weights_only=True)
    torch.set_num_threads(read["num_threads"])
    torch.set_float32_matmul_precision(read["matmul_precision"])
    torch.use_deterministic_algorithms(read["deterministic"])
    place, loss = torch.device(read["device"]), LossSection.model_validate_json(read["loss"])
    if place.type == "cpu":  # Inductor compiles small programs to see what it can do, and remembers: this may go on meanwhile
        Thread(target=pick_vec_isa, daemon=True).start()
    try:
        model, batch, scales = _model_of(read).to(place), _batch_of(read).to(place), read["scales"].to(place)
        program = program_of(model, loss, batch, scales)
        said = disagreement(CompiledStep(model, loss, program), batch, scales) or SUCCESS
        program.save(folder)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises, the training process goes on and says why
        said = in_a_line(error)
    if os.getppid() != parent:  # it was killed, so nobody else cleans up
        shutil.rmtree(folder, ignore_errors=True)
        return
    sys.stdout.write(f"\n{said}\n")


def _job_of(model: EnergyModel, loss: LossSection, batch: Batch, scales: Tensor) -> Job:
    return Job(
        potential=model.potential.section.model_dump_json(),
        elements=list(model.potential.elements),
        loss=loss.model_dump_json(),
        weights=dict(model.state_dict()),
        frozen=[name for name, weight in model.named_parameters() if not weight.requires_grad],
        dtype=model.scale.dtype,
        graph=tensors_of(batch.graph),
        labels=tensors_of(batch.labels),
        others=tuple(getattr(batch, field.name) for field in fields(batch) if field.name not in ("graph", "labels")),
        scales=scales,
        device=str(batch.indices.device),
        num_threads=torch.get_num_threads(),
        matmul_precision=torch.get_float32_matmul_precision(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _model_of(job: Job) -> EnergyModel:
    potential = _potentials.validate_json(job["potential"]).build(job["elements"])
    model = EnergyModel(potential).to(job["dtype"])
    model.load_state_dict(job["weights"])
    for name in job["frozen"]:
        model.get_parameter(name).requires_grad_(False)
    return model


def _batch_of(job: Job) -> Batch:
    return Batch(AtomicGraph(*job["graph"]), Labels(*job["labels"]), *job["others"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
