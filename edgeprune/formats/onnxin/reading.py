"""From an ONNX file to a program: read, built, captured with a free batch, and checked against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from edgeprune.data.capturing import capture_named
from edgeprune.errors import CaptureError, EdgepruneError, InputError
from edgeprune.formats.onnx.file import check_external, parse_onnx
from edgeprune.formats.onnxin.batchdims import grown_outputs, notes
from edgeprune.formats.onnxin.check import check_equal
from edgeprune.formats.onnxin.network import OnnxNetwork, argument_names, network_of
from edgeprune.formats.onnxin.nodes import Graph, graph_of
from edgeprune.formats.onnxin.settled import told_of, with_settled
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.drawn import drawn_arguments, first_accepted
from edgeprune.graph.sizes import Asked
from edgeprune.lines import error_line, shown
from edgeprune.memory import bounded_memory
from edgeprune.records import InputInfo

_OPEN = 8  # what a size is tried as that nobody states
_ROWS = 2  # that a network is checked on, times the batch which a file states
_DIMS, _MOST_NEEDED, _TRIES = 8, 64, 8  # of shapes in a graph, the largest batch that they may need, and how many
_SPARE_BYTES = 2**30
_COPIES = 8  # of its weights, while constants are folded and it runs
_ACTIVATIONS = 2048  # times the bytes of a batch


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """An ONNX file that was read: its graph, and the file for onnxruntime."""

    path: Path
    graph: Graph
    size_bytes: int


def is_onnx(path: Path, data: bytes) -> bool:
    """Whether a file is one of ONNX: a protobuf that starts with its version, or that is named so and is no other."""
    from edgeprune.formats.filekinds import starts_as_onnx

    return starts_as_onnx(data) or (path.suffix == ".onnx" and data[:2] not in (b"PK", b"\x80\x02"))


def read_network(path: Path) -> OnnxFile:
    """The graph of a file; weights that lie beside it are read from its own folder alone.

    Raises:
        InputError: damaged, quantised, with loops or unknown operators; names the node.
    """
    own = str(path) + ": "
    try:
        proto = parse_onnx(path)
        size_bytes = check_external(path, proto)
    except EdgepruneError as error:
        raise type(error)(str(error).removeprefix(own)) from error
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        raise InputError(f"expected its weights in the files beside it, got {error_line(error)}") from error
    return OnnxFile(path, graph_of(proto), size_bytes)


def program_of(
    file: OnnxFile,
    shape: tuple[int, ...] | None = None,
    data_shape: tuple[int, ...] | None = None,
    named: Sequence[InputInfo] = (),
    dynamic_size: bool = False,
    dynamic: Mapping[str, Asked] | None = None,
) -> tuple[Program, list[str]]:
    """The program of a file, with a free batch, and what is told of it; equal to onnxruntime on drawn inputs.

    Args:
        file: as `read_network` gives it.
        shape: of its one input without the batch, where the file leaves sizes open.
        data_shape: that of the data, which it is where nothing else says it.
        named: its inputs by name; those whose numbers are stated become constants.
        dynamic_size: height and width stay free.
        dynamic: the free dims of the inputs that are named.

    Raises:
        InputError: sizes that nobody states, a batch that cannot be freed, or other answers than onnxruntime's.
        CaptureError: the graph cannot be captured.
    """
    graph = with_settled(file.graph, named)
    named = [info for info in named if not info.numbers]
    infos = _infos(graph, shape or None, data_shape, named)
    memory = _SPARE_BYTES + _COPIES * file.size_bytes + _ACTIVATIONS * _bytes_of(infos)
    with torch.no_grad(), bounded_memory(memory):
        network = network_of(graph)
        stated = _stated_batch(graph)
        _run_first(network, graph, infos, stated)
        if stated is not None:
            network.free_constants()
        network.sealed = True
        _check_freed(network, graph, infos, stated)
        if graph.batch_dims:
            network.graph = graph = _with_outputs(network, graph, infos, stated or _ROWS)
    try:
        program = _captured(network, infos, dynamic_size, dynamic)
    except CaptureError as error:
        raise _unfreed(network, _examples(graph, infos, _ROWS * (stated or 1)), stated, error) from error
    with torch.no_grad(), bounded_memory(memory):
        drawn = first_accepted(program.frozen_module(), drawn_arguments(program, _ROWS * (stated or 1)))
        try:
            check_equal(str(file.path), graph, program.frozen_module(), drawn)
        except InputError as error:
            raise _unfreed(network, drawn, stated, error) from error
    return program, [*told_of(graph), *notes(graph.batch_dims, [given.name for given in graph.inputs])]


def _with_outputs(network: OnnxNetwork, graph: Graph, infos: Sequence[InputInfo], batch: int) -> Graph:
    """The graph of a network that turns inputs, with the outputs that are to be turned as well."""
    before, after = (network.run(_examples(graph, infos, rows)) for rows in (batch, 2 * batch))
    return replace(graph, batch_dims={**graph.batch_dims, **grown_outputs(before, after, graph.outputs)})


def _captured(
    network: OnnxNetwork, infos: Sequence[InputInfo], dynamic_size: bool, dynamic: Mapping[str, Asked] | None
) -> Program:
    if len(infos) > 1 or any(None in info.shape for info in infos):
        return capture_named(network, infos, torch.float32, dynamic, dynamic_size)
    example = _example((_ROWS, *(size or 1 for size in infos[0].shape)), infos[0].dtype)
    return capture(network, example, dynamic_size=dynamic_size, dynamic=dynamic)


def _infos(
    graph: Graph, shape: tuple[int, ...] | None, data_shape: tuple[int, ...] | None, named: Sequence[InputInfo]
) -> tuple[InputInfo, ...]:
    """The inputs without their batch, by the names of the network's arguments."""
    names = argument_names(graph)
    infos = [
        InputInfo(name, given.sizes[1:], str(given.dtype).removeprefix("torch."))
        for name, given in zip(names, graph.inputs, strict=True)
    ]
    single = next((given for given in graph.inputs if not given.sizes), None)
    if single is not None:
        raise InputError(
            f"input {shown(single.name)}: expected a batch as its first size, got a single number; state it by "
            f"--input {names[graph.inputs.index(single)]}=NUMBER:constant, which makes it part of the network"
        )
    asked = {info.name: info for info in named}
    infos = _as_asked(infos, asked)
    if len(infos) == 1:
        return (_one(infos[0], shape, data_shape, asked),)
    if shape is not None:
        raise InputError(f"expected --input NAME=SHAPE for each of {', '.join(names)}, got --input-shape {list(shape)}")
    return tuple(infos)


