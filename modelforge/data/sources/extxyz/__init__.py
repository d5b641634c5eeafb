"""Extended XYZ, the text format of most data sets."""

from modelforge.data.sources.extxyz.source import ExtendedXYZ, read_extxyz, read_parts

__all__ = ["ExtendedXYZ", "read_extxyz", "read_parts"]
