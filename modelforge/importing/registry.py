"""The formats that can be imported: to add one, write its file and add its function here."""

from collections.abc import Callable, Mapping

from modelforge.importing import aimnet, allegro, mace, nequip, sake, schnetpack, torchani, torchmdnet
from modelforge.importing.imported import Arrays, Hyper, ImportedPotential

FORMATS: Mapping[str, Callable[[Hyper, Arrays], ImportedPotential]] = {
    "schnetpack": schnetpack.imported,
    "torchani": torchani.imported,
    "torchmdnet": torchmdnet.imported,
    "aimnet": aimnet.imported,
    "sake": sake.imported,
    "nequip": nequip.imported,
    "allegro": allegro.imported,
    "mace": mace.imported,
}
