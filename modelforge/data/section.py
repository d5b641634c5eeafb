"""`[dataset]`: the data sources that exist. To add one, write its file in `sources/` and add its section to the union."""

from typing import Annotated

from pydantic import Field

from modelforge.data.sources.ase_database import AseDatabase
from modelforge.data.sources.bundled import Quickstart
from modelforge.data.sources.deepmd import DeePMD
from modelforge.data.sources.extxyz import ExtendedXYZ
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.mixed import Mixed
from modelforge.data.sources.npz import Npz
from modelforge.data.sources.registered import Registered
from modelforge.data.sources.stored import Stored

DatasetSection = Annotated[
    ExtendedXYZ | HDF5 | Npz | AseDatabase | DeePMD | Stored | Mixed | Quickstart | Registered,
    Field(discriminator="name"),
]
