"""A small experiment with each kind of key, for tests that write out whole messages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from modelforge.configuration.loading import ConfigurationError, Loaded, load_section
from modelforge.section import Count, Fraction, Length, PathText, Positive, Section, SectionError
from modelforge.training.runtime import RuntimeSection


class PaiNN(Section):
    """PaiNN."""

    name: Literal["painn"]
    cutoff: Length = 5.0
    num_radial: Count = 20


class SchNet(Section):
    """SchNet."""

    name: Literal["schnet"]
    cutoff: Length = 5.0
    num_filters: Count = 128


class AdamW(Section):
    """AdamW."""

    name: Literal["adamw"] = "adamw"
    learning_rate: Positive = 1e-3


class SGD(Section):
    """Plain descent."""

    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9


class Ema(Section):
    """Moving average."""

    decay: Fraction = 0.999


class Split(Section):
    """How the data are split."""

    strategy: Literal["random", "files"] = "random"
    files: dict[str, PathText] = {}


class Dataset(Section):
    """The data."""

    path: PathText | tuple[PathText, ...]
    """The extended XYZ file(s). Globs are allowed."""
    energy_unit: Literal["eV", "kcal/mol", "hartree"] = "eV"
    energy_key: str = "energy"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    elements: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)] | None = None
    values: dict[str, float] = {}
    test_paths: dict[str, PathText | tuple[PathText, ...]] = {}
    split: Split = Split()

    @field_validator("energy_key")
    @classmethod
    def key_is_one_word(cls, key: str) -> str:
        """A toy check."""
        if " " in key:
            raise ValueError(f"must be one word (got {key!r})")
        return key


class Training(Section):
    """The fit."""

    max_epochs: Count = 10
    batch_size: Count = 8
    max_time: str | None = None
    shuffle: bool = True
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = AdamW()
    lr_scheduler: Annotated[AdamW | SGD, Field(discriminator="name")] | None = None
    ema: Ema | Literal[False] = False


class Toy(Section):
    """A whole experiment."""

    potential: Annotated[PaiNN | SchNet, Field(discriminator="name")]
    dataset: Dataset
    training: Training = Training()
    runtime: RuntimeSection = RuntimeSection()

    @model_validator(mode="after")
    def check(self) -> "Toy":
        """A toy check of two sections."""
        if self.training.batch_size > 100:
            raise SectionError(
                ("training.batch_size", f"must not exceed 100 (got {self.training.batch_size})"),
                ("training.max_epochs", "is too large for it"),
            )
        return self


SHORTEST = '[potential]\nname = "painn"\n[dataset]\npath = "a.xyz"\n'


def load_toy(text: str, overrides: Sequence[str] = (), *, path: Path = Path("x.toml")) -> Loaded[Toy]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return load_section(Toy, path, overrides)


def messages_of(text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_toy(text, overrides)
    assert str(caught.value) == "\n".join(caught.value.messages)
    return caught.value.messages
