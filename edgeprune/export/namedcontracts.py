"""The contracts of a network with several inputs, or with a cut vocabulary.

    full.onnx         every input, with the old ids             -> logits
    slim.onnx         kept features, and the new ids            -> logits
    preprocess.onnx   every raw input                           -> what slim.onnx takes, input by input

Where no input has lost anything there is one file, of the full contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.answers import metadata as outputs_metadata
from edgeprune.export.description import Described, write_description
from edgeprune.export.front import Preprocessing, numbering_model, preprocess_model
from edgeprune.export.metadata import metadata_of, metadata_of_named
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.parity import largest_error, outputs_of
from edgeprune.export.state import Whole, check_stateless
from edgeprune.export.writing import FULL, PREPROCESS, Writing, opened
from edgeprune.graph.specs import input_specs, row_chunks
from edgeprune.graph.tokens import new_numbers
from edgeprune.pruning.slim_inputs import slim_contract
from edgeprune.results import ExportedFile

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """The same samples by name: as a device hands them over, and as the program takes them."""

    handed: Arrays
    inputs: Arrays

    @property
    def chunks(self) -> list[slice]:
        """Rows that a network can take at once."""
        widest = max(x[0].size for x in self.inputs.values())
        return row_chunks(len(next(iter(self.inputs.values()))), widest)


def write_named(writing: Writing, program: ExportedProgram, raw_inputs: Any) -> list[ExportedFile]:
    """Every contract of a network, checked on the same samples; those hold ids that are kept.

    Raises:
        InputError: the inputs or what is done to them do not fit the program.
        ParityError: two files, or a file and PyTorch, disagree.
    """
    names = [spec.name for spec in input_specs(program)]
    if writing.fold and len(names) == 1:
        raise InputError("--preprocess fold: expected a network without a cut vocabulary: ids are not scaled")
    if writing.byte_scale is not None and writing.fold:
        raise InputError(f"byte scale: expected a network with one input, or that of each by name, got {names}")
    front = NamedFront.of(program, writing.info.normalization, writing.inputs, writing.fold)
    if writing.fold:
        check_stateless(program, "--preprocess fold")
    raw = front.raw(program, raw_inputs)
    samples = _Samples(front.handed(raw), front.normalized(raw))
    if front.narrows:
        files = _write_both(writing, program, front, samples)
    else:
        files = [_write(writing, program, front, "full", samples)]
    first = next(iter(samples.handed.values()))
    described = Described(
        writing.info, None, writing.contracts(files), str(first.dtype), writing.fold, None, front.parts, writing.inputs,
        front.vocabularies, writing.preparation,
    )  # fmt: skip
    return [*files, write_description(writing.folder, described)]


def _write_both(writing: Writing, program: ExportedProgram, front: NamedFront, samples: _Samples) -> list[ExportedFile]:
    """full.onnx, the network of the slim contract, and preprocess.onnx, which makes what that takes."""
    files = [
        _write(writing, program, front, "full", samples),
        _write(writing, program, front, "slim", samples),
    ]
    model = preprocess_named(opened(files[-1]), front)
    helper.set_model_props(model, _stated(writing, front, "preprocess"))
    onnx.checker.check_model(model, full_check=True)
    files.append(writing.written(PREPROCESS, model))
    files[-1] = replace(files[-1], parity=_chain_parity(writing, program, samples))
    return files


def _write(
    writing: Writing, program: ExportedProgram, front: NamedFront, contract: str, samples: _Samples
) -> ExportedFile:
    """The file of a contract; where it is to scale by itself, what is checked is the file that the device gets."""
    is_slim = contract == "slim"
    name = FULL if front.narrows and not is_slim else writing.network
    taken = front.slim(samples.inputs) if is_slim else samples.inputs
    network = slim_contract(program) if is_slim else program
    stated = _stated(writing, front, contract)
    file = writing.exported(network, name, list(taken.values()), stated)
    if not writing.fold:
        return file
    folded = front.folded(opened(file), contract)
    helper.set_model_props(folded, stated | outputs_metadata(program))
    file = writing.written(name, folded)
    handed = front.slim(samples.handed) if is_slim else samples.handed
    return replace(file, parity=_parity(writing, program, Path(file.path), samples, handed))


def _stated(writing: Writing, front: NamedFront, contract: str) -> dict[str, str]:
    if len(front.names) > 1:
        return metadata_of_named(writing.info, contract, front)
    return metadata_of(writing.info, contract, writing.preprocessing(None))


def _parity(writing: Writing, program: ExportedProgram, path: Path, samples: _Samples, handed: Arrays) -> float:
    """The largest difference between a file on what a device hands over and PyTorch on the normalised inputs."""
    session, network = ort.session(path), Whole(program)
    errors = (
        largest_error(
            network([x[rows] for x in samples.inputs.values()]),
            outputs_of(session, [x[rows] for x in handed.values()]),
            f"{path.name} folded",
            writing.task,
        )
        for rows in samples.chunks
    )
    return max(errors)


def _chain_parity(writing: Writing, program: ExportedProgram, samples: _Samples) -> float:
    """preprocess.onnx then slim.onnx = full.onnx = PyTorch; the largest error."""
    preprocess, slim, full = (ort.session(writing.folder / name) for name in (PREPROCESS, writing.network, FULL))
    chain, network, worst = f"{PREPROCESS} then {writing.network}", Whole(program), 0.0
    for rows in samples.chunks:
        handed, inputs = ([x[rows] for x in given.values()] for given in (samples.handed, samples.inputs))
        wanted = network(inputs)
        # The raw inputs as a device has them; what follows the outputs is a state.
        chained = outputs_of(slim, outputs_of(preprocess, handed))[: len(wanted)]
        whole = outputs_of(full, handed if writing.fold else inputs)[: len(wanted)]
        worst = max(worst, largest_error(wanted, chained, f"{chain} against PyTorch", writing.task))
        worst = max(worst, largest_error(whole, chained, f"{chain} against {FULL}", writing.task))
    return worst


# --- preprocess.onnx


def preprocess_named(network: onnx.ModelProto, front: NamedFront) -> onnx.ModelProto:
    """The graph from every raw input to what `network`, of the slim contract, takes in its inputs.

    Its outputs are in their order, `features` of a single one, else `NAME.features`, which is no name of an input's;
    of an input that is called so itself `features_1`.
    """
    held = {tensor.name for tensor in network.graph.initializer}  # a state, which nobody has to give
    names = [value.name for value in network.graph.input if value.name not in held]
    models = [_preprocess_of(network, front, name) for name in names]
    if len(models) == 1:
        return models[0]
    joined, *others = [_apart(model, name) for model, name in zip(models, names, strict=True)]
    for other in others:
        for part in ("node", "input", "output", "initializer"):
            getattr(joined.graph, part).extend(getattr(other.graph, part))
    return joined


def _preprocess_of(network: onnx.ModelProto, front: NamedFront, name: str) -> onnx.ModelProto:
    if name in front.vocabularies:
        return numbering_model(network, new_numbers(front.vocabularies[name]).numpy(), name)
    part = front.parts.get(name, Preprocessing((1,)))
    return preprocess_model(network, part, scale=not front.fold, name=name)


def _apart(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph of one input with names of its own for all but the input."""
    for node in model.graph.node:
        node.name = f"{name}.{node.name}"
        for values in (node.input, node.output):
            values[:] = [value if value == name else f"{name}.{value}" for value in values]
    for value in (*model.graph.output, *model.graph.initializer):
        value.name = f"{name}.{value.name}"
    return model
