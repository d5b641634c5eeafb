"""The potentials that exist: to add one, write its file and add its section to the union."""

from typing import Annotated

from pydantic import Field

from modelforge.potentials.painn import PaiNNSection
from modelforge.potentials.schnet import SchNetSection

PotentialSection = Annotated[PaiNNSection | SchNetSection, Field(discriminator="name")]
