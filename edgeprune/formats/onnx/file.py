"""An ONNX file of anyone's, read with care."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import onnx

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import read_file

_MAX_NODES = 1_000_000  # with those of functions, each call counted


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file that holds all of its weights.

    Raises:
        InputError: as for `parse_onnx`, or with weights elsewhere.
    """
    proto = parse_onnx(path)
    elsewhere = next((t for t in tensors_in(proto) if t.external_data or t.data_location == t.EXTERNAL), None)
    if elsewhere is not None:
        where = next((entry.value for entry in elsewhere.external_data if entry.key == "location"), "another file")
        raise InputError(
            f"{path}: expected all weights in the file, got some in {shown(where)}; "
            "save it with onnx.save(model, path, save_as_external_data=False)"
        )
    return proto


def parse_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file as it lies there, without weights that lie elsewhere.

    Raises:
        InputError: no such file, over 2 GiB, truncated, of another format, or without nodes.
    """
    content = read_file(path, "onnx")
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own error, whose module has no types
        raise InputError(f"{path}: expected an ONNX file, got one that is truncated or of another format") from error
    if not proto.graph.node or not proto.graph.output:
        raise InputError(f"{path}: expected an ONNX file, got one without a graph")
    _check_functions(path, proto)
    return proto


def check_external(path: Path, proto: onnx.ModelProto) -> int:
    """Size in bytes of a file and of the weights beside it; raises InputError where these lie outside its folder."""
    size = path.stat().st_size
    folder = path.parent.resolve()
    for location in external_files(proto):
        try:
            target = (folder / location).resolve()
            is_file = target.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, a name that is too long, a ring of links
            raise InputError(f"{path}: expected the name of a file with weights, got {shown(location)}") from error
        if not target.is_relative_to(folder):
            raise InputError(f"{path}: expected weights in its own folder, got external data at {shown(location)}")
        if not is_file:
            raise InputError(f"{path}: expected its external data {shown(location)} beside it, got nothing there")
        size += target.stat().st_size
    return size


def external_files(proto: onnx.ModelProto) -> set[str]:
    """Where the tensors of a model lie that it does not hold itself."""
    entries = (entry for tensor in tensors_in(proto) for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _check_functions(path: Path, proto: onnx.ModelProto) -> None:
    """Raise InputError where functions that call functions stand for more nodes than any network has, or for no end."""
    calls = {(f.domain, f.name, f.overload): _calls(f.node) for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter({key: calls.keys() & inner.keys() for key, inner in calls.items()}).static_order():
            sizes[key] = sum(n * sizes.get(call, 1) for call, n in calls[key].items())
    except CycleError as error:
        raise InputError(f"{path}: expected functions that end, got some that call themselves") from error
    total = sum(n * sizes.get(call, 1) for call, n in _calls(proto.graph.node).items())
    if total > _MAX_NODES:
        raise InputError(f"{path}: expected at most {_MAX_NODES:,} nodes, got functions that stand for more")


def _calls(nodes: Iterable[Any]) -> Counter[tuple[str, str, str]]:
    """How often each operator is called, in subgraphs too."""
    found: Counter[tuple[str, str, str]] = Counter()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        found[node.domain, node.op_type, node.overload] += 1
        for attribute in node.attribute:
            pending += attribute.g.node
            for graph in attribute.graphs:
                pending += graph.node
    return found


def tensors_in(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, in subgraphs and attributes too."""
    pending: list[Any] = [proto]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending.extend([value] if hasattr(value, "ListFields") else value)
