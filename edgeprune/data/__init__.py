"""Data sets: a spec such as `digits` or `csv:flowers.csv?target=kind` becomes a DataSource with three splits."""

from edgeprune.data.batching import Share, batches, check_fits, first_inputs, first_samples, order, read
from edgeprune.data.inputs import Inputs, fed, normalize, prepared
from edgeprune.data.specs import open_data

__all__ = [
    "Inputs",
    "Share",
    "batches",
    "check_fits",
    "fed",
    "first_inputs",
    "first_samples",
    "normalize",
    "open_data",
    "order",
    "prepared",
    "read",
]