def _as_asked(infos: list[InputInfo], asked: Mapping[str, InputInfo]) -> list[InputInfo]:
    """The inputs with the sizes that are asked for by name, where any are."""
    names = [info.name for info in infos]
    if asked and set(asked) != set(names):
        raise InputError(f"--input: expected {', '.join(names)}, got {', '.join(asked)}")
    return [_agreed(info, asked[info.name].shape if asked else None) for info in infos]


def _one(
    info: InputInfo, shape: tuple[int, ...] | None, data_shape: tuple[int, ...] | None, asked: Mapping[str, InputInfo]
) -> InputInfo:
    """The only input, whose open sizes someone has to state; those of ids stay open."""
    given = shape
    if given is None and None in info.shape and data_shape and len(data_shape) == len(info.shape):
        given = data_shape
    info = _agreed(info, given)
    if None in info.shape and info.is_float and not asked:
        raise InputError(
            "expected the shape of one input, which the file leaves open "
            f"({', '.join('*' if size is None else str(size) for size in info.shape)}), e.g. --input-shape 3,224,224, "
            "got none"
        )
    return info


def _agreed(info: InputInfo, shape: Sequence[int | None] | None) -> InputInfo:
    """An input with the sizes that are stated; raises InputError where its file states others."""
    if shape is None:
        return info
    fits = len(shape) == len(info.shape) and all(
        own is None or own == size for own, size in zip(info.shape, shape, strict=True)
    )
    if not fits:
        told = ["*" if size is None else size for size in info.shape]
        raise InputError(f"input {info.name}: expected the shape {told} of the file, got {list(shape)}")
    return replace(info, shape=tuple(shape))


