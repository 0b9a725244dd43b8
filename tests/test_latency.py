"""Timing two ONNX files, and the sessions they run in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.measure import latency
from edgeprune.measure.latency import compare_latency, ratio_interval
from edgeprune.progress import Silent


def write_mlp(path: Path, width: int, n_layers: int) -> Path:
    """`n_layers` square matrix products over `(batch, width)`; the weights are twice the identity."""
    weight = numpy_helper.from_array(2 * np.eye(width, dtype=np.float32), "w")
    names = ["x", *(f"h{i}" for i in range(1, n_layers)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in zip(names, names[1:], strict=False)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {"big": write_mlp(folder / "big.onnx", 512, 12), "small": write_mlp(folder / "small.onnx", 32, 2)}


def inputs(width: int, batch: int = 1) -> np.ndarray:
    return np.ones((batch, width), np.float32)


def test_a_smaller_network_is_significantly_faster(files):
    result = compare_latency(files["big"], files["small"], inputs(512, 4), inputs(32, 4), runs=60, warmup=5)
    assert result.ratio_interval[0] <= result.ratio <= result.ratio_interval[1] < 0.7
    assert result.significant
    assert result.dense_p50_ms <= result.dense_p95_ms and result.slim_p50_ms <= result.slim_p95_ms
    assert result.ratio == pytest.approx(result.slim_p50_ms / result.dense_p50_ms)
    assert (result.threads, result.batch_size, result.n_runs) == (1, 4, 60)


def test_a_network_against_itself_is_about_as_fast(files):
    result = compare_latency(files["big"], files["big"], inputs(512), inputs(512), runs=100)
    assert 0.8 < result.ratio < 1.25


def test_slow_runs_are_cut_short(files):
    start = perf_counter()
    result = compare_latency(
        files["big"], files["big"], inputs(512), inputs(512), runs=10**6, warmup=10**6, max_seconds=0.3
    )
    assert perf_counter() - start < 3
    assert latency.MIN_RUNS <= result.n_runs < 10**6


def test_runs_alternate_and_are_counted():
    order: list[int] = []
    told: list[tuple[int, int]] = []

    class Told(Silent):
        def stage(self, title: str) -> None: ...
        def say(self, message: str) -> None: ...
        def advance(self, done: int, total: int, note: str = "") -> None:
            told.append((done, total))

    runners = [partial(order.append, number) for number in range(4)]
    times = latency._measure(runners, latency._Timing(runs=200, warmup=1, max_seconds=5), Told())
    rounds = np.reshape(order, (201, 4))
    assert (np.sort(rounds) == range(4)).all()
    assert times.shape == (200, 4) and (times > 0).all()
    assert told == [(done, 200) for done in range(1, 201)]
    # Whoever follows itself finds its weights in the caches: none does so more often than the others.
    for number in range(4):
        assert 0.15 < (rounds[:, -1] == number).mean() < 0.35
        assert 0.15 < (rounds[:, 0] == number).mean() < 0.35


def test_the_ratios_interval_covers_it_and_is_the_same_every_time():
    rng = np.random.default_rng(0)
    n_covered = 0
    for _ in range(100):
        slow = rng.lognormal(0, 0.3, 100)  # what slows one run slows its pair
        times = np.stack([slow * rng.lognormal(0, 0.1, 100), 0.6 * slow * rng.lognormal(0, 0.1, 100)], axis=1)
        low, high = ratio_interval(times)
        n_covered += low <= 0.6 <= high
    assert n_covered >= 88
    assert ratio_interval(times) == (low, high)


@pytest.mark.parametrize("options", [{"runs": 0}, {"warmup": -1}, {"max_seconds": 0}, {"threads": 0}])
def test_options_out_of_range_are_refused(files, options):
    with pytest.raises(InputError, match="expected at least 1"):
        compare_latency(files["small"], files["small"], inputs(32), inputs(32), **options)


def test_inputs_that_do_not_fit_are_refused(files):
    with pytest.raises(InputError, match="same batch for both files, got 1 and 2"):
        compare_latency(files["small"], files["small"], inputs(32), inputs(32, 2))
    with pytest.raises(InputError, match=r"input 'x' of shape \(1, 33\): onnxruntime failed") as caught:
        compare_latency(files["small"], files["small"], inputs(33), inputs(33))
    assert "\n" not in str(caught.value)


def test_a_session_has_the_options_asked_for(files):
    options = ort.session(files["small"], threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def test_run_gives_the_output(files):
    output = ort.run(ort.session(files["small"]), inputs(32, 3))
    assert output.shape == (3, 32) and (output == 4).all()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(None, "nothing there"), (b"", "cannot load it"), (b"no protobuf at all", "cannot load it")],
)
def test_files_that_are_no_models_are_refused(tmp_path, content, fragment):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        ort.session(path)
    assert str(path) in str(caught.value) and fragment in str(caught.value) and "\n" not in str(caught.value)


def test_models_of_two_inputs_are_refused(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "add", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"one input, got \['a', 'b'\]"):
        ort.run(ort.session(tmp_path / "a.onnx"), np.ones(1, np.float32))
