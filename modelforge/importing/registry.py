"""The formats that can be imported: to add one, write its file and add its function here."""

from collections.abc import Callable, Mapping

from modelforge.importing import sake, schnetpack, torchmdnet
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential

FORMATS: Mapping[str, Callable[[Hyper, Arrays], ImportedPotential]] = {
    "schnetpack": schnetpack.imported,
    "torchmdnet": torchmdnet.imported,
    "sake": sake.imported,
}
