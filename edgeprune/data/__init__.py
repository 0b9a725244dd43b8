"""Data sets: a spec such as `digits` or `csv:flowers.csv?target=kind` becomes a DataSource with three splits."""

from edgeprune.data.batching import batches, check_fits, normalize
from edgeprune.data.specs import open_data

__all__ = ["batches", "check_fits", "normalize", "open_data"]
