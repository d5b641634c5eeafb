"""The job of the compiling process: plain data, from which the same model and the same batch come back."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch
from made_structures import batch_of, cluster, crystal, labelled

from modelforge.atoms.graph import tensors_of
from modelforge.potentials import PotentialSection
from modelforge.potentials.energy_model import EnergyModel
from modelforge.training import compiling_process
from modelforge.training.loss import LossSection
from modelforge.training.precision import matmul_precision

CUTOFF = 4.0
SMALL = {"cutoff": CUTOFF, "num_features": 4, "num_layers": 1, "num_radial": 5, "avg_num_neighbors": 5.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("section", get_args(get_args(PotentialSection)[0]))
def test_a_job_of_plain_data_gives_the_model_and_the_batch_again(tmp_path: Path, section, dtype):
    options = {name: value for name, value in SMALL.items() if name in section.model_fields}
    potential = section(name=get_args(section.model_fields["name"].annotation)[0], **options).build((8, 1, 6))
    model = EnergyModel(potential, scale=1.3).to(dtype)
    atoms = [labelled(make(4, (1, 6, 8), seed=3), seed=3) for make in (cluster, crystal)]
    batch, loss = batch_of(atoms, reach=model.reach, dtype=dtype), LossSection(function="huber", huber_delta=0.2)
    with matmul_precision("high"):
        torch.save(compiling_process._job_of(model, loss, batch, torch.ones(2)), tmp_path / "x.job")
    job = torch.load(tmp_path / "x.job", weights_only=True)
    again, other = compiling_process._batch_of(job), compiling_process._model_of(job)
    for one, two in ((again.graph, batch.graph), (again.labels, batch.labels)):
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors_of(one), tensors_of(two), strict=True))
    for field in fields(batch)[2:]:
        assert torch.equal(getattr(again, field.name), getattr(batch, field.name))
    assert other.training
    assert torch.equal(other(again.graph).forces, model(batch.graph).forces)
    assert LossSection.model_validate_json(job["loss"]) == loss
    assert job["matmul_precision"] == "high"