def _stated_batch(graph: Graph) -> int | None:
    """The batch that a file states; raises InputError where its inputs state several."""
    stated = {given.sizes[0] for given in graph.inputs if given.sizes}
    if len(stated) > 1:
        told = ", ".join(f"{given.name} {'*' if given.sizes[0] is None else given.sizes[0]}" for given in graph.inputs)
        raise InputError(f"expected inputs of one batch, which is their first size, got {told}")
    return stated.pop()


def _run_first(network: OnnxNetwork, graph: Graph, infos: Sequence[InputInfo], stated: int | None) -> None:
    """Run a network at the batch that its file states, whose shapes are recorded, or at one that it leaves free.

    Raises:
        InputError: what an operator does not take; where it takes another batch, that the graph needs it.
    """
    try:
        network.run(_examples(graph, infos, stated or _ROWS), record=stated is not None)
    except InputError as error:
        sizes = _written_sizes(graph) if stated is None else []
        needed = next((size for size in sizes if _runs(network, graph, infos, size)), None)
        if needed is None:
            raise InputError(f"{error}{_untold(infos)}") from error
        raise InputError(
            "expected a graph for any batch, as the file leaves it free, got one that a batch of "
            f"{needed} goes through, not one of {_ROWS}: {error}; {network.free_batch_advice}"
        ) from error


def _untold(infos: Sequence[InputInfo]) -> str:
    """What may be why a network does not run: sizes that nobody stated."""
    open_ones = [info.name for info in infos if None in info.shape]
    if not open_ones:
        return ""
    option = f"--input {open_ones[0]}=SHAPE" if len(infos) > 1 else "--input-shape"
    return f"; sizes of {', '.join(open_ones)} that the file leaves open were tried as {_OPEN}: state them, {option}"


def _written_sizes(graph: Graph) -> list[int]:
    """The first sizes that stand in a graph's shapes, and 1: batches that it may need."""
    shapes = [tensor for tensor in graph.constants.values() if tensor.dtype is torch.int64 and tensor.numel() <= _DIMS]
    sizes = {int(size) for tensor in shapes for size in tensor.flatten() if _ROWS < size <= _MOST_NEEDED}
    return [*sorted(sizes)[:_TRIES], 1]


def _runs(network: OnnxNetwork, graph: Graph, infos: Sequence[InputInfo], batch: int) -> bool:
    try:
        network.run(_examples(graph, infos, batch))
    except InputError:
        return False
    return True


def _check_freed(network: OnnxNetwork, graph: Graph, infos: Sequence[InputInfo], stated: int | None) -> None:
    """Raise InputError where the batch that a file states is written into it for good."""
    if stated is None:
        return
    try:
        network.run(_examples(graph, infos, _ROWS * stated))
    except InputError as error:
        raise InputError(
            f"expected a batch that can be freed, got a file for a batch of {stated}, which another one does not go "
            f"through: {error}; export it with a free batch"
        ) from error


def _unfreed(
    network: OnnxNetwork, inputs: Sequence[Tensor], stated: int | None, error: EdgepruneError
) -> EdgepruneError:
    """Why there is no program, or another than its file: where an operator ends the batch that it states, that one."""
    node = None if stated is None else network.end_of_batch(inputs)
    if node is None:
        return error
    return InputError(
        f"expected a batch that can be freed, got a file for a batch of {stated}, of which {node.told} gives no batch "
        f"on: {error}; export it with a free batch"
    )


def _examples(graph: Graph, infos: Sequence[InputInfo], batch: int) -> list[Tensor]:
    return [_example((batch, *(_OPEN if size is None else size for size in info.shape)), info.dtype) for info in infos]


def _example(sizes: Sequence[int], dtype: str) -> Tensor:
    kind: Any = getattr(torch, dtype)
    return torch.zeros(sizes, dtype=kind) if kind.is_floating_point else torch.ones(sizes, dtype=kind)


def _bytes_of(infos: Sequence[InputInfo]) -> int:
    total = 0
    for info in infos:
        count = 1
        for size in info.shape:
            count *= size or 64
        total += 8 * count
    return total
