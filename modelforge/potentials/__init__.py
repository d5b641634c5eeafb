"""The potentials that exist: to add one, write its file and add its section to the union."""

from typing import Annotated

from pydantic import Field

from modelforge.potentials.ani import ANISection
from modelforge.potentials.painn import PaiNNSection
from modelforge.potentials.sake import SAKESection
from modelforge.potentials.schnet import SchNetSection
from modelforge.potentials.tensornet import TensorNetSection

PotentialSection = Annotated[ANISection | PaiNNSection | SAKESection | SchNetSection | TensorNetSection, Field(discriminator="name")]
