"""Data sets: a spec such as `digits` or `csv:flowers.csv?target=kind` becomes a DataSource with three splits."""

from edgeprune.data.batching import Share, batches, check_fits, first_inputs, normalize, order, read
from edgeprune.data.specs import open_data

__all__ = ["Share", "batches", "check_fits", "first_inputs", "normalize", "open_data", "order", "read"]
