"""ONNX in: the batch that a file states or leaves free, outputs without one, and graphs that end it or need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_nets import Node, judged, model, written

from edgeprune.errors import InputError
from edgeprune.formats.load import load

R = np.random.default_rng(2)


def w(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32) / 3


# -- outputs without a batch


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_outputs_that_are_the_same_for_all_rows_are_read(tmp_path: Path, batch: int | str) -> None:
    """A detector's anchors, and single numbers, as CLIP's scale."""
    nodes: list[Node]
    nodes = [("MatMul", "x wa", "h"), ("Exp", "k", "scale"), ("Sigmoid", "p", "anchors"), ("ReduceMean", "p", "mean")]
    nodes[3] = (*nodes[3], {"keepdims": 0})
    weights = {"wa": w(6, 4), "k": 0.5, "p": w(8, 4)}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (batch, 6)}, weights, ("h", "scale", "anchors", "mean")))
    x = torch.randn(4, 6)
    found = load(path).program.module()(x)
    n_rows = batch if isinstance(batch, int) else 4
    runs = [judged(path, [rows.numpy()]) for rows in x.split(n_rows)]
    np.testing.assert_allclose(found["h"].detach(), np.concatenate([run[0] for run in runs]), rtol=1e-4, atol=1e-5)
    for name, wanted in zip(("scale", "anchors", "mean"), runs[0][1:], strict=True):
        assert tuple(found[name].shape) == wanted.shape
        np.testing.assert_allclose(found[name].detach(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_single_number_of_all_rows_is_read_of_a_free_batch_alone(tmp_path: Path, batch: int | str) -> None:
    nodes = [("MatMul", "x wa", "h"), ("ReduceMean", "h", "y", {"keepdims": 0})]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (batch, 6)}, {"wa": w(6, 4)}))
    if batch == 1:
        with pytest.raises(
            InputError, match=r"expected a batch that can be freed.*'n1' \(ReduceMean\) gives no batch on: output 'y'"
        ):
            load(path)
        return
    found = load(path).program.module()(x := torch.randn(4, 6))
    np.testing.assert_allclose(found.detach(), judged(path, [x.numpy()])[0], rtol=1e-4, atol=1e-5)


# -- a batch that is freed


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_a_shape_that_is_expanded_to_follows_the_batch(tmp_path: Path, batch: int, shape: tuple[int, ...]) -> None:
    """As PyTorch's exporter writes F.normalize: the norm of each row, repeated to the shape of all rows (0 here)."""
    nodes: list[Node] = [
        ("MatMul", "x wa", "h"), ("ReduceL2", "h", "n", {"axes": [1]}), ("Expand", "n s", "e"), ("Div", "h e", "d"),
        ("ReduceSum", "d a", "y", {"keepdims": 0}) if len(shape) == 3 else ("Relu", "d", "y"),
    ]  # fmt: skip
    weights = {"wa": w(6, 8), "s": [size or batch for size in shape], "a": [0]}
    if len(shape) == 2:
        del weights["a"]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (batch, 6)}, weights))
    found = load(path).program.module()(x := torch.randn(8, 6)).detach()
    wanted = np.concatenate([judged(path, [rows.numpy()])[0] for rows in x.split(batch)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


EXPANDED: dict[str, tuple[list[Node], dict[str, Any], tuple[int, ...]]] = {
    "expand": (
        [("Expand", "c s", "e"), ("Concat", "e x", "y", {"axis": 1})],
        {"c": w(1, 1, 5), "s": [4, 1, 5]},
        (3, 5),
    ),
    "tile": ([("Tile", "c s", "e"), ("Concat", "e x", "y", {"axis": 1})], {"c": w(1, 1, 5), "s": [4, 2, 1]}, (3, 5)),
    "folded": ([("Concat", "c x", "y", {"axis": 1})], {"c": np.repeat(w(1, 1, 5), 4, 0)}, (3, 5)),
    "a row": ([("Expand", "c s", "e"), ("Concat", "x e", "y", {"axis": 1})], {"c": w(5), "s": [4, 5]}, (5,)),
    "added": ([("Expand", "c s", "e"), ("Add", "x e", "y")], {"c": w(1, 3, 5), "s": [4, 3, 5]}, (3, 5)),
    "product": ([("Expand", "c s", "e"), ("MatMul", "x e", "y")], {"c": w(1, 5, 2), "s": [4, 5, 2]}, (3, 5)),
    "weight": ([("MatMul", "x c", "y")], {"c": np.ones((4, 2), np.float32)}, (4,)),  # as many columns as rows come in
}


@pytest.mark.parametrize("name", EXPANDED)
def test_a_constant_that_is_repeated_for_the_batch_follows_any_other(tmp_path: Path, name: str) -> None:
    nodes, weights, sizes = EXPANDED[name]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (4, *sizes)}, weights))
    program = load(path).program
    x = torch.randn(8, *sizes)
    wanted = np.concatenate([judged(path, [rows.numpy()])[0] for rows in x.split(4)])
    np.testing.assert_allclose(program.module()(x).detach(), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(program.module()(x[:3]).detach(), wanted[:3], rtol=1e-5, atol=1e-6)
    shapes = {tuple(tensor.shape) for tensor in program.state_dict.values()}
    assert not [shape for shape in shapes if shape[0] == 4 and name != "weight"], "one row is held"


# -- a batch that cannot be freed


ENDS: dict[str, tuple[Node, Any]] = {
    "squeeze": (("Squeeze", "h", "y"), {}),
    "gather": (("Gather", "h i", "y", {"axis": 0}), {"i": 0}),
    "gather_list": (("Gather", "h i", "y", {"axis": 0}), {"i": [0]}),
    "slice": (("Slice", "h s e a", "y"), {"s": [0], "e": [1], "a": [0]}),
    "mean": (("ReduceMean", "h", "y", {"axes": [0], "keepdims": 0}), {}),
    "argmax": (("ArgMax", "h", "y", {"axis": 0, "keepdims": 0}), {}),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_operator_that_ends_a_batch_is_named(tmp_path: Path, name: str) -> None:
    node, weights = ENDS[name]
    path = written(
        tmp_path / "net.onnx", model([("MatMul", "x wa", "h"), node], {"x": (1, 6)}, {"wa": w(6, 5)} | weights)
    )
    told = rf"a batch that can be freed.* of 1.*'n1' \({node[0]}\).*output 'y'.*; export it with a free batch$"
    with pytest.raises(InputError, match=told):
        load(path)


def test_a_batch_that_ends_and_comes_back_is_freed(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("MatMul", "x wa", "h"),
        ("Squeeze", "h", "s"),
        ("Reshape", "s t", "r"),
        ("MatMul", "r wb", "y"),
    ]
    weights = {"wa": w(6, 5), "t": [-1, 5], "wb": w(5, 3)}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 6)}, weights))
    found = load(path).program.module()(x := torch.randn(4, 6)).detach()
    wanted = np.concatenate([judged(path, [row.numpy()])[0] for row in x.split(1)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needed", [1, 2, 8])
@pytest.mark.parametrize("op", ["Reshape", "Expand"])
def test_a_graph_that_needs_a_batch_in_a_file_that_leaves_it_free_is_refused(
    tmp_path: Path, op: str, needed: int
) -> None:
    shape = {"s": [needed, 5]}
    nodes: list[Node] = [("MatMul", "x wa", "h")]
    nodes += [("Reshape", "h s", "y")] if op == "Reshape" else [("Expand", "b s", "e"), ("Sub", "h e", "y")]
    weights = {"wa": w(6, 5)} | shape | ({"b": w(1, 5)} if op == "Expand" else {})
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ("n", 6)}, weights))
    if op == "Expand" and needed == 1:
        assert load(path).program.module()(torch.randn(4, 6)).shape == (4, 5)
        return
    told = rf"node 'n\d' \({'Reshape' if op == 'Reshape' else 'Sub'}\).*; export it again with a batch that is free"
    with pytest.raises(InputError, match=told) as caught:
        load(path)
    assert "dynamic_batch" not in str(caught.value)
    assert needed == 2 or f"a batch of {needed} goes through" in str(caught.value)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("row", [range(12), [3, 0, 11, 7]], ids=["all", "some"])
