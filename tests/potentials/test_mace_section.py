"""What a section of MACE refuses. About 0.1 s."""

import pytest
from pydantic import ValidationError

from modelforge.potentials.mace import MACESection


@pytest.mark.parametrize(("max_ell", "l_max", "size"), [(6, 6, 23.5), (6, 1, 0.9), (5, 2, 0.7)])
def test_tables_that_cannot_be_built_are_an_error(max_ell: int, l_max: int, size: float) -> None:
    expected = (
        f"max_ell: with l_max = {l_max} and correlation = 3 asks for tables of {size} GB, where 0.5 are allowed "
        rf"\(got {max_ell}\); lower max_ell, l_max or correlation, as degrees up to 4 always fit"
    )
    with pytest.raises(ValidationError, match=expected):
        MACESection(name="mace", max_ell=max_ell, l_max=l_max)


def test_what_can_be_built_is_allowed() -> None:
    MACESection(name="mace", max_ell=4, l_max=4)
    MACESection(name="mace", max_ell=5)
    MACESection(name="mace", max_ell=6, l_max=6, correlation=2)
    MACESection(name="mace", max_ell=6, num_layers=1)


def test_features_between_layers_without_a_second_layer_are_an_error() -> None:
    expected = "l_max: has no effect with num_layers = 1, as it is of the features between layers; remove it, or raise"
    with pytest.raises(ValidationError, match=expected):
        MACESection(name="mace", num_layers=1, l_max=2)


def test_one_layer_reads_again_with_all_its_defaults() -> None:
    section = MACESection(name="mace", num_layers=1)
    assert MACESection.model_validate(section.model_dump()) == section
