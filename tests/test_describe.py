"""The reference of every key and the JSON schema; toy sections stand for the real ones where words are compared."""

from io import StringIO
from typing import Annotated, Literal

import pytest
from pydantic import Field
from rich.console import Console

from modelforge.configuration.schema import Kind, fields_of, sections_in, tables
from modelforge.configuration.wording import in_words
from modelforge.describe import describe, json_schema
from modelforge.errors import UserError
from modelforge.experiment import Experiment
from modelforge.section import Count, Fraction, Length, PathText, Positive, Section


class PaiNN(Section):
    """Scalar and vector features."""

    name: Literal["painn"]
    cutoff: Length = 5.0
    """Distance beyond which atoms do not see each other."""
    basis: Literal["gaussian", "bessel"] = "gaussian"


class SchNet(Section):
    """Continuous filters."""

    name: Literal["schnet"]
    num_filters: Count | None = None
    """Filters of a layer."""


class Loss(Section):
    """Weights of the terms."""

    weights: tuple[Positive, ...] = (1.0, 2.0)


class Training(Section):
    """How long, and how."""

    loss: Loss = Loss()
    path: PathText
    """Where it is."""


class Toy(Section):
    """All."""

    potential: Annotated[PaiNN | SchNet, Field(discriminator="name")]
    training: Training


def rendered(section_path: str | None, root: type[Section] = Toy, *, width: int = 100) -> str:
    console = Console(width=width, file=StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(describe(section_path, root=root))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip()


POTENTIAL = """
[potential] name = "painn"
Scalar and vector features.
  cutoff  a number greater than 0; in angstrom; default 5.0
          Distance beyond which atoms do not see each other.
  basis   'gaussian' or 'bessel'; default "gaussian"

[potential] name = "schnet"
Continuous filters.
  num_filters  a whole number of at least 1; not set by default
               Filters of a layer.
"""

TRAINING = """
[training]
How long, and how.
  loss  a table
        Weights of the terms.
  path  a path; required
        Where it is.

[training.loss]
Weights of the terms.
  weights  a list of numbers greater than 0; default [1.0, 2.0]
"""


@pytest.mark.parametrize(
    ("section_path", "text"),
    [
        ("potential", POTENTIAL),
        ("training", TRAINING),
        (None, f"{POTENTIAL}{TRAINING}"),
        ("potential.painn", POTENTIAL.split("\n\n")[0]),
        ("training.loss", TRAINING.split("\n\n")[1]),
        ("training.path", "path  a path; required\n      Where it is."),
    ],
)
def test_each_key_has_type_default_unit_and_meaning(section_path: str | None, text: str) -> None:
    assert rendered(section_path) == text.strip()


@pytest.mark.parametrize(
    ("section_path", "message"),
    [
        ("trainig", "modelforge describe trainig: no such table or key (did you mean training?)"),
        ("training.los", "modelforge describe training.los: no such table or key (did you mean training.loss?)"),
        ("qqq", "modelforge describe qqq: no such table or key (tables: potential, training)"),
    ],
)
def test_an_unknown_table_is_an_error(section_path: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        describe(section_path, root=Toy)
    assert str(caught.value) == message


class Wording(Section):
    """Kinds of keys."""

    number: float = 1.0
    fraction: Fraction = 0.5
    switch: bool = True
    choice: Literal["auto"] | bool = "auto"
    triple: tuple[float, float, float] = (1, 2, 3)
    mixed: tuple[int, str] = (1, "a")
    table: dict[str, PathText | tuple[PathText, ...]] = {}
    several: tuple[Count, ...] | Literal["all"] = "all"
    even: Annotated[int, Field(multiple_of=2, le=8)] = 2


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("number", "a number"),
        ("fraction", "a number greater than 0 and less than 1"),
        ("switch", "true or false"),
        ("choice", "'auto', true or false"),
        ("triple", "a list of 3 numbers"),
        ("mixed", "a list of (a whole number, a text)"),
        ("table", "a table of paths or lists of paths"),
        ("several", "a list of whole numbers of at least 1 or 'all'"),
        ("even", "a whole number of at most 8 and that is a multiple of 2"),
    ],
)
def test_kinds_are_put_into_words(key: str, words: str) -> None:
    assert in_words(fields_of(Wording)[key]) == words


def test_the_schema_knows_choices_units_and_meanings() -> None:
    definitions = json_schema(Toy)["$defs"]
    assert definitions["PaiNN"]["description"] == "Scalar and vector features."
    assert definitions["PaiNN"]["properties"]["cutoff"]["x-unit"] == "angstrom"
    assert definitions["PaiNN"]["properties"]["cutoff"]["exclusiveMinimum"] == 0
    assert definitions["SchNet"]["properties"]["num_filters"]["description"] == "Filters of a layer."
    assert json_schema(Toy)["title"] == "modelforge experiment"


def test_every_real_key_is_documented() -> None:
    undocumented = [
        f"{'.'.join(table)}.{name}"
        for table, section in tables(Kind(Experiment))
        for name, field in section.model_fields.items()
        if not field.description and name != "name" and not sections_in(fields_of(section)[name])
    ]
    assert undocumented == []


def test_every_real_table_is_described() -> None:
    text = rendered(None, Experiment)
    for table in ("potential", "dataset", "training", "training.loss", "training.lr_scheduler", "runtime"):
        assert f"[{table}]" in text
