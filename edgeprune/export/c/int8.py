"""The C of a quantised file: near to what that means on the samples of the check."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprune.errors import ParityError
from edgeprune.export import ort
from edgeprune.export.exact import meaning
from edgeprune.export.floatfile import snr_db
from edgeprune.export.judging import MIN_SNR_DB
from edgeprune.export.parity import Sample


def check_meaning(quantized: Path, samples: Sequence[Sample], got: Sequence[Sequence[np.ndarray]], what: str) -> float:
    """The signal-to-noise ratio in decibels against what a quantised file means, computed in float.

    Raises:
        ParityError: it is below 20 dB: what is rounded otherwise makes no such difference.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        session = ort.session(meaning(quantized, Path(folder) / "meaning.onnx") or quantized)
        names = [value.name for value in session.get_inputs()]
        wanted = [ort.run_by_name(session, dict(zip(names, one.inputs, strict=True))) for one in samples]
    columns = zip(zip(*wanted, strict=True), zip(*got, strict=True), strict=True)
    worst = min((snr_db(want, have) for want, have in columns), default=math.inf)
    if not worst >= MIN_SNR_DB:
        raise ParityError(f"{what}: expected {MIN_SNR_DB:.0f} dB against what {quantized.name} means, got {worst:.1f}")
    return worst
