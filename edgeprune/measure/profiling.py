"""Measures a device: how long each layer of a network takes in onnxruntime at several widths."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime

from edgeprune.cost.device import Device, Point, read_device
from edgeprune.cost.layers import LayerShape
from edgeprune.errors import InputError
from edgeprune.export.probes import Probe, probes_of, reference_probes
from edgeprune.files import write_atomically
from edgeprune.progress import Progress
from edgeprune.versions import processor

_FATAL_ONLY = 4
_OTHER_LAYERS = np.ones(2**20, dtype=np.float32)  # 4 MiB: more than the caches next to a core hold
_COLD = "cold weights"  # how layers are timed: what was measured in another way is measured again
_MOVING = ("ReorderInput", "ReorderOutput")  # layouts at the ends of a probe, which a network has not between layers


@dataclass(frozen=True, slots=True)
class Timing:
    """How a layer is timed: `runs` after `warmup`, fewer where one takes long."""

    threads: int = 1
    batch: int = 1
    runs: int = 20
    warmup: int = 3
    max_seconds: float = 0.2

    def check(self) -> None:
        """Raise InputError where a number is out of range."""
        low = {"threads": 1, "batch": 1, "runs": 1, "warmup": 0}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise InputError(f"--{name}: expected at least {least}, got {getattr(self, name)}")


def profile(shapes: Sequence[LayerShape], timing: Timing, progress: Progress, fresh: bool = False) -> Device:
    """This machine's times of these layers; what was measured before is taken over, unless it is to be `fresh`.

    Layers are timed by the runtime's own profiler, kernel by kernel, so that what brings a lone layer's data into
    shape does not count: in a network it is in shape already. Between two runs as much memory is read as other layers
    read: a layer that runs alone finds its weights in the caches, and a linear layer then takes a third of its time.
    """
    timing.check()
    here = this_device(timing)
    points = [] if fresh else list(cached(here))
    known = {point.key for point in points}
    every = [*reference_probes(shapes, timing.batch), *probes_of(shapes, timing.batch)]
    wanted = [probe for probe in every if _key(probe) not in known]
    done = 0
    for _, layer in groupby(wanted, key=lambda probe: id(probe.shape)):
        probes = list(layer)
        for probe, ms in zip(probes, _timed(probes, timing), strict=True):
            points.append(Point(probe.shape.key, probe.width_in, probe.width_out, ms))
        done += len(probes)
        progress.advance(done, len(wanted))
    if wanted:
        keep(replace(here, points=tuple(points)))
    return replace(here, points=tuple(points)).only(map(_key, every))


def _key(probe: Probe) -> tuple[str, int, int]:
    """The `key` of the point that a probe gives."""
    return probe.shape.key, probe.width_in, probe.width_out


def this_device(timing: Timing) -> Device:
    """This machine and its runtime, with nothing measured yet."""
    return Device(f"onnxruntime {onnxruntime.__version__}", processor(), timing.threads, timing.batch, ())


def is_here(device: Device) -> bool:
    """Whether a profile is of this machine and its runtime."""
    return (device.runtime, device.cpu) == (f"onnxruntime {onnxruntime.__version__}", processor())


def cache_file(device: Device) -> Path:
    """Where measurements of a device are kept between runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    told = json.dumps([device.runtime, device.cpu, device.threads, device.batch, _COLD])
    return root / "edgeprune" / f"device-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


def cached(device: Device) -> tuple[Point, ...]:
    """What was measured of a device before; nothing where the file of it cannot be read."""
    path = cache_file(device)
    if not path.is_file():
        return ()
    try:
        found = read_device(path)
    except InputError:  # a cache is only ever a saving of time
        return ()
    same = (found.runtime, found.cpu, found.threads, found.batch)
    return found.points if same == (device.runtime, device.cpu, device.threads, device.batch) else ()


def keep(device: Device) -> None:
    """Remember what was measured; a place that cannot be written to costs time next time, and nothing else."""
    path = cache_file(device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, device.to_json().encode())
    except (OSError, InputError):
        return


def _timed(probes: Sequence[Probe], timing: Timing) -> list[float]:
    """Milliseconds of each probe of a layer; they run in turn, so that what slows the machine slows all."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        timers = [_Timer(probe, timing, Path(folder) / str(n)) for n, probe in enumerate(probes)]
        for _ in range(timing.warmup):
            _each(timers)
        start = perf_counter()
        for _ in range(timing.runs):
            _each(timers)
            if perf_counter() - start > timing.max_seconds * len(timers):
                break
        return [timer.milliseconds(timing.warmup) for timer in timers]


def _each(timers: Iterable[_Timer]) -> None:
    for timer in timers:
        timer.run()


class _Timer:
    """A session of one probe, profiled."""

    def __init__(self, probe: Probe, timing: Timing, prefix: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = timing.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        self._session = onnxruntime.InferenceSession(probe.model(), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        self._feed = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in probe.inputs().items()}

    def run(self) -> None:
        """Once, with the inputs in the caches, as the layer before leaves them, and the weights not."""
        _OTHER_LAYERS.sum()
        for value in self._feed.values():
            value.sum()
        self._session.run(None, self._feed)

    def milliseconds(self, warmup: int) -> float:
        """The kernels' time in the fastest run: what disturbs a machine only makes runs longer."""
        events = json.loads(Path(self._session.end_profiling()).read_bytes())
        kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
        times: dict[str, list[int]] = {}
        for event in kernels:
            if event["args"]["op_name"] not in _MOVING:
                times.setdefault(event["name"], []).append(event["dur"])
        runs = np.sum([durations[warmup:] for durations in times.values()], axis=0)
        return max(float(np.min(runs)), 0.5) / 1e3  # the profiler counts whole microseconds
