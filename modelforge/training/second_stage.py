"""`[training.second_stage]`: from some epoch on another learning rate, other loss weights, and a plain average of the weights.

The recipe that MACE calls stage two or SWA: forces are learnt first, then energies, at a small constant learning rate, with
stochastic weight averaging (P. Izmailov et al., arXiv:1803.05407).
"""

from typing import Literal

from pydantic import model_validator

from modelforge.section import NonNegative, Positive, Section, SectionError


class SecondStage(Section):
    """A second stage of the training; there is none without `start_epoch`."""

    start_epoch: Positive | None = None
    """Epoch of the switch, which happens after the first validation from there on; early stopping of the first stage, too,
    leads to it."""
    learning_rate: Positive | None = None
    """Constant learning rate of the second stage; 1e-3 where not given."""
    energy_weight: NonNegative | None = None
    """Weight of the energy term from the switch on; that of `training.loss` where not given."""
    forces_weight: NonNegative | None = None
    """Weight of the forces term from the switch on; that of `training.loss` where not given."""
    stress_weight: NonNegative | None = None
    """Weight of the virial term from the switch on; that of `training.loss` where not given."""
    dipole_weight: NonNegative | None = None
    """Weight of the dipole term from the switch on; that of `training.loss` where not given."""
    quadrupole_weight: NonNegative | None = None
    """Weight of the quadrupole term from the switch on; that of `training.loss` where not given."""
    partial_charges_weight: NonNegative | None = None
    """Weight of the partial charges from the switch on; that of `training.loss` where not given."""
    average: Literal["uniform", "ema"] | None = None
    """Averaged weights: `uniform` is the mean over all steps of the stage (SWA), `ema` goes on as in `training.ema`; `uniform`
    where not given."""

    @model_validator(mode="after")
    def _options_are_used(self) -> "SecondStage":
        unused = [key for key in type(self).model_fields if key != "start_epoch" and getattr(self, key) is not None]
        if self.start_epoch is None and unused:
            raise SectionError(*((key, "has no effect without start_epoch; give it, or remove this key") for key in unused))
        return self

    @property
    def rate(self) -> float:
        """The learning rate of the stage."""
        return self.learning_rate or 1e-3

    def weight(self, term: str) -> float | None:
        """The weight of a term from the switch on, if it is given."""
        weight: float | None = getattr(self, f"{term}_weight")
        return weight
