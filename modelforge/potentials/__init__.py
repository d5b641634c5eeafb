"""The potentials that exist: to add one, write its file and add its section to the union."""

from typing import Annotated

from pydantic import Field

from modelforge.potentials.aimnet2 import AIMNet2Section
from modelforge.potentials.allegro import AllegroSection
from modelforge.potentials.ani import ANISection
from modelforge.potentials.mace import MACESection
from modelforge.potentials.nequip import NequIPSection
from modelforge.potentials.painn import PaiNNSection
from modelforge.potentials.physnet import PhysNetSection
from modelforge.potentials.sake import SAKESection
from modelforge.potentials.schnet import SchNetSection
from modelforge.potentials.soap import SOAPSection
from modelforge.potentials.soap_krr import SOAPKernelSection
from modelforge.potentials.tensornet import TensorNetSection

PotentialSection = Annotated[
    AIMNet2Section
    | AllegroSection
    | ANISection
    | MACESection
    | NequIPSection
    | PaiNNSection
    | PhysNetSection
    | SAKESection
    | SchNetSection
    | SOAPSection
    | SOAPKernelSection
    | TensorNetSection,
    Field(discriminator="name"),
]
