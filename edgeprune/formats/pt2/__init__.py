"""Exported programs in .pt2 files, read without trusting them."""

from edgeprune.formats.pt2.archive import list_records, zip_names
from edgeprune.formats.pt2.program import check_names, read_program, write_program

__all__ = ["check_names", "list_records", "read_program", "write_program", "zip_names"]
