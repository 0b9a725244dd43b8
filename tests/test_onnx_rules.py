"""Each rule of ONNX in: one operator in one tiny file, beside onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_nets import judged, model

from edgeprune.formats.onnxin.network import network_of
from edgeprune.formats.onnxin.nodes import graph_of

R = np.random.default_rng(0)


def w(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32)


def net(nodes: Any, x: tuple[int, ...], weights: Any = None, opset: int = 17, **more: Any) -> Any:
    if isinstance(nodes, tuple):
        nodes = [nodes]
    return nodes, x, weights or {}, opset, more


UNARY = (
    "Abs Acos Asin Asinh Atan Ceil Cos Cosh Erf Exp Floor HardSwish Identity Neg Relu Round Sigmoid Sign Sin Sinh "
    "Softplus Softsign Tan Tanh Elu Selu Celu LeakyRelu HardSigmoid ThresholdedRelu GlobalAveragePool GlobalMaxPool "
    "LpNormalization MeanVarianceNormalization Flatten Softmax LogSoftmax Hardmax ReduceMean ReduceMax "
    "ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare ReduceProd"
).split()
CASES = {name: net((name, "x", "y"), (2, 3, 4, 5)) for name in UNARY}
CASES |= {
    name: net([("Abs", "x", "a"), ("Add", "a c", "b"), (name, "b", "y")], (2, 3), {"c": 1.1})
    for name in ("Log", "Sqrt", "Reciprocal", "Acosh")
}
CASES |= {f"{name}_{k}": net((name, given, "y"), (2, 3, 4), {"c": value}) for name in
          ("Add", "Sub", "Mul", "Div", "Min", "Max") for k, (given, value) in
          enumerate((("x c", 2.5), ("c x", 2.5), ("x c", w(4)), ("c x", w(3, 1))))}  # fmt: skip
CASES |= {f"{name}_where": net([(name, "x c", "m"), ("Where", "m x c", "y")], (2, 3), {"c": w(3)}) for name in
          ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")}  # fmt: skip
CASES |= {
    "conv": net(("Conv", "x w b", "y", {"pads": [1, 0, 1, 0]}), (2, 3, 6, 7), {"w": w(4, 3, 3, 3), "b": w(4)}),
    "conv_uneven": net(
        ("Conv", "x w", "y", {"pads": [0, 1, 2, 1], "strides": [2, 1]}), (2, 3, 6, 7), {"w": w(4, 3, 3, 3)}
    ),
    "conv_same_upper": net(
        ("Conv", "x w", "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), (2, 3, 6, 7), {"w": w(4, 3, 3, 3)}
    ),
    "conv_same_lower": net(
        ("Conv", "x w", "y", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}), (2, 3, 6, 8), {"w": w(4, 3, 3, 3)}
    ),
    "conv_groups": net(("Conv", "x w", "y", {"group": 4, "dilations": [2, 2]}), (2, 4, 6, 7), {"w": w(8, 1, 3, 3)}),
    "conv_1d": net(("Conv", "x w", "y", {"auto_pad": "VALID"}), (2, 4, 9), {"w": w(8, 4, 3)}),
    "conv_3d": net(("Conv", "x w", "y"), (2, 2, 4, 5, 4), {"w": w(3, 2, 2, 2, 2)}),
    "transposed": net(
        ("ConvTranspose", "x w b", "y", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (2, 3, 4, 5),
        {"w": w(3, 4, 3, 3), "b": w(4)},
    ),
    "transposed_uneven": net(
        ("ConvTranspose", "x w", "y", {"strides": [2, 2], "pads": [0, 1, 1, 0]}), (2, 3, 4, 5), {"w": w(3, 4, 3, 3)}
    ),
    "transposed_same": net(
        ("ConvTranspose", "x w", "y", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}), (2, 3, 4, 5), {"w": w(3, 4, 3, 3)}
    ),
    "gemm": net(("Gemm", "x w b", "y", {"transB": 1}), (2, 3), {"w": w(4, 3), "b": w(4)}),
    "gemm_plain": net(("Gemm", "x w b", "y", {"alpha": 0.5, "beta": 2.0}), (2, 3), {"w": w(3, 4), "b": w(1, 4)}),
    "gemm_column": net(("Gemm", "x w b", "y"), (4, 3), {"w": w(3, 4), "b": w(4, 1)}),
    "gemm_one": net(("Gemm", "x w b", "y"), (4, 3), {"w": w(3, 1), "b": np.array(0.5, np.float32)}),
    "gemm_column_one": net(("Gemm", "x w b", "y"), (4, 3), {"w": w(3, 1), "b": w(4, 1)}),
    "matmul": net(("MatMul", "x w", "y"), (2, 5, 3), {"w": w(3, 4)}),
    "matmul_left": net(("MatMul", "w x", "y"), (2, 5, 3), {"w": w(4, 5)}),
    "einsum": net(("Einsum", "x w", "y", {"equation": "bij,jk->bik"}), (2, 5, 3), {"w": w(3, 4)}),
    "batch_norm": net(
        ("BatchNormalization", "x s b m v", "y"), (2, 3, 4, 4), {"s": w(3), "b": w(3), "m": w(3), "v": abs(w(3))}
    ),
    "instance_norm": net(("InstanceNormalization", "x s b", "y"), (2, 3, 4, 4), {"s": w(3), "b": w(3)}),
    "layer_norm": net(("LayerNormalization", "x s b", "y", {"axis": -1}), (2, 3, 4), {"s": w(4), "b": w(4)}),
    "layer_norm_two": net(("LayerNormalization", "x s", "y", {"axis": 1}), (2, 3, 4), {"s": w(3, 4)}),
    "group_norm": net(
        ("GroupNormalization", "x s b", "y", {"num_groups": 2}), (2, 4, 3), {"s": w(4), "b": w(4)}, opset=21
    ),
    "lrn": net(("LRN", "x", "y", {"size": 3, "alpha": 0.1}), (2, 5, 3, 3)),
    "gelu": net(("Gelu", "x", "y", {"approximate": "tanh"}), (2, 3), opset=20),
    "mish": net(("Mish", "x", "y"), (2, 3), opset=18),
    "prelu": net(("PRelu", "x s", "y"), (2, 3, 4, 4), {"s": w(3, 1, 1)}),
    "prelu_one": net(("PRelu", "x s", "y"), (2, 3, 4), {"s": w(1)}),
    "prelu_last": net(("PRelu", "x s", "y"), (2, 3, 4), {"s": w(4)}),
    "clip_old": net(("Clip", "x", "y", {"min": 0.0, "max": 0.5}), (2, 3), opset=9),
    "clip": net(("Clip", "x l h", "y"), (2, 3), {"l": -0.2, "h": 0.5}),
    "softmax_old": net(("Softmax", "x", "y", {"axis": 1}), (2, 3, 4), opset=11),
    "pow": net(("Pow", "x c", "y"), (2, 3), {"c": 2.0}),
    "mod": net(("Mod", "x c", "y", {"fmod": 1}), (2, 3), {"c": 0.7}),
    "sum": net(("Sum", "x c x", "y"), (2, 3), {"c": w(3)}),
    "mean": net(("Mean", "x c", "y"), (2, 3), {"c": w(3)}),
    "dropout": net(("Dropout", "x", "y", {"ratio": 0.3}), (2, 3), opset=11),
    "cast": net([("Cast", "x", "i", {"to": 7}), ("Cast", "i", "y", {"to": 1})], (2, 3)),
    "reshape": net(("Reshape", "x s", "y"), (2, 3, 4), {"s": [0, -1]}),
    "reshape_shape": net(
        [
            ("Shape", "x", "s"),
            ("Gather", "s z", "n"),
            ("Unsqueeze", "n a", "u"),
            ("Concat", "u m", "t", {"axis": 0}),
            ("Reshape", "x t", "y"),
        ],
        (2, 3, 4),
        {"z": 0, "a": [0], "m": [-1]},
    ),
    "squeeze": net([("Unsqueeze", "x a", "u"), ("Squeeze", "u a", "y")], (2, 3), {"a": [1]}),
    "squeeze_old": net(
        [("Unsqueeze", "x", "u", {"axes": [1]}), ("Squeeze", "u", "y", {"axes": [1]})], (2, 3), opset=11
    ),
    "reshape_power": net(
        [
            ("Shape", "x", "s"),
            ("Gather", "s a", "n"),
            ("Pow", "n h", "m"),
            ("Concat", "r m m", "t", {"axis": 0}),
            ("Reshape", "x t", "y"),
        ],
        (2, 9),
        {"a": [1], "h": 0.5, "r": [-1]},
    ),
    "transpose": net(("Transpose", "x", "y", {"perm": [0, 2, 1]}), (2, 3, 4)),
    "expand": net(("Expand", "x s", "y"), (2, 1, 4), {"s": [1, 3, 1]}),
    "tile": net(("Tile", "x s", "y"), (2, 3), {"s": [1, 2]}),
    "concat": net(("Concat", "x x", "y", {"axis": -1}), (2, 3)),
    "split": net([("Split", "x s", "a b"), ("Mul", "a b", "y")], (4, 3), {"s": [2, 2]}),
    "split_old": net([("Split", "x", "a b", {"axis": 1, "split": [1, 2]}), ("Mul", "a b", "y")], (4, 3), opset=11),
    "slice": net(("Slice", "x s e a", "y"), (2, 5, 4), {"s": [1, 0], "e": [9223372036854775807, -1], "a": [1, 2]}),
    "slice_old": net(("Slice", "x", "y", {"starts": [1], "ends": [3], "axes": [1]}), (2, 5), opset=9),
    "slice_step": net(("Slice", "x s e a t", "y"), (2, 5), {"s": [0], "e": [5], "a": [1], "t": [2]}),
    "slice_back": net(
        ("Slice", "x s e a t", "y"), (2, 5), {"s": [-1], "e": [-9223372036854775807], "a": [1], "t": [-1]}
    ),
    "slice_back_two": net(("Slice", "x s e a t", "y"), (2, 5), {"s": [4], "e": [0], "a": [1], "t": [-2]}),
    "pad": net(("Pad", "x p c", "y"), (2, 3, 4), {"p": [0, 1, 0, 0, 0, 2], "c": 1.5}),
    "pad_old": net(("Pad", "x", "y", {"pads": [0, 0, 1, 0, 0, -1], "value": 2.0}), (2, 3, 4), opset=9),
    "pad_reflect": net(("Pad", "x p", "y", {"mode": "reflect"}), (2, 3, 4, 4), {"p": [0, 0, 1, 2, 0, 0, 2, 1]}),
    "pad_edge": net(("Pad", "x p", "y", {"mode": "edge"}), (2, 3, 4), {"p": [0, 1, 0, 0, 1, 2]}),
    "depth": net(("DepthToSpace", "x", "y", {"blocksize": 2}), (2, 8, 3, 3)),
    "depth_crd": net(("DepthToSpace", "x", "y", {"blocksize": 2, "mode": "CRD"}), (2, 8, 3, 3)),
    "space": net(("SpaceToDepth", "x", "y", {"blocksize": 2}), (2, 3, 4, 6)),
    "gather": net(("Gather", "x i", "y", {"axis": 1}), (2, 5, 3), {"i": [3, -1]}),
    "gather_one": net(("Gather", "x i", "y", {"axis": 1}), (2, 5, 3), {"i": 2}),
    "gather_grid": net(("Gather", "x i", "y", {"axis": 1}), (2, 5, 3), {"i": np.array([[0, 1], [4, 2]])}),
    "embedding": net(
        [("Cast", "x", "i", {"to": 7}), ("Abs", "i", "j"), ("Gather", "t j", "y")], (2, 5), {"t": w(9, 3)}
    ),
    "elements": net([("ArgMax", "x", "i", {"axis": 1}), ("GatherElements", "x i", "y", {"axis": 1})], (2, 5)),
    "gather_nd": net(("GatherND", "x i", "y"), (4, 5), {"i": np.array([[0, 1], [3, 2]])}),
    "scatter_nd": net(("ScatterND", "x i u", "y"), (4, 5), {"i": np.array([[0], [2]]), "u": w(2, 5)}),
    "scatter": net(("ScatterElements", "x i u", "y", {"axis": 1}), (2, 5), {"i": np.array([[1], [3]]), "u": w(2, 1)}),
    "one_hot": net(
        [("ArgMax", "x", "i", {"axis": 1, "keepdims": 0}), ("OneHot", "i d v", "y")], (2, 5), {"d": 5, "v": [0.5, 2.0]}
    ),
    "trilu": net(("Trilu", "x k", "y", {"upper": 0}), (2, 5, 5), {"k": 1}),
    "cumsum": net(("CumSum", "x a", "y", {"exclusive": 1, "reverse": 1}), (2, 5), {"a": np.array(1)}),
    "top_k": net(("TopK", "x k", "y i"), (2, 5), {"k": [3]}),
    "reduce_axes": net(("ReduceSum", "x a", "y", {"keepdims": 0}), (2, 5, 3), {"a": [1]}),
    "reduce_old": net(("ReduceMean", "x", "y", {"axes": [-1]}), (2, 5, 3), opset=11),
    "max_pool": net(
        ("MaxPool", "x", "y", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}), (2, 3, 8, 8)
    ),
    "max_pool_ceil": net(
        ("MaxPool", "x", "y", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}), (2, 3, 8, 8)
    ),
    "max_pool_same": net(
        ("MaxPool", "x", "y", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}), (2, 3, 7, 8)
    ),
    "mean_pool": net(("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}), (2, 3, 8, 8)),
    "mean_pool_counted": net(
        ("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1}), (2, 3, 8, 8)
    ),
    "mean_pool_same": net(
        ("AveragePool", "x", "y", {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}), (2, 3, 7, 8)
    ),
    "average_pool_apart": net(
        ("AveragePool", "x", "y", {"kernel_shape": [2, 1], "strides": [3, 2], "auto_pad": "SAME_LOWER"}), (2, 3, 7, 9)
    ),
    "upsample": net(("Upsample", "x s", "y", {"mode": "nearest"}), (2, 3, 4, 5), {"s": [1.0, 1.0, 2.0, 2.0]}, opset=9),
    "attention": net(
        [
            ("MatMul", "x w", "q"),
            ("Transpose", "x", "k", {"perm": [0, 2, 1]}),
            ("MatMul", "q k", "s"),
            ("Softmax", "s", "p"),
            ("MatMul", "p x", "y"),
        ],
        (2, 5, 3),
        {"w": w(3, 3)},
    ),
}
CASES |= {f"resize_{mode}_{coordinates}_{size}": net(
    ("Resize", "x r s", "y", {"mode": mode, "coordinate_transformation_mode": coordinates}), (2, 3, 4, 6),
    {"r": np.zeros(0, np.float32), "s": [1.0, 1.0, size, size]}, opset=13)
    for mode in ("nearest", "linear", "cubic") for size in (2.0, 0.5)
    for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    if mode != "cubic" or coordinates in ("half_pixel", "align_corners")}  # fmt: skip


def recurrent(op: str, n_gates: int, direction: str, n: int) -> Any:
    own = {"hidden_size": 5, "direction": direction} | ({"linear_before_reset": 1} if op == "GRU" else {})
    weights = {"w": w(n, n_gates * 5, 3), "r": w(n, n_gates * 5, 5), "b": w(n, 2 * n_gates * 5)}
    return net((op, "x w r b", "y", own), (7, 2, 3), weights)


CASES |= {
    f"{op}_{direction}": recurrent(op, n_gates, direction, n)
    for op, n_gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    for direction, n in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
}


TYPED = {f"{op}_{kind}": ((op, "x", "y", {"axes": [1]}), kind, {}, kind) for kind in ("int32", "int64") for op in
         ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSumSquare")}  # fmt: skip
TYPED |= {
    "pow_whole_base": (("Pow", "c x", "y"), "float32", {"c": np.array(3)}, "int64"),
    "pow_whole_bases": (("Pow", "c x", "y"), "float32", {"c": np.array([3, 5, 2, 1, 7], np.int32)}, "int32"),
    "pow_fraction": (("Pow", "x c", "y"), "int64", {"c": 1.7}, "int64"),
    "pow_fractions": (("Pow", "x c", "y"), "int32", {"c": np.array([0.5, 1.7, 2, 3, 0], np.float32)}, "int32"),
}
TYPED |= {f"eye_{kind}": (("EyeLike", "x", "y", {"dtype": code}), "float32", {}, kind)
          for kind, code in (("int32", 6), ("int64", 7), ("float64", 11))}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_a_rule_gives_the_type_that_onnxruntime_gives(name: str) -> None:
    node, taken, weights, given = TYPED[name]
    proto = model([node], {"x": (3, 5)}, weights)
    x = np.random.default_rng(0).integers(1, 300, (3, 5)).astype(taken)
    x = x / np.float32(100) if taken == "float32" else x
    for value, kind in ((proto.graph.input[0], taken), (proto.graph.output[0], given)):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    (wanted,) = judged(proto.SerializeToString(), [x])
    found = network_of(graph_of(proto)).run([torch.from_numpy(x)]).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, strict=True)


WAVE = np.hanning(8).astype(np.float32) + np.float32(0.1)
CASES |= {
    "stft": net(("STFT", "x s w", "y"), (2, 30, 1), {"s": np.array(3), "w": WAVE}),
    "stft_flat": net(
        ("STFT", "x s w n", "y", {"onesided": 0}), (2, 30), {"s": np.array(4), "w": WAVE, "n": np.array(8)}
    ),
    "stft_plain": net(("STFT", "x s  n", "y"), (2, 30, 1), {"s": np.array(5), "n": np.array(7)}),
    "dft": net(("DFT", "x", "y", {"axis": 1}), (2, 7, 3, 1)),
    "dft_one_side": net(("DFT", "x n", "y", {"axis": 2, "onesided": 1}), (2, 3, 6, 1), {"n": np.array(8)}),
    "dft_complex": net(("DFT", "x n", "y", {"axis": 1}), (2, 8, 3, 2), {"n": np.array(5)}),
    "dft_back": net(("DFT", "x", "y", {"axis": 1, "inverse": 1}), (2, 7, 2)),
    "dft_20": net(("DFT", "x  a", "y", {"inverse": 1}), (2, 3, 6, 2), {"a": np.array(-3)}, 20),
    "dft_20_plain": net(("DFT", "x", "y"), (2, 3, 6, 1), {}, 20),
    "norm_pool": net(
        ("LpPool", "x", "y", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}), (2, 3, 6, 5)
    ),
    "norm_pool_ceil": net(
        ("LpPool", "x", "y", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1], "ceil_mode": 1}),
        (2, 3, 6, 6), {}, 18,
    ),
    "norm_pool_1": net(("LpPool", "x", "y", {"kernel_shape": [3], "p": 1}), (2, 3, 6)),
    "global_norm": net(("GlobalLpPool", "x", "y", {"p": 3}), (2, 3, 4, 5)),
}  # fmt: skip
CASES |= {
    f"{op}_{periodic}": net([(op, "n", "w", {"periodic": periodic}), ("Mul", "x w", "y")], (2, 9), {"n": np.array(9)})
    for op in ("HannWindow", "HammingWindow", "BlackmanWindow") for periodic in (0, 1)
}  # fmt: skip
CASES |= {
    f"grid_{mode}_{padding}_{corners}": net(
        ("GridSample", "x g", "y", {"mode": mode, "padding_mode": padding, "align_corners": corners}),
        (2, 3, 5, 6), {"g": w(2, 4, 3, 2)}, 20 if mode in ("linear", "cubic") else 16,
    )
    for mode, padding, corners in (
        ("bilinear", "zeros", 0), ("linear", "border", 1), ("nearest", "zeros", 0), ("cubic", "zeros", 0),
        ("bicubic", "border", 1), ("linear", "reflection", 0),
    )
}  # fmt: skip
TURNS = {"c": np.cos(w(2, 5, 4)), "s": np.sin(w(2, 5, 4))}
CASES |= {
    "rotary": net(("RotaryEmbedding", "x c s", "y"), (2, 3, 5, 8), TURNS, 23),
    "rotary_pairs": net(("RotaryEmbedding", "x c s", "y", {"interleaved": 1}), (2, 3, 5, 8), TURNS, 23),
    "rotary_part": net(("RotaryEmbedding", "x c s", "y", {"rotary_embedding_dim": 8}), (2, 3, 5, 12), TURNS, 23),
    "rotary_flat": net(
        ("RotaryEmbedding", "x c s p", "y", {"num_heads": 3}), (2, 5, 24),
        {"c": np.cos(w(9, 4)), "s": np.sin(w(9, 4)), "p": np.array([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])}, 23,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_what_onnxruntime_gives(name: str) -> None:
    nodes, shape, weights, opset, more = CASES[name]
    proto = model(nodes, {"x": shape}, weights, opset=opset, **more)
    x = R.standard_normal(shape).astype(np.float32) * (0.9 if name in ("Acos", "Asin") else 1.0)
    x = np.clip(x, -0.99, 0.99) if name in ("Acos", "Asin") else x
    proto.graph.output[0].type.tensor_type.elem_type = 1
    wanted = judged(proto.SerializeToString(), [x])
    found = network_of(graph_of(proto)).run([torch.from_numpy(x)]).detach().numpy()
    assert found.shape == wanted[0].shape
    np.testing.assert_allclose(found, wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counted", [None, 0, 1])
def test_pools_have_as_many_windows_as_onnxruntime_gives(counted: int | None) -> None:
    """None starts behind the input, in its padding, whether windows are counted upwards or not."""
    x = w(1, 2, 6, 7)
    for kernel, stride, ceil in itertools.product((2, 3, 4), (2, 3), (0, 1)):
        for begin, end in itertools.product(range(kernel), range(kernel)):
            attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "ceil_mode": ceil,
                          "pads": [begin, begin, end, end]}  # fmt: skip
            op = "MaxPool" if counted is None else "AveragePool"
            attributes |= {} if counted is None else {"count_include_pad": counted}
            proto = model([(op, "x", "y", attributes)], {"x": x.shape}, opset=19)
            proto.graph.output[0].type.tensor_type.elem_type = 1
            (wanted,) = judged(proto.SerializeToString(), [x])
            found = network_of(graph_of(proto)).run([torch.from_numpy(x)]).numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=str(attributes), strict=True)
