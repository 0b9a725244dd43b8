"""What a .pt2's checked JSON must also hold to: known operators, weights that fit, tensors of sane size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.pt2.operators import check_constant_exponent, checked_operator
from edgeprune.formats.pt2.tensors import dtype_of

MAX_TENSOR_BYTES = 2**35
MAX_INPUT_BYTES = 2**30
_DEFAULT_HINT = 2


def check_graph(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a program whose nodes, values or weights are not what they must be.

    Args:
        document: a checked `Program`.
        tensors: its weights, buffers and constants by name.

    Raises:
        UnsafeFileError: an unknown operator, or a tensor larger than any device takes.
        InputError: a weight that the graph names is missing or of another shape.
    """
    graph = document["graph_module"]["graph"]
    for name, meta in graph["tensor_values"].items():
        _check_size(name, meta)
    for node in graph["nodes"]:
        _check_node(node)
    for spec in document["graph_module"]["signature"]["input_specs"]:
        _check_weight(spec, graph["tensor_values"], tensors)
    calls = document["graph_module"]["module_call_graph"]
    if not calls or calls[0]["fqn"] != "" or calls[0].get("signature") is None:
        raise InputError("graph: expected the signature of the whole network, got none")
    # Values by name are only needed to take the network apart into modules again, and an edit may have renamed them.
    calls[0]["signature"] |= {"inputs": [], "outputs": []}
    for call in calls[1:]:
        call["signature"] = None


def _check_size(name: str, meta: dict[str, Any]) -> None:
    dtype = dtype_of(meta, f"value {name!r}")
    n_bytes = dtype.itemsize * math.prod(max(size, 1) for size in sizes_of(meta))
    if n_bytes > MAX_TENSOR_BYTES:
        raise UnsafeFileError(f"value {name!r}: expected at most {MAX_TENSOR_BYTES} bytes, got {n_bytes}")


def sizes_of(meta: dict[str, Any]) -> tuple[int, ...]:
    """A tensor's sizes; a symbolic one by the size that it was exported with."""
    return tuple(_size(size) for size in meta["sizes"])


def _size(size: dict[str, Any]) -> int:
    if "as_int" in size:
        value = size["as_int"]
    else:
        value = (size["as_expr"].get("hint") or {}).get("as_int", _DEFAULT_HINT)
    if value < 0:
        raise UnsafeFileError(f"tensor: expected sizes of 0 or more, got {value}")
    return int(value)


def _check_node(node: dict[str, Any]) -> None:
    schema = checked_operator(node["target"])
    names = [argument["name"] for argument in node["inputs"]]
    if schema is None:
        values = [next(iter(argument["arg"].values())) for argument in node["inputs"]]
        check_constant_exponent(node["target"], values)
        return
    known = {argument.name for argument in schema.arguments}
    if len(set(names)) != len(names) or not known.issuperset(names):
        raise UnsafeFileError(f"operator {node['target']!r}: expected the arguments {sorted(known)}, got {names}")


def _check_weight(spec: dict[str, Any], values: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    [(kind, fields)] = spec.items()
    key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}.get(kind)
    if key is None:
        return
    name, meta = fields[key], values.get(fields["arg"]["name"])
    if name not in tensors:
        raise InputError(f"tensor {name!r}: expected it among the weights, got none")
    if meta is None:
        raise InputError(f"tensor {name!r}: expected its shape in the graph, got none")
    tensor = tensors[name]
    if tuple(tensor.shape) != sizes_of(meta) or tensor.dtype != dtype_of(meta, name):
        raise InputError(
            f"tensor {name!r}: expected {list(sizes_of(meta))} {dtype_of(meta, name)}, "
            f"got {list(tensor.shape)} {tensor.dtype}"
        )


def example_inputs(document: dict[str, Any]) -> list[Any]:
    """Inputs of the right shapes and types, in the order of the graph's placeholders.

    Their values are nobody's: every tensor is one zero with strides of 0, so that it takes no room in a file either.
    """
    graph = document["graph_module"]["graph"]
    values = []
    for spec in document["graph_module"]["signature"]["input_specs"]:
        if "constant_input" in spec:
            [(kind, value)] = spec["constant_input"]["value"].items()
            values.append(None if kind == "as_none" else value)
        elif "user_input" in spec:
            argument = spec["user_input"]["arg"]
            name = (argument.get("as_tensor") or {}).get("name")
            if name not in graph["tensor_values"]:
                raise InputError(f"input: expected tensors and constants, got {next(iter(argument))!r}")
            values.append(_zero(graph["tensor_values"][name]))
    return values


def _zero(meta: dict[str, Any]) -> torch.Tensor:
    sizes, dtype = sizes_of(meta), dtype_of(meta, "input")
    if math.prod(sizes) * dtype.itemsize > MAX_INPUT_BYTES:
        raise InputError(f"input: expected at most {MAX_INPUT_BYTES} bytes, got sizes {list(sizes)}")
    return torch.zeros((), dtype=dtype).expand(sizes)
