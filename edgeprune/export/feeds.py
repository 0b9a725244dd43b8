"""What a network's files are run on: an array for its one input, or one for each by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.export.ort import Feed
from edgeprune.graph.capture import Program
from edgeprune.graph.owninputs import spared
from edgeprune.graph.sizes import arguments


def arrays_of(feed: Feed) -> list[np.ndarray]:
    """One for each input, in order."""
    return list(feed.values()) if isinstance(feed, Mapping) else [feed]


def changed(feed: Feed, change: Callable[[np.ndarray], np.ndarray]) -> Feed:
    """Each array, changed."""
    return {name: change(x) for name, x in feed.items()} if isinstance(feed, Mapping) else change(feed)


def rows(feed: Feed, which: slice | np.ndarray | Sequence[int]) -> Feed:
    """These samples."""
    return changed(feed, lambda array: array[which])


def repeated(feed: Feed, count: int) -> Feed:
    """So many samples, from the start again where there are too few."""
    return rows(feed, np.arange(count) % n_rows(feed))


def n_rows(feed: Feed) -> int:
    """How many samples there are."""
    return next((len(array) for array in arrays_of(feed) if array.ndim), 1)


def in_pytorch(program: ExportedProgram) -> Callable[[Feed], Any]:
    """A program as a function of what its full file is run on, without gradients."""
    module: Any = Program.adopt(program).frozen_module()

    def answered(feed: Feed) -> Any:
        with torch.no_grad():
            args = arguments(program, [torch.from_numpy(array) for array in arrays_of(feed)])
            return module(*spared(module, args))

    return answered


def filled(n_rows: int, batch: int) -> np.ndarray:
    """The places of rows in whole batches, `(n_batches, batch)`; the last one is filled from the start."""
    return (np.arange(math.ceil(n_rows / batch) * batch) % n_rows).reshape(-1, batch)
