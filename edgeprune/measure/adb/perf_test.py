"""onnxruntime's `onnxruntime_perf_test`.

https://github.com/microsoft/onnxruntime/tree/main/onnxruntime/test/perftest
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgeprune.measure.adb.process import Said
from edgeprune.measure.adb.tool import Timing, number, unreadable
from edgeprune.results.bench import BenchRound

_MEAN = "Average inference time cost"


@dataclass(frozen=True, slots=True)
class PerfTest:
    """onnxruntime's own program, which runs .onnx and .ort files; a free size is 1."""

    runtime: str = "onnxruntime"
    names: tuple[str, ...] = ("onnxruntime_perf_test",)
    option: str = "--perf-test"
    suffixes: tuple[str, ...] = (".onnx", ".ort")
    libraries: tuple[str, ...] = ("libonnxruntime.so",)
    memory_is: str = "the whole process"
    get_it: str = "a build of onnxruntime for Android has it"

    @property
    def delegates(self) -> Mapping[str, tuple[str, ...]]:
        """onnxruntime's own kernels, or an execution provider that the build has."""
        return MappingProxyType({name: ("-e", name) for name in ("cpu", "xnnpack", "nnapi", "qnn")})

    def arguments(self, model: str, timing: Timing) -> tuple[str, ...]:
        """A given number of inferences on inputs that it makes itself, with percentiles."""
        asked = self.delegates[timing.delegate]
        return (*asked, "-m", "times", "-r", str(timing.runs), "-x", str(timing.threads), "-I", "-s", model)

    def read(self, said: Said) -> BenchRound:
        """Of e.g. `Average inference time cost: 62.2935 ms` and `P50 Latency: 0.0603562 s`.

        Raises:
            InputError: there is no average.
        """
        text = said.text
        mean = number(rf"{_MEAN}(?: total)?: ", text)
        if mean is None:
            raise unreadable(self.names[0], _MEAN, said)
        count, memory = number("Total inference requests: ", text), number("Peak working set size: ", text)
        return BenchRound(
            mean_ms=mean,
            p50_ms=_ms(number("P50 Latency: ", text)),
            p95_ms=_ms(number("P95 Latency: ", text)),
            std_ms=None,
            first_ms=number("First inference time cost: ", text),
            n_runs=int(count) if count and count < 2**53 else None,
            memory_bytes=int(memory) if memory and memory < 2**53 else None,
            delegated=None,
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
