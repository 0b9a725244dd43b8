"""What was measured on a device: how the time of a network's layers moves with their widths."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.cost.layers import ONE_WIDTH, LayerShape
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import read_json

FORMAT = "edgeprune-device/1"
_OF_NETWORKS = "edgeprune-bench/"  # what `edgeprune bench` writes
STEPS = (32, 16, 8, 4)  # channels that kernels work on at a time
_FLAT = 0.2  # of the whole rise of a curve: what it may rise within stairs
_MIN_WIDTHS = 16  # that tell a stair from a slope
_MAX_POINTS = 100_000


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: a layer (the `key` of its shape) at some widths, in milliseconds."""

    layer: str
    width_in: int
    width_out: int
    ms: float

    @property
    def key(self) -> tuple[str, int, int]:
        """What was measured: the layer, and its widths in and out."""
        return self.layer, self.width_in, self.width_out


@dataclass(frozen=True, slots=True)
class Device:
    """A device's profile, as `device.json` holds it.

    `runtime` is e.g. "onnxruntime 1.31.0", `cpu` the processor's name; `batch` and `threads` are how it was measured.
    """

    runtime: str
    cpu: str
    threads: int
    batch: int
    points: tuple[Point, ...]
    _by_layer: dict[str, list[Point]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_layer: dict[str, list[Point]] = {}
        for point in self.points:
            by_layer.setdefault(point.layer, []).append(point)
        object.__setattr__(self, "_by_layer", by_layer)

    def to_json(self) -> str:
        """The document, one line a point."""
        head = {
            "format": FORMAT,
            "runtime": self.runtime,
            "cpu": self.cpu,
            "threads": self.threads,
            "batch": self.batch,
        }
        lines = ",\n  ".join(json.dumps(asdict(point)) for point in self.points)
        return json.dumps(head, indent=1)[:-2] + f',\n "points": [\n  {lines}\n ]\n}}\n'

    def only(self, wanted: Iterable[tuple[str, int, int]]) -> Device:
        """The measurements of these layers at these widths alone: the `key` of each point."""
        keys = set(wanted)
        return replace(self, points=tuple(point for point in self.points if point.key in keys))

    def knows(self, shape: LayerShape) -> bool:
        """Whether the layer was measured, or a wider one that differs from it in nothing else."""
        return bool(self._wider(shape))

    def milliseconds(self, shape: LayerShape) -> float:
        """The time of a layer that the device `knows`."""
        full_in, full_out = self._measured(shape)
        result = self._time(shape, full_in, full_out)
        sides = (
            ((shape.width_out, "out"),) if shape.has_one_width else ((shape.width_in, "in"), (shape.width_out, "out"))
        )
        for width, side in sides:
            result *= self._curve(shape, (full_in, full_out), side)[width]
        return float(result)

    def stairs(self, shape: LayerShape, side: str) -> np.ndarray:
        """The share of its own time that a layer takes at each width of one side ("in" or "out"), `(width + 1,)`.

        Between the measured widths it goes in stairs of the device; it never falls while the width grows.
        """
        width = shape.width_in if side == "in" else shape.width_out
        curve = self._curve(shape, self._measured(shape), side)[: width + 1]
        return np.asarray(curve / curve[-1])

    def _curve(self, shape: LayerShape, full: tuple[int, int], side: str) -> np.ndarray:
        """The stairs of a layer that was measured at the widths `full`."""
        here, there = (0, 1) if side == "in" else (1, 0)
        times = {full[here]: self._time(shape, *full)}
        for point in self._of(shape):
            widths = (point.width_in, point.width_out)
            if widths[here] < full[here] and (shape.has_one_width or widths[there] == full[there]):
                times.setdefault(widths[here], self._time(shape, *widths))
        known = sorted(times)
        top = times[full[here]]
        measured = np.minimum(np.maximum.accumulate([times[width] for width in known]), top) / top
        step = self.step(shape.kind) or 1
        edges = np.minimum(np.ceil(np.arange(full[here] + 1) / step) * step, full[here])
        return np.asarray(np.interp(edges, [0, *known], [0.0, *measured]))

    def _time(self, shape: LayerShape, width_in: int, width_out: int) -> float:
        """What was measured at just these widths."""
        return float(np.median([p.ms for p in self._of(shape) if (p.width_in, p.width_out) == (width_in, width_out)]))

    def _measured(self, shape: LayerShape) -> tuple[int, int]:
        """The widths that stand for a layer: its own, or the nearest wider ones at which both sides were measured."""
        return min(self._wider(shape), key=lambda widths: (widths[0] * widths[1], widths))

    def _wider(self, shape: LayerShape) -> set[tuple[int, int]]:
        widths = {(point.width_in, point.width_out) for point in self._of(shape)}
        return {(a, b) for a, b in widths if a >= shape.width_in and b >= shape.width_out}

    def step(self, kind: str) -> int | None:
        """How many channels make one stair of a kind of layer: the widths that pay are multiples of it; 1 for none.

        None where no layer of the kind was measured at enough widths to tell.
        """
        curves: dict[tuple[str, int], dict[int, list[float]]] = {}
        for point in self.points:
            if point.layer.split()[0] == kind:
                given = 0 if kind in ONE_WIDTH else point.width_in
                curves.setdefault((point.layer, given), {}).setdefault(point.width_out, []).append(point.ms)
        fine = (_fine({width: float(np.median(ms)) for width, ms in times.items()}) for times in curves.values())
        return max((stair(curve) for curve in fine if len(curve) >= _MIN_WIDTHS), default=None)

    def _of(self, shape: LayerShape) -> list[Point]:
        return self._by_layer.get(shape.key, [])


def _fine(times: Mapping[int, float]) -> dict[int, float]:
    """The beginning of a curve (width -> ms), up to the first gap in which the narrowest stair would not be seen.

    A network may have the layer that a kind's stairs are measured on, at widths far from those.
    """
    widths = sorted(times)
    gaps = (n for n, (low, high) in enumerate(pairwise(widths), 1) if high - low > STEPS[-1])
    return {width: times[width] for width in widths[: next(gaps, len(widths))]}


def stair(times: Mapping[int, float]) -> int:
    """The width of the stairs in a curve (width -> ms): the largest step within which it hardly rises; 1 for none."""
    widths = sorted(times)
    whole = times[widths[-1]] - times[widths[0]]
    for step in STEPS:
        pairs = [(a, b) for a, b in pairwise(widths) if math.ceil(a / step) == math.ceil(b / step)]
        if pairs and whole > 0 and sum(times[b] - times[a] for a, b in pairs) < _FLAT * whole:
            return step
    return 1


def read_device(path: str | Path) -> Device:
    """The profile in a device.json.

    Raises:
        InputError: no such file, or not what `edgeprune profile` and the web page write.
    """
    file = Path(path)
    document = read_json(file, "device")
    try:
        return device_in(document)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def device_in(document: Any) -> Device:
    """The profile in a document; InputError where it is none."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        got = document.get("format") if isinstance(document, dict) else type(document).__name__
        if isinstance(got, str) and got.startswith(_OF_NETWORKS):
            raise InputError("it has times of whole networks (edgeprune bench); make one with `edgeprune profile`")
        raise InputError(f"expected the format {FORMAT}, got {shown(got)}; make one with `edgeprune profile`")
    points = document.get("points")
    if not isinstance(points, list) or not 0 < len(points) <= _MAX_POINTS:
        raise InputError(f"points: expected a list of 1 to {_MAX_POINTS} measurements")
    return Device(
        runtime=_string(document, "runtime"),
        cpu=_string(document, "cpu"),
        threads=_count(document, "threads"),
        batch=_count(document, "batch"),
        points=tuple(_points(points)),
    )


def _points(entries: Iterable[Any]) -> Iterable[Point]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"points[{number}]: expected an object, got {type(entry).__name__}")
        try:
            ms = entry.get("ms")
            if isinstance(ms, bool) or not isinstance(ms, int | float) or not (math.isfinite(ms) and ms > 0):
                raise InputError(f"ms: expected milliseconds above 0, got {shown(ms, 40)}")
            yield Point(_string(entry, "layer"), _count(entry, "width_in"), _count(entry, "width_out"), float(ms))
        except InputError as error:
            raise InputError(f"points[{number}].{error}") from error


def _string(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value or len(value) > 400:
        raise InputError(f"{name}: expected a short text, got {shown(value, 40)}")
    return value


def _count(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise InputError(f"{name}: expected a whole number from 1, got {shown(value, 40)}")
    return value
