"""Files that state how many samples go in at once, as PyTorch's exporter writes them unless it is asked otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.feeds import filled
from edgeprune.lines import shown

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FREE = "batch"


@dataclass(frozen=True, slots=True, eq=False)
class FixedBatch:
    """A session of such a file as one with a free batch: samples go through it `size` at a time, the last filled up."""

    session: InferenceSession
    size: int

    def get_inputs(self) -> list[Any]:
        """The session's, with a free batch."""
        return [
            SimpleNamespace(name=value.name, type=value.type, shape=[_FREE, *value.shape[1:]])
            for value in self.session.get_inputs()
        ]

    def get_outputs(self) -> Any:
        """The session's."""
        return self.session.get_outputs()

    def get_modelmeta(self) -> Any:
        """The session's."""
        return self.session.get_modelmeta()

    def run(self, names: None, feed: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """All outputs `(n, ...)` for inputs `(n, ...)`; errors are the session's.

        Raises:
            InputError: an output has no row for each sample.
        """
        n_rows = min(len(array) for array in feed.values())
        found = []
        for rows in filled(n_rows, self.size):
            part = {name: np.ascontiguousarray(array[rows]) for name, array in feed.items()}
            found.append(self.session.run(None, part, options))
        outputs = zip(self.session.get_outputs(), zip(*found, strict=True), strict=True)
        return [self._joined(value.name, parts)[:n_rows] for value, parts in outputs]

    def _joined(self, name: str, parts: tuple[Any, ...]) -> np.ndarray:
        if any(np.shape(part)[:1] != (self.size,) for part in parts):
            got = ", ".join(map(str, np.shape(parts[0])))
            raise InputError(f"output {shown(name)}: expected a row for each of {self.size} samples, got ({got})")
        return np.concatenate(parts)


def with_free_batch(session: InferenceSession) -> InferenceSession:
    """The session, or one that takes any number of samples where all inputs state the same one."""
    sizes = {value.shape[0] if value.shape else None for value in session.get_inputs()}
    [size] = sizes if len(sizes) == 1 else [None]
    return cast("InferenceSession", FixedBatch(session, size)) if isinstance(size, int) and size > 0 else session


def stated_batch(session: Any) -> int | None:
    """How many samples a file takes at once; None for any number."""
    return session.size if isinstance(session, FixedBatch) else None
