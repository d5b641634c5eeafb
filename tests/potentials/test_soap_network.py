"""The SOAP network where descriptors are few or radial functions alike; descriptors are in tests/nn. About 0.1 s."""

import pytest
from ase import Atoms
from made_structures import batch_of
from pydantic import TypeAdapter, ValidationError

from modelforge.potentials import PotentialSection
from modelforge.potentials.soap import SOAPSection


def test_a_single_feature_that_is_always_one_gives_energies() -> None:
    """One element, one radial function, no angles: divided by its length the feature does not vary at all."""
    potential = SOAPSection(name="soap", num_radial=1, l_max=0).build((1,))
    graph = batch_of([Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]), Atoms("H")], reach=potential.reach).graph
    assert potential.double()(graph).energies.isfinite().all()


@pytest.mark.parametrize("name", ["soap", "soap_krr"])
def test_gaussians_that_would_all_end_at_one_distance_are_refused(name: str) -> None:
    section: TypeAdapter[PotentialSection] = TypeAdapter(PotentialSection)
    with pytest.raises(ValidationError, match=r"must be at least 1\.2 for radial_basis = \"gto\""):
        section.validate_python({"name": name, "cutoff": 1.0})
    assert section.validate_python({"name": name, "cutoff": 1.0, "radial_basis": "polynomial"}).build((1,))
    assert section.validate_python({"name": name, "cutoff": 1.2, "num_radial": 10, "l_max": 1}).build((1,))
