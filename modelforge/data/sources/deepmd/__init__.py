"""Folders of DeePMD-kit's npy files."""

from modelforge.data.sources.deepmd.source import DeePMD, read_parts

__all__ = ["DeePMD", "read_parts"]
