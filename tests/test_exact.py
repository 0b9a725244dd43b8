"""What a quantised file means, whatever the CPU: against integer arithmetic, and against what saturates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import edgeprune.export.conversions as conversions
from edgeprune.export import ort
from edgeprune.export.conversions import write_dynamic
from edgeprune.export.exact import exceeds_16_bits, may_saturate, meaning
from edgeprune.export.quantize import write_int8
from edgeprune.results import LeftOut

SEEDS = st.integers(0, 2**31)


def saved(path: Path, nodes: list[onnx.NodeProto], sizes: list[int], stored: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def linear(path: Path, *matrices: np.ndarray) -> Path:
    """`x @ m.T` for every matrix, with a ReLU between, in float."""
    nodes, value = [], "x"
    for k, _ in enumerate(matrices):
        nodes.append(helper.make_node("Gemm", [value, f"w{k}"], [f"h{k}"], f"gemm{k}", transB=1))
        nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"], f"relu{k}"))
        value = f"r{k}"
    del nodes[-1]
    nodes[-1].output[0] = "y"
    weights = {f"w{k}": matrix.astype(np.float32) for k, matrix in enumerate(matrices)}
    return saved(path, nodes, [matrices[0].shape[1]], weights)


def normals(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators_in(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


# --- the meaning


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_a_quantised_product_is_that_of_its_integers(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Scales are powers of two, so that floats hold every sum: the numbers are the same to the bit."""
    folder, rng = tmp_path_factory.mktemp("qdq"), np.random.default_rng(seed)
    n, k = int(rng.integers(1, 6)), int(rng.integers(1, 40))
    weights = rng.integers(-127, 128, (k, n)).astype(np.int8)
    scales, zero = 2.0 ** rng.integers(-6, 3, n), np.uint8(rng.integers(0, 256))
    x = rng.integers(0, 256, (3, k)).astype(np.int64) - int(zero)
    stored = {
        "xs": np.float32(0.5), "xz": zero, "w": weights, "ws": scales.astype(np.float32),
        "wz": np.zeros(n, np.int8), "ys": np.float32(2.0**7), "yz": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "ys", "yz"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "ys", "yz"], ["y"]),
    ]
    path = saved(folder / "file.onnx", nodes, [k], stored)
    exact = meaning(path, folder / "exact.onnx")
    assert exact == folder / "exact.onnx" and "DequantizeLinear" not in operators_in(exact)
    want = np.clip(np.rint(x @ weights.astype(np.int64) * 0.5 * scales / 2.0**7) + 128, 0, 255) - 128
    np.testing.assert_array_equal(ort.run(ort.session(exact), (x * 0.5).astype(np.float32)), want * 2.0**7)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_an_integer_product_is_exact_where_16_bits_saturate(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("dynamic"), np.random.default_rng(seed)
    n, k = int(rng.integers(1, 6)), int(rng.integers(2, 40))
    weights = rng.integers(100, 128, (k, n)).astype(np.int8)  # of one sign: sums of pairs exceed 16 bits
    weights[:, ::2] *= -1
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    path = saved(folder / "file.onnx", nodes, [k], {"w": weights, "wz": np.int8(0)})
    exact = meaning(path, folder / "exact.onnx")
    assert exact is not None and "MatMulInteger" not in operators_in(exact)
    x = np.concatenate([np.full((1, k), 255), np.zeros((1, k)), rng.integers(0, 256, (2, k))]).astype(np.float32)
    want = x.astype(np.int64) @ weights.astype(np.int64)  # the scale is 1
    np.testing.assert_array_equal(ort.run(ort.session(exact), x), want)
    assert may_saturate(path) == ("w",)


def test_a_float_file_has_no_other_meaning(tmp_path: Path) -> None:
    assert meaning(linear(tmp_path / "float.onnx", normals(3, 4)), tmp_path / "exact.onnx") is None
    assert not (tmp_path / "exact.onnx").exists()


# --- what saturates


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.integers(-128, 127), min_size=1, max_size=12), seed=SEEDS)
def test_two_products_saturate_where_it_is_said_and_nowhere_else(weights: list[int], seed: int) -> None:
    """As x86 adds them without VNNI: two by two in 16 bits, whichever two they are."""
    values = np.array(weights, np.int8)
    rng = np.random.default_rng(seed)
    activations = rng.integers(0, 256, len(weights)) * rng.integers(0, 2) + 255 * rng.integers(0, 2, len(weights))
    products = np.minimum(activations, 255) * values.astype(np.int64)
    pairs = products[:, None] + products[None, :]
    pairs = pairs[~np.eye(len(weights), dtype=bool)]
    full = 255 * (values.astype(np.int64)[:, None] + values.astype(np.int64)[None, :])
    full = full[~np.eye(len(weights), dtype=bool)]
    if exceeds_16_bits(values):
        assert (full != np.clip(full, -(2**15), 2**15 - 1)).any()
    else:
        np.testing.assert_array_equal(pairs, np.clip(pairs, -(2**15), 2**15 - 1))