def test_rows_of_a_flat_batch_are_taken_of_any_other(tmp_path: Path, batch: int, row: range | list[int]) -> None:
    """As PyTorch's newer exporter writes `as_strided`."""
    places = np.stack([12 * k + np.array(row) for k in range(batch)])
    nodes = [("Reshape", "x t", "flat"), ("Gather", "flat i", "g"), ("MatMul", "g wa", "y")]
    weights = {"t": np.array([-1]), "i": places, "wa": w(len(row), 5)}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (batch, 3, 4)}, weights))
    x = torch.randn(6, 3, 4)
    wanted = np.concatenate([judged(path, [rows.numpy()])[0] for rows in x.split(batch)])
    np.testing.assert_allclose(load(path).program.module()(x).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_a_constant_grid_is_that_of_all_rows(tmp_path: Path) -> None:
    proto = model(
        [("GridSample", "x g", "y", {"align_corners": 1})], {"x": (1, 2, 5, 6)}, {"g": w(1, 3, 4, 2)}, opset=20
    )
    path = written(tmp_path / "net.onnx", proto)
    x = torch.randn(3, 2, 5, 6)
    wanted = np.concatenate([judged(path, [row.numpy()])[0] for row in x.split(1)])
    np.testing.assert_allclose(load(path).program.module()(x), wanted, rtol=1e-4, atol=1e-5)
