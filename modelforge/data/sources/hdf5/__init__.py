"""HDF5 files of the SPICE and ANI releases, and of the original modelforge."""

from modelforge.data.sources.hdf5.source import HDF5, read_parts

__all__ = ["HDF5", "read_parts"]
