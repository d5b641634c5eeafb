"""Databases of ASE (sqlite, aselmdb) and SchNetPack."""

from modelforge.data.sources.ase_database.source import AseDatabase, read_parts

__all__ = ["AseDatabase", "read_parts"]
