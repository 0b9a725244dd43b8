"""Fixtures that several test files share, and the order of the tests."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import onnxruntime
import pytest
import torch

from edgeprune.data import open_data
from edgeprune.records import DataSource, InputFeatures
from edgeprune.results import AccuracyComparison, LatencyComparison, LayerWidth, NetworkFigures, RunRecord, StepRecord

_GOLDEN = (5**0.5 - 1) / 2
_FIRST = ("test_layers.py", "test_cli.py", "test_report.py")


def pytest_configure() -> None:
    """A shell starts a job in the background with Ctrl-C ignored, and so would every command that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured of this machine stays with the tests, and none of them finds what others measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection() -> None:
    """Importing makes objects that stay, and each search for garbage goes through all that there are."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is imported stays: no search looks at it again. Networks are tied in circles, which searches must find."""
    _keep_out_of_searches()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tests import more, and many of its objects; most of what else they made is gone after the file's last."""
    if nextitem is None or nextitem.path != item.path:
        _keep_out_of_searches()


def _keep_out_of_searches() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of sampled tests most go to the sweep, before `-m` is looked at; then those that need no torch come first.

    Those marked slow and the end-to-end ones are next: were they last, one process would wait for the other's.
    """
    _leave_to_the_sweep(items)

    def rank(item: pytest.Item) -> int:
        if item.path.name in _FIRST:
            return 0
        return 1 if item.get_closest_marker("slow") or "e2e" in item.path.parts else 2

    items.sort(key=rank)


def _leave_to_the_sweep(items: list[pytest.Item]) -> None:
    """All but one in n of the tests that one function marked `sampled(n)` makes of its parameters.

    Which ones goes by the golden ratio: every n-th would take one value alone of a parameter that varies as fast.
    """
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None:
            continue
        family = item.nodeid.partition("[")[0]
        if seen[family] * _GOLDEN % 1 >= 1 / mark.args[0]:
            item.add_marker(pytest.mark.sweep)
        seen[family] += 1


def _run_record() -> RunRecord:
    return RunRecord(
        command="edgeprune compress models/digits_mlp.pt --data digits --out runs/demo",
        versions={"edgeprune": "0.1.0", "torch": "2.13.0"},
        asked={"max_drop": 1.0, "keep_macs": None, "criterion": "taylor"},
        assumed=("criterion taylor, because there is data",),
        model={"name": "digits_mlp", "sha256": "ab" * 32, "input_shape": [1, 8, 8], "feature_names": []},
        data={"name": "digits", "n_test": 360},
        dense=NetworkFigures(26_432, 26_762, 110_412, 0.98, 0.975),
        slim=NetworkFigures(3_128, 3_260, 16_023, 0.975, 0.97),
        accuracy=AccuracyComparison(0.975, 0.97, (0.953, 0.988), (0.947, 0.985), 0.5, (-0.9, 2.0), 0.727, 360),
        latency=LatencyComparison(0.0112, 0.0131, 0.0091, 0.0108, 0.81, (0.79, 0.84), 1, 1, 400),
        proof_error=2.4e-7,
        proof_exact=True,
        onnx_parity=9.5e-7,
        widths=(LayerWidth("layers.0", 128, 40), LayerWidth("layers.2", 64, 24)),
        features=InputFeatures(64, tuple(range(10, 40))),
        steps=(
            StepRecord(0, 1.0, 64, 0.98, True),
            StepRecord(1, 0.2, 30, 0.975, True),
            StepRecord(2, 0.1, 20, 0.9, False),
        ),
        locked=({"name": "layers.4", "reason": "graph output", "layers": ["layers.4"]},),
        seconds=12.5,
    )


@pytest.fixture
def make_run() -> Callable[..., RunRecord]:
    """Builds a realistic run record with some fields replaced: `make_run(features=None)`."""

    def make(**changes: Any) -> RunRecord:
        return replace(_run_record(), **changes)

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of some thousand weights are slower on two threads, and far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def exact_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files run as they are written: int8 between conversions is computed in float there, the same on every CPU.

    onnxruntime's int8 kernels saturate on x86 without VNNI, so that what they give says more of the machine.
    """
    options = onnxruntime.SessionOptions

    def as_written() -> onnxruntime.SessionOptions:
        made = options()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", as_written)


@pytest.fixture(scope="session")
def digits() -> DataSource:
    """The embedded digits."""
    return open_data("digits")
