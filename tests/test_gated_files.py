"""A file that picks a width for each sample, made by anybody: what it says of itself and what it gives is checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.gated import Gated, OneByOne, gated_in

NAMES = ("1", "0.5", "0.25")


@pytest.mark.parametrize(
    ("picked", "got"),
    [
        (np.array([2**40]), r"\[1099511627776\]"), (np.array([-1]), r"\[-1\]"), (np.array([3]), r"\[3\]"),
        (np.int64(1), r"shape \(\)"), (np.array([0, 1]), r"shape \(2,\)"), (np.zeros(0, np.int64), r"shape \(0,\)"),
        (np.array([np.nan]), "float64"), ([1], "list"),
    ],
)  # fmt: skip
def test_a_number_that_is_of_no_width_is_refused(picked: Any, got: str) -> None:
    session = cast(Any, SimpleNamespace(get_outputs=lambda: [SimpleNamespace(name="y"), SimpleNamespace(name="width")]))
    session.run = lambda *_: [np.zeros((1, 3)), picked]
    plain = OneByOne(session, Gated("width", NAMES, (3, 2, 1), 0))
    with pytest.raises(InputError, match=f"^output 'width': expected the number of a width below 3, .* got .*{got}"):
        ort.run_by_name(cast(Any, plain), {"x": np.zeros((2, 3))})


@pytest.mark.parametrize("answer", [np.float32(1), np.zeros((2, 3)), np.zeros((0, 3)), [np.zeros(3)]])
def test_a_sample_without_one_answer_is_refused(answer: Any) -> None:
    session = cast(Any, SimpleNamespace(get_outputs=lambda: [SimpleNamespace(name="y"), SimpleNamespace(name="width")]))
    session.run = lambda *_: [answer, np.array([0])]
    with pytest.raises(InputError, match="^output 'y': expected the answer to one sample, "):
        ort.run_by_name(cast(Any, OneByOne(session, Gated("width", NAMES, (3, 2, 1), 0))), {"x": np.zeros((2, 3))})


@pytest.mark.parametrize(
    "entry",
    ["[]", "{}", '{"output": "y", "widths": ["1", "0.5"], "macs": [2], "gate_macs": 0}',
     '{"output": "z", "widths": ["1", "0.5"], "macs": [2, 1], "gate_macs": 0}',
     '{"output": "y", "widths": ["1", "0.5"], "macs": [2, -1], "gate_macs": 0}',
     '{"output": ["y"], "widths": ["1"], "macs": [2], "gate_macs": 0}',
     '{"output": "y", "widths": ["1", "0.5"], "macs": [0, 0], "gate_macs": 0}',
     f'{{"output": "y", "widths": ["1", "0.5"], "macs": [{10**400}, 1], "gate_macs": 0}}',
     f'{{"output": "y", "widths": ["1", "0.5"], "macs": [2, 1], "gate_macs": {2**63}}}'],
)  # fmt: skip
def test_what_a_file_says_of_its_widths_is_checked(entry: str) -> None:
    with pytest.raises(InputError, match=r"f\.onnx: edgeprune\.gate: expected an output, 2 to 8 widths"):
        gated_in({"edgeprune.gate": entry}, ["y"], "f.onnx")
    assert gated_in({}, ["y"], "f.onnx") is None
