"""The heaviest batches of a process: a training step with second derivatives, and a validation step.

Positions are those of structures in a batch. S structures, T loss terms.
"""

import math
import time

import torch
from torch import Tensor
from torch.optim import Optimizer

from modelforge.atoms.graph import Batch
from modelforge.errors import UserError
from modelforge.potentials.energy_model import EnergyModel
from modelforge.rehearsal.rehearsal import Rehearsal, RehearsalFailed, is_out_of_memory, no_number, peak_memory, sizes_in_words
from modelforge.training.clipping import Clipping
from modelforge.training.eager_step import EagerStep, plain_scales
from modelforge.training.loss import LossSection, weights_of
from modelforge.training.metrics import ErrorSums
from modelforge.training.step import in_a_line


def train_heaviest(run: Rehearsal, model: EnergyModel, optimizer: Optimizer) -> str:
    """A training step of the heaviest batch, which leaves its gradient in the model; in words, what it takes."""
    batch = run.batches.heaviest_training()
    _fill_state(optimizer)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    begun, fault, shortage = time.perf_counter(), "", ""
    try:
        fault = _step(run, model, batch, run.loss)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        shortage = in_a_line(error)
    if shortage:  # only now are the tensors gone that the error held
        raise _too_heavy(run, model, batch, shortage)
    if fault:
        raise _not_finite(run, model, batch)
    seconds = time.perf_counter() - begun
    optimizer.step()
    return f"heaviest batch {sizes_in_words(batch)}, forward and backward {seconds:.2g} s, {peak_memory(run.device)}"


def sum_gradients(run: Rehearsal, model: EnergyModel) -> None:
    """Sum the gradients over all processes, as each step does."""
    total = run.sum_over_processes(torch.cat([gradient.flatten() for gradient in _gradients(model)]))
    if not math.isfinite(total.sum()):
        raise RehearsalFailed("the sum of gradients that are finite is not finite; look at the network between the processes")


def validate_heaviest(run: Rehearsal, model: EnergyModel) -> ErrorSums:
    """The errors of the heaviest validation batch."""
    batch = run.batches.heaviest_validation().to(run.device)
    with run.autocast():
        prediction = model.eval()(batch.graph, forces=run.loss.forces_weight > 0, stress=run.loss.stress_weight > 0)
    wrong = ~prediction.energy.isfinite()
    if run.loss.forces_weight > 0:
        wrong[batch.graph.structure_index[~prediction.forces.isfinite().all(dim=1)]] = True
    if wrong.any():
        raise no_number(run.places("validation", wrong.nonzero().flatten().cpu()))
    sums = ErrorSums(len(run.data.structures.subset_names), has_charges=model.has_charges).to(run.device)
    sums.update(prediction, batch)
    return sums


def _fill_state(optimizer: Optimizer) -> None:
    """Let the optimizer allocate what it keeps between steps, by a step without gradient: all steps but the first have it."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()


def _step(run: Rehearsal, model: EnergyModel, batch: Batch, loss: LossSection) -> str:
    """Forward and backward of a batch, which leave clipped gradients; in words what is not finite, if anything."""
    model.train().zero_grad()
    terms = " and ".join(weights_of(loss))
    with run.autocast():
        result = EagerStep(model, loss)(batch.to(run.device), plain_scales(model, loss))
    result.loss.backward(inputs=[weight for weight in model.parameters() if weight.requires_grad])  # type: ignore[no-untyped-call]
    norm = Clipping(run.experiment.training.clipping)(_gradients(model))
    if not math.isfinite(result.loss.detach()):
        return f"the {terms} term of the loss"
    return "" if math.isfinite(norm) else f"the gradient of the {terms} term"


def _gradients(model: EnergyModel) -> list[Tensor]:
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def _too_heavy(run: Rehearsal, model: EnergyModel, batch: Batch, shortage: str) -> UserError:
    """What does not fit into the memory, and what does, as found by trying."""
    training, num_processes, peak = run.experiment.training, run.batches.num_processes, peak_memory(run.device)
    heaviest_first = run.batches.table.num_edges[batch.indices].argsort(descending=True)
    num = _num_that_fit(run, model, batch, heaviest_first)
    key = "max_edges" if training.max_edges else "max_atoms" if training.max_atoms else "batch_size"
    remedy = "Not even this one alone fits: leave it out, take a smaller network, or a device with more memory"
    if num:
        fitting = _part(run, batch, heaviest_first[:num]).graph
        most = {"batch_size": num, "max_edges": fitting.num_edges, "max_atoms": fitting.num_atoms}
        instead = f", or in its place training.max_edges = {most['max_edges'] * num_processes}" if key == "batch_size" else ""
        remedy = f"The {num} heaviest of them fit: set training.{key} = {most[key] * num_processes}{instead}"
    return UserError(
        f"training.{key}: the heaviest batch must fit into the memory of the device, {run.device} (got "
        f"{sizes_in_words(batch)}; the heaviest structure is {run.places('training', heaviest_first[:1])}; {peak}; "
        f"{shortage}). {remedy}"
    )


def _num_that_fit(run: Rehearsal, model: EnergyModel, batch: Batch, order: Tensor) -> int:
    """How many structures of a batch that is too heavy fit together, taken in this order of positions."""
    fitting, too_many = 0, len(order)
    while too_many - fitting > 1:
        num = (fitting + too_many) // 2
        if _fits(run, model, _part(run, batch, order[:num])):
            fitting = num
        else:
            too_many = num
    return fitting


def _fits(run: Rehearsal, model: EnergyModel, batch: Batch) -> bool:
    model.zero_grad()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        _step(run, model, batch, run.loss)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _not_finite(run: Rehearsal, model: EnergyModel, batch: Batch) -> UserError:
    """Which term is not finite, and the fewest structures for which it is not."""
    terms = weights_of(run.loss)
    losses = [run.loss.model_copy(update={f"{other}_weight": 0.0 for other in terms if other != term}) for term in terms]
    loss = next((loss for loss in losses if _step(run, model, batch, loss)), run.loss)
    faulty: Tensor | None = torch.arange(len(batch.indices))
    while faulty is not None:
        fewest, halves = faulty, faulty.tensor_split(2) if len(faulty) > 1 else ()
        faulty = next((half for half in halves if _step(run, model, _part(run, batch, half), loss)), None)
    return UserError(
        f"{run.places('training', fewest)}: {_step(run, model, _part(run, batch, fewest), loss)} must be finite, and is not "
        "before the first step. Look for atoms on top of each other and for wrong labels; correct them, or leave this out of "
        "the data"
    )


def _part(run: Rehearsal, batch: Batch, positions: Tensor) -> Batch:
    """Some structures of a batch; the whole is kept as it is, as it may be a stand-in that has no place in the table."""
    return batch if len(positions) == len(batch.indices) else run.batches.table.batch(batch.indices[positions])
