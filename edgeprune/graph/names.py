"""Names of the tensors that surgery adds to a program."""

from __future__ import annotations

ADDED = "edgeprune_"
GATHER = ADDED + "keep_"  # + the input's name: the kept features' indices
ORDER = ADDED + "order_"  # + a number: the places of kept features in what reads them
NUMBERS = ADDED + "ids_"  # + the input's name: the new number of every old id, CUT_ID where it has none
UNKNOWN = "_else_"  # + an old id, behind such a name: what the ids that were cut stand for
OLD_IDS = ADDED + "old_ids_"  # + the input's name: the old id of every new number
CUT_ID = 2**31 - 1  # no row of any table: PyTorch and onnxruntime refuse it


def split_names(weight: str) -> tuple[str, str]:
    """What the two weights are called that a layer's becomes: first what it narrows by, then what it widens by.

    Example: "fc.weight" gives "fc.down.weight" and "fc.up.weight".
    """
    owner, _, attribute = weight.rpartition(".")
    prefix = f"{owner}." if owner else ""
    return f"{prefix}down.{attribute}", f"{prefix}up.{attribute}"
