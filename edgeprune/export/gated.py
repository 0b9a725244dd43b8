"""A file that picks one of several widths for each sample: what it says of itself, and how it answers a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import parse_json
from edgeprune.units import MOST_WIDTHS

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

WIDTHS = "widths"  # the folder of a run that has several
WEIGHTS = "weights.bin"  # what their graphs share there
GATE = "gate.onnx"  # what the file that picks one is called there
_ENTRY = "edgeprune.gate"


@dataclass(frozen=True, slots=True)
class Gated:
    """The widths of a gated file, from wide to narrow, and the MACs of a sample at each; `gate_macs` are those to pick.

    `output` is the name of the output that tells the number of the width.
    """

    output: str
    widths: tuple[str, ...]
    macs: tuple[int, ...]
    gate_macs: int

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of it."""
        told = {"output": self.output, "widths": self.widths, "macs": self.macs, "gate_macs": self.gate_macs}
        return {_ENTRY: json.dumps(told)}

    def mean_macs(self, picks: np.ndarray) -> float:
        """The mean over samples `(n,)` by the widths that were picked for them."""
        return float(np.asarray(self.macs, dtype=np.float64)[picks].mean()) + self.gate_macs


def gated_in(stated: Mapping[str, str], outputs: Sequence[str], where: str) -> Gated | None:
    """What a file says of its widths; None for one that picks none.

    Raises:
        InputError: the entry is malformed, or names an output that there is not; `where` names the file.
    """
    text = stated.get(_ENTRY)
    if text is None:
        return None
    expected = f"{where}: {_ENTRY}: expected an output, 2 to {MOST_WIDTHS} widths and the MACs of each"
    entry = parse_json(text, expected)
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    output: Any = fields.get("output")
    widths: Any = fields.get("widths")
    macs: Any = fields.get("macs")
    own: Any = fields.get("gate_macs")
    fits = _are_texts(widths) and _are_counts(macs, 1) and _are_counts([own], 0) and output in outputs
    if not fits or not 2 <= len(widths) == len(macs) <= MOST_WIDTHS:
        raise InputError(f"{expected}, got {shown(text, 80)}")
    return Gated(output, tuple(widths), tuple(macs), own)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is str for value in values)


def _are_counts(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value < 2**63 for value in values)


@dataclass(slots=True, eq=False)
class OneByOne:
    """A session of a gated file as one of a plain file: a batch goes through it sample by sample.

    The width is no output of it; `picked` are those of all samples so far, in their order.
    """

    session: InferenceSession
    gated: Gated
    picked: list[int] = field(default_factory=list)

    def get_inputs(self) -> Any:
        """The session's."""
        return self.session.get_inputs()

    def get_outputs(self) -> list[Any]:
        """The network's own."""
        return [value for value in self.session.get_outputs() if value.name != self.gated.output]

    def get_modelmeta(self) -> Any:
        """The session's."""
        return self.session.get_modelmeta()

    def run(self, names: None, feed: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """All outputs `(n, ...)` for inputs `(n, ...)`; errors are the session's.

        Raises:
            InputError: the file picks no width that there is, or gives no single answer to a sample.
        """
        n = min(len(array) for array in feed.values())
        rows: list[list[np.ndarray]] = []
        for row in range(n):
            one = {name: np.ascontiguousarray(array[row : row + 1]) for name, array in feed.items()}
            named = dict(zip(self._all_names, self.session.run(None, one, options), strict=True))
            self.picked.append(self._number(named.pop(self.gated.output)))
            rows.append([_one_answer(name, value) for name, value in named.items()])
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    def _number(self, picked: Any) -> int:
        """That of the width; raises InputError where it is none: the file may be anybody's."""
        count = len(self.gated.widths)
        is_one = isinstance(picked, np.ndarray) and picked.shape == (1,) and np.issubdtype(picked.dtype, np.integer)
        if not is_one or not 0 <= int(picked[0]) < count:
            got = str(picked.tolist()) if is_one else _described(picked)
            where = f"output {shown(self.gated.output)}"
            raise InputError(f"{where}: expected the number of a width below {count}, of shape (1,), got {got}")
        return int(picked[0])

    @property
    def _all_names(self) -> list[str]:
        return [value.name for value in self.session.get_outputs()]


def _one_answer(name: str, value: Any) -> np.ndarray:
    """What a file gives for one sample, `(1, ...)`; raises InputError for something else."""
    if not isinstance(value, np.ndarray) or value.shape[:1] != (1,):
        raise InputError(
            f"output {shown(name)}: expected the answer to one sample, of shape (1, ...), got {_described(value)}"
        )
    return value


def _described(value: Any) -> str:
    return (
        f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray | np.generic) else type(value).__name__
    )
