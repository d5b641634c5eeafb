"""`[dataset]`: the data sources that exist. To add one, write its file in `sources/` and add its section to the union."""

from typing import Annotated

from pydantic import Field

from modelforge.data.sources.bundled import Quickstart
from modelforge.data.sources.extxyz import ExtendedXYZ

DatasetSection = Annotated[ExtendedXYZ | Quickstart, Field(discriminator="name")]