def test_weights_of_7_bits_saturate_nowhere(tmp_path: Path) -> None:
    source, x = linear(tmp_path / "float.onnx", normals(16, 12), normals(5, 16, seed=2)), normals(200, 12, seed=3)
    for write in (write_int8, write_dynamic):
        for reduced in (True, False):
            out = tmp_path / f"{write.__name__}{reduced}.onnx"
            file = write(source, out, x, max_drop=100, reduce_range=reduced)
            assert len(may_saturate(out)) == (0 if reduced else 2)
            assert file.exact_snr_db > 25
            if reduced:
                assert file.snr_db == pytest.approx(file.exact_snr_db, abs=1), "all CPUs compute what it means"


# --- both are judged


def judged_by(source: Path, here: float, exact: float) -> Callable[[Path], float]:
    """The float file has 0.9; files that hold integers `here`, and what they mean `exact`."""

    def value(path: Path) -> float:
        if path == source:
            return 0.9
        return here if operators_in(path) & {"DequantizeLinear", "MatMulInteger"} else exact

    return value


@pytest.mark.parametrize("write", [write_int8, write_dynamic])
@pytest.mark.parametrize(
    ("here", "exact", "within", "said"),
    [
        (0.9, 0.895, True, ""),
        (0.5, 0.9, False, "a drop of 40.00 points (at most 1 asked) on this CPU, though not as the file means it"),
        (0.9, 0.6, False, "a drop of 30.00 points (at most 1 asked) as it means it"),
        (0.5, 0.6, False, "a drop of 40.00 points (at most 1 asked); ship the float file"),
    ],
)
def test_the_budget_holds_for_the_meaning_and_for_this_cpu(
    write: Callable, here: float, exact: float, within: bool, said: str, tmp_path: Path
) -> None:
    source = linear(tmp_path / "float.onnx", normals(4, 6))
    file = write(source, tmp_path / "out.onnx", normals(20, 6), value=judged_by(source, here, exact))
    assert (file.drop, file.exact_drop) == pytest.approx((100 * (0.9 - here), 100 * (0.9 - exact)))
    assert file.exact_value == exact and file.within_budget is within and said in file.note


def test_an_lstm_of_8_bits_is_left_out_where_nothing_tells_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {"w": normals(1, 32, 5), "r": normals(1, 32, 8), "axes": np.array([0])}
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "state"], "lstm", hidden_size=8),
        helper.make_node("Squeeze", ["state", "axes"], ["y"], "squeeze"),
    ]
    source, x, out = saved(tmp_path / "float.onnx", nodes, [4, 5], stored), normals(6, 4, 5), tmp_path / "out.onnx"
    for saturates in (True, False):
        monkeypatch.setattr(conversions, "may_saturate_here", lambda saturates=saturates: saturates)
        file = write_dynamic(source, out, x, max_drop=100, reduce_range=False)
        if saturates:
            assert isinstance(file, LeftOut) and "--int8-for any writes 7 bits" in file.reason and not out.exists()
        else:
            assert file.exact_snr_db == file.snr_db
    monkeypatch.setattr(conversions, "may_saturate_here", lambda: True)
    file = write_dynamic(source, out, x, max_drop=100, reduce_range=True)
    assert file.exact_snr_db == file.snr_db and may_saturate(out) == ()
