"""Numpy archives, as of rMD17, MD22 and sGDML."""

from modelforge.data.sources.npz.source import Npz, read_parts

__all__ = ["Npz", "read_parts"]
