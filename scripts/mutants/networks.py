"""Edits of ONNX files and of .safetensors: fields that lie, graphs that never end, functions that double."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from mutants.documents import JSON
from mutants.edits import BLIND, ODD_NAMES, Edit

_INTEGERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**62, -(2**63), 2**40)
_LOCATIONS = (
    "a\x00b",
    "\x00",
    "../up",
    "/etc/passwd",
    "/dev/zero",
    "x" * 5000,
    "",
    ".",
    "slim.onnx",
    "\x1b[2J",
    "a\nb",
)


def odd_field(content: bytes, choose: random.Random) -> bytes:
    """Some fields of the model hold odd numbers and texts, or come twice, or are gone."""
    proto = onnx.load_model_from_string(content)
    for _ in range(choose.choice((1, 1, 3))):
        message = choose.choice(list(_messages(proto)))
        fields = message.ListFields()
        if fields:
            _change(message, *choose.choice(fields), choose)
    return proto.SerializeToString()


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def _change(message: Any, field: Any, value: Any, choose: random.Random) -> None:
    if hasattr(value, "ListFields"):
        message.ClearField(field.name)
    elif field.message_type is not None:
        part = choose.choice(value)
        value.remove(part) if choose.random() < 0.5 else value.add().CopyFrom(part)
    else:
        new: Any = choose.choice(_INTEGERS) if isinstance(_first(value), int) else choose.choice(ODD_NAMES)
        if isinstance(_first(value), bytes):
            new = choose.choice(BLIND)(_first(value), choose)
        try:
            if isinstance(value, (str, bytes, int, float)):
                setattr(message, field.name, new)
            else:
                value[choose.randrange(len(value))] = new
        except (TypeError, ValueError):  # a number that the field cannot hold
            message.ClearField(field.name)


def _first(value: Any) -> Any:
    return value if isinstance(value, (str, bytes, int, float)) else value[0]


def _model(nodes: Sequence[Any], start: Sequence[Any] = (), functions: Sequence[Any] = ()) -> bytes:
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, list(start))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9).SerializeToString()


def _weight() -> Any:
    return helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.1] * 12)


def doubling(content: bytes, choose: random.Random) -> bytes:
    """Functions that each call the one before twice; or that call themselves."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)]
    for level in range(1, choose.choice((12, 30, 60))):
        calls = [helper.make_node(f"f{level - 1}", [one], [two], domain="own") for one, two in ("ac", "cb")]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], calls, opsets))
    if choose.random() < 0.2:
        functions[0].node[0].op_type, functions[0].node[0].domain = f"f{len(functions) - 1}", "own"
    nodes = [
        helper.make_node(f"f{len(functions) - 1}", ["input"], ["x"], domain="own"),
        helper.make_node("MatMul", ["x", "w"], ["output"]),
    ]
    return _model(nodes, [_weight()], functions)


def swelling(content: bytes, choose: random.Random) -> bytes:
    """A constant or a step that is far larger than the file."""
    n = choose.choice((2**28, 2**30, 2**33, 2**40, 2**62))
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [n])
    kind = choose.randrange(3)
    if kind == 0:
        nodes = [helper.make_node("ConstantOfShape", ["shape"], ["big"])]
    elif kind == 1:
        one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
        nodes = [helper.make_node("Expand", ["one", "shape"], ["big"])]
        return _model([*nodes, *_used()], [shape, one, _weight()])
    else:
        start = [helper.make_tensor(name, TensorProto.INT64, [], [v]) for name, v in (("a", 0), ("b", n), ("c", 1))]
        nodes = [
            helper.make_node("Range", ["a", "b", "c"], ["i"]),
            helper.make_node("Cast", ["i"], ["big"], to=TensorProto.FLOAT),
        ]
        return _model([*nodes, *_used()], [*start, _weight()])
    return _model([*nodes, *_used()], [shape, _weight()])


def _used() -> list[Any]:
    return [
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["input", "w"], ["y"]),
        helper.make_node("Add", ["y", "sum"], ["output"]),
    ]


def endless(content: bytes, choose: random.Random) -> bytes:
    """A loop that does not end."""
    scalar = [
        helper.make_tensor("trips", TensorProto.INT64, [], [choose.choice((2**62, 2**31))]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["y"]),
        helper.make_node("Loop", ["trips", "yes", "y"], ["output"], body=body),
    ]
    return _model(nodes, [*scalar, _weight()])


def nested(content: bytes, choose: random.Random) -> bytes:
    """A graph in a graph in a graph."""
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    inner = [helper.make_node("MatMul", ["input", "w"], ["y0"])]
    for level in range(1, choose.choice((8, 20, 28))):
        out = [helper.make_tensor_value_info(f"y{level - 1}", TensorProto.FLOAT, None)]
        graph = helper.make_graph(inner, f"g{level}", [], out)
        inner = [helper.make_node("If", ["yes"], [f"y{level}"], then_branch=graph, else_branch=graph)]
        if level > 12:  # two branches of two branches: the file itself would double
            inner[0].attribute[1].g.CopyFrom(
                helper.make_graph([helper.make_node("MatMul", ["input", "w"], [f"z{level}"])], "z", [], [
                    helper.make_tensor_value_info(f"z{level}", TensorProto.FLOAT, None)
                ])
            )  # fmt: skip
    inner[-1].output[0] = "output"
    return _model(inner, [yes, _weight()])


def elsewhere(content: bytes, choose: random.Random) -> bytes:
    """Weights that are said to lie in an odd place, or at an odd one in a file."""
    proto = onnx.load_model_from_string(content)
    tensor = choose.choice(proto.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": choose.choice(_LOCATIONS)}
    if choose.random() < 0.5:
        entries |= {"offset": choose.choice(("-1", "x", "9" * 30, "0")), "length": choose.choice(("-5", "9" * 19, ""))}
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


ONNX: Sequence[Edit] = (*[odd_field] * 9, doubling, swelling, endless, nested, elsewhere, elsewhere)


def odd_tensors(content: bytes, choose: random.Random) -> bytes:
    """The JSON header of a .safetensors is odd; its length fits or lies."""
    (n_header,) = struct.unpack("<Q", content[:8])
    header = choose.choice(JSON)(content[8 : 8 + n_header], choose)
    said = choose.choice((len(header), len(header), len(header), 0, len(header) + 1, 2**63))
    return struct.pack("<Q", said) + header + content[8 + n_header :]


SAFETENSORS: Sequence[Edit] = (*[odd_tensors] * 3,)
