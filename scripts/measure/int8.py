"""Convolutional networks at half of their MACs, in float and in int8, timed beside the dense ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune import capture
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.measure.latency import measure_files
from measure import peers
from measure.networks import build, find
from measure.peers import KEEP_MACS, slim_for_this_machine, time_share

Record = dict[str, Any]
NETWORKS = [name for name in peers.NETWORKS if not name.startswith("vit")]  # those of convolutions
_CALIBRATION = 4
_ANY_DROP = 100.0  # points: with random weights there is no accuracy to keep, and all layers are quantised
_SECONDS = 20.0


def compare(name: str) -> Record:
    """One torchvision network: the times of its slim files as shares of the dense one's and of each other's."""
    torch.set_num_threads(1)
    model, inputs = build(find(f"torchvision:{name}"))
    images = np.random.default_rng(0).standard_normal((_CALIBRATION, *inputs[0].shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        dense, slim, int8 = (Path(folder) / f"{kind}.onnx" for kind in ("dense", "slim", "int8"))
        program = capture(model, inputs)
        draft_onnx(program, dense)
        draft_onnx(slim_for_this_machine(program, KEEP_MACS), slim)
        quantised = write_int8(slim, int8, images, max_drop=_ANY_DROP)
        times = measure_files([dense, slim, int8], [images[:1]] * 3, runs=200, max_seconds=_SECONDS)
        sizes = [path.stat().st_size for path in (dense, slim, int8)]
    return {
        "name": name,
        "dense_ms": round(float(np.median(times[:, 0])), 4),
        "slim over dense": time_share(times[:, [0, 1]]),
        "int8 over slim": time_share(times[:, [1, 2]]),
        "int8 over dense": time_share(times[:, [0, 2]]),
        "bytes": dict(zip(("dense", "slim", "int8"), sizes, strict=True)),
        "snr_db": round(quantised.snr_db, 1),
    }
