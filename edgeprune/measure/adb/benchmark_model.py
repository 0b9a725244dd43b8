"""LiteRT's `benchmark_model`.

https://github.com/google-ai-edge/LiteRT/tree/main/tflite/tools/benchmark
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgeprune.measure.adb.process import Said
from edgeprune.measure.adb.tool import NUMBER, Timing, number, unreadable
from edgeprune.results.bench import BenchRound

_MIB = 2**20
_REPLACING = re.compile(
    r"Replacing (\d{1,9}) out of (\d{1,9}) node\(s\) with delegate \((\w{1,60})\) node, yielding (\d{1,9}) partition"
)
_NOT_USED = re.compile(r"Though (\w{1,40}) delegate is explicitly applied, the model graph will not be executed by")
_APPLIED = re.compile(r"Explicitly applied (\w{1,40}) delegate, and the model graph will be (completely|partially)")
_MOST_DELEGATES = 4  # that are told of
_TIMINGS = ("Inference timings in us:", "Average inference timings in us:")


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """LiteRT's own program, which runs .tflite files."""

    runtime: str = "LiteRT"
    names: tuple[str, ...] = ("benchmark_model", "android_aarch64_benchmark_model", "android_arm_benchmark_model")
    option: str = "--benchmark-model"
    suffixes: tuple[str, ...] = (".tflite",)
    libraries: tuple[str, ...] = ()
    memory_is: str = "what the process grew by since its start"
    get_it: str = 'LiteRT\'s documentation, under "performance measurement", says where it is'

    @property
    def delegates(self) -> Mapping[str, tuple[str, ...]]:
        """XNNPACK, the kernels without it, or the GPU."""
        return MappingProxyType(
            {
                "xnnpack": ("--use_xnnpack=true",),
                "cpu": ("--use_xnnpack=false",),
                "gpu": ("--use_gpu=true",),
                "nnapi": ("--use_nnapi=true",),
            }
        )

    def arguments(self, model: str, timing: Timing) -> tuple[str, ...]:
        """A given number of inferences, as few seconds as that takes."""
        return (
            f"--graph={model}",
            f"--num_threads={timing.threads}",
            f"--num_runs={timing.runs}",
            "--min_secs=0.1",
            *self.delegates[timing.delegate],
        )

    def read(self, said: Said) -> BenchRound:
        """Of e.g. `Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 1.2, Inference (avg): 3`.

        Raises:
            InputError: there is no such line.
        """
        text = said.text
        at = max(text.rfind(start) for start in _TIMINGS)
        line = text[at:].splitlines()[0] if at >= 0 else ""
        mean = number(r"(?:Inference \(avg\)|no stats|Inference): ", line)
        if mean is None:
            raise unreadable(self.names[0], _TIMINGS[0], said)
        stats = text[:at].rpartition("count=")[2].splitlines()[:1]  # of the timed runs: those to warm up stand before
        own = f"count={stats[0]}" if stats else ""
        count = number("count=", own)
        return BenchRound(
            mean_ms=mean / 1e3,
            p50_ms=_ms(number("median=", own)),
            p95_ms=_ms(number("p95=", own)),
            std_ms=_ms(number("std=", own)),
            first_ms=_ms(number("First inference: ", line)),
            n_runs=int(count) if count and count < 2**53 else None,
            memory_bytes=_memory(text[at:]),
            delegated=_delegated(text),
        )


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3


def _memory(text: str) -> int | None:
    """The peak that it watched, or else the growth of the resident set; in bytes."""
    watched = number(r"Overall peak memory footprint \(MB\) via periodic monitoring: ", text)
    grown = number(rf"emory footprint[^\n]{{0,80}}\(MB\): init={NUMBER[1:-1]} overall=", text)
    found = grown if watched is None else watched
    return int(found * _MIB) if found is not None and found < 2**33 else None


def _delegated(text: str) -> str | None:
    """Who ran how much of the graph, as far as that is told."""
    told = [
        f"{name}: {taken} of {of} nodes in {parts} part{'s' * (parts != '1')}"
        for taken, of, name, parts in _REPLACING.findall(text)
    ]
    told += [f"{name}: none of it" for name in _NOT_USED.findall(text)]
    if not told:
        told = [f"{name}: {how}" for name, how in _APPLIED.findall(text)]
    return "; ".join(list(dict.fromkeys(told))[:_MOST_DELEGATES]) or None
