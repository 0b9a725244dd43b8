"""features.json: what firmware has to know of an export to feed its files and to read their outputs.

    input_shape, input_type      one raw input, without the batch
    size, dim, indices, names    which of its features the network takes: along `dim`, or of the flattened input
    scaling                      mean and std, as `contracts` says for each file: of those features, or of the whole
                                 input along `dim` where that is another than theirs
    preparation                  how raw inputs are made of files, where the data are images or sounds
    classes                      in the order of the outputs
    contracts                    by name (full, slim, preprocess, sound): the file, its inputs and its outputs
    vocabularies                 by input, where ids were cut: `size` old ones; `keep[new]` is the old id of every new
                                 one, ascending; `unknown` the old id that all cut ones stand for, null: an error

Of a network with several inputs, each of the slim file says under `features` the `size`, `dim` and `indices` of those
that it takes, where some went; `feature_names` are those of what any file takes of an input, where the data name them.
The outputs of its preprocess.onnx are what the slim file takes, in the same order.
An input of ids whose vocabulary was cut says under `ids` whether it takes the `old` or the `new` ones, and how many.
Other runtimes' files have a contract by their target's name, e.g. litert; what has four dims says its `layout` there.
An input's `values` are raw, in its `unit`, or normalised; its `scaling` says how they are made of what a device hands
over, by the numbers along its dim 1, or the last of `nhwc`; another is its `dim`, counted as of `nchw`. Where no
features went, `indices` counts all along dim 1, or the dim that they have names or a mean each along.
Files of version 1 had neither `classes` nor `contracts`, and were written only where features went.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgeprune.data.inputs import size_along
from edgeprune.export.front import Preprocessing, feature_scaling, is_identity, numbers_of
from edgeprune.files import write_atomically
from edgeprune.pruning.feature_rules import kept_groups
from edgeprune.records import IDENTITY, InputFeatures, InputInfo, ModelInfo, Normalization, Vocabulary
from edgeprune.results import ExportedFile

FEATURES_FILE = "features.json"
FEATURES_FORMAT = "edgeprune-features/2"
FORMULA = "(x * byte_scale - mean) / std"
_BYTE, _OWN = "a byte, 0 to 255", "a value as in the training data"
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class Described:
    """An export to describe: its files by contract, and what was done to raw inputs on the way.

    `input_type` is numpy's name for what a device hands over. `folded` says that the files scale by themselves;
    `byte_scale` is what a byte is multiplied by to be a raw value, None where the data are no bytes. Of a network with
    several inputs `parts` say the same for each input of floats, and `inputs` what its data are. `vocabularies` are
    those that were cut, by the inputs' names in the files, `preparation` what the data say of how raw inputs are made.
    """

    info: ModelInfo
    features: InputFeatures | None
    files: Mapping[str, str]
    input_type: str
    folded: bool = False
    byte_scale: float | None = None
    parts: Mapping[str, Preprocessing] = field(default_factory=dict)
    inputs: Sequence[InputInfo] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    preparation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def normalization(self) -> Normalization:
        """What is left to do for whoever feeds the files."""
        return IDENTITY if self.folded else self.info.normalization or IDENTITY


def description(folder: Path, described: Described) -> dict[str, Any]:
    """The document for the ONNX files in `folder`, whose inputs and outputs are read from them."""
    protos = {contract: _opened(folder / name) for contract, name in described.files.items()}
    document: dict[str, Any] = {"format": FEATURES_FORMAT}
    if all(len(_fed(proto.graph)) == 1 for proto in protos.values()):
        document |= _single_input(described)
    if described.preparation:
        document["preparation"] = dict(described.preparation)
    if described.vocabularies:
        document["vocabularies"] = {
            name: {"size": one.size, "keep": list(one.keep), "unknown": one.unknown}
            for name, one in described.vocabularies.items()
        }
    document["classes"] = list(described.info.classes)
    document["contracts"] = {
        contract: {
            "file": described.files[contract],
            "inputs": [
                {**value, **_ids(described, contract, value)} for value in _inputs(described, contract, proto.graph)
            ],
            "outputs": [_value(value) for value in proto.graph.output],
            **_state(proto),
        }
        for contract, proto in protos.items()
    }
    document["note"] = _note(document["contracts"])
    return document


def write_description(folder: Path, described: Described) -> ExportedFile:
    """Write features.json beside the files that it describes."""
    return _write(folder / FEATURES_FILE, description(folder, described))


def restate(folder: Path) -> ExportedFile:
    """Write features.json again with the sizes that its files have now: a batch may have been fixed."""
    document = json.loads((folder / FEATURES_FILE).read_bytes())
    for entry in document["contracts"].values():
        proto = _opened(folder / entry["file"])
        for values, now in ((entry["inputs"], proto.graph.input), (entry["outputs"], proto.graph.output)):
            for value, tensor in zip(values, now, strict=True):
                value.update(_value(tensor))
    return _write(folder / FEATURES_FILE, document)


def add_contract(folder: Path, like: str, contract: str, file: str, values: Mapping[str, Any]) -> None:
    """Say in features.json what another file of the same network takes.

    Args:
        folder: where features.json lies.
        like: the ONNX file with the same inputs and outputs in the same order.
        contract: the name.
        file: the other file.
        values: `inputs` and `outputs`, what is otherwise of each: its name, type and shape.
    """
    document = json.loads((folder / FEATURES_FILE).read_bytes())
    own = next(entry for entry in document["contracts"].values() if entry["file"] == like)
    document["contracts"][contract] = {
        "file": file,
        **{
            part: [{**base, **changed} for base, changed in zip(own[part], values[part], strict=True)]
            for part in ("inputs", "outputs")
        },
    }
    _write(folder / FEATURES_FILE, document)


def note_in(folder: Path) -> str:
    """What goes wrong without an error where the files in `folder` are fed wrongly; empty where nothing does."""
    return str(json.loads((folder / FEATURES_FILE).read_bytes())["note"])


def _write(path: Path, document: dict[str, Any]) -> ExportedFile:
    content = (json.dumps(document, indent=1) + "\n").encode()
    write_atomically(path, content)
    return ExportedFile(str(path), len(content), None)


def _opened(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def _single_input(described: Described) -> dict[str, Any]:
    """What there is to say of the one raw input: the kept features, by their positions along `dim`."""
    info, features = described.info, described.features
    kept = features or _all_features(info)
    scaling = feature_scaling(Preprocessing(tuple(info.input_shape), described.normalization, kept))
    names = _names(info, kept)
    return {
        "input_shape": list(info.input_shape),
        "input_type": described.input_type,
        "size": kept.size,
        "dim": kept.dim,
        "indices": list(kept.keep),
        "names": names,
        "groups": kept_groups(info, kept.keep, names),
        "scaling": {
            "mean": list(scaling.mean),
            "std": list(scaling.std),
            **({} if scaling.dim == (kept.dim or 1) else {"dim": scaling.dim}),
        },
    }


def _all_features(info: ModelInfo) -> InputFeatures:
    """All features, along the dim that they have a mean or a name each along, else along dim 1."""
    shape, scaled = tuple(info.input_shape), info.normalization or IDENTITY
    named = [dim for dim, size in enumerate(shape, 1) if size == len(info.feature_names)]
    dim = scaled.dim if scaled.count > 1 or not named else named[0]
    size = size_along(dim, shape)
    return InputFeatures(size, tuple(range(size)), dim)


def _names(info: ModelInfo, features: InputFeatures) -> list[str]:
    """The data's names where it has them, else the position, e.g. `x[0,3,5]`: channel 0, row 3, column 5.

    Of whole slices that is `x[2]` along dim 1, `x[:,2]` along dim 2.
    """
    if len(info.feature_names) == features.size:
        return [info.feature_names[index] for index in features.keep]
    if features.dim is not None:
        return ["x[" + ":," * (features.dim - 1) + f"{index}]" for index in features.keep]
    places = (np.unravel_index(index, tuple(info.input_shape)) for index in features.keep)
    return ["x[" + ",".join(str(int(place)) for place in position) + "]" for position in places]


def _inputs(described: Described, contract: str, graph: onnx.GraphProto) -> list[dict[str, Any]]:
    """Every input of a file: name, type and shape; of the only one also what its values are and how they are made."""
    [first, *others] = [_value(value) for value in graph.input]
    if len(_fed(graph)) > 1:
        return [{**value, **_said_of(described, contract, value)} for value in (first, *others)]
    if contract == "sound":
        return [{**first, **_samples(described)}]
    return [{**first, **_raw_or_scaled(described, contract, graph)}, *others]


def _samples(described: Described) -> dict[str, Any]:
    """What sound.onnx takes."""
    unit = f"a sample, -1 to 1, {described.preparation['rate']} a second"
    return {"values": "samples", "unit": unit, "scaling": None}


def _raw_or_scaled(described: Described, contract: str, graph: onnx.GraphProto) -> dict[str, Any]:
    """What the values of a file's only input are, and how they are made."""
    by_itself = described.folded or contract == "preprocess"
    raw = by_itself or is_identity(described.info.normalization)
    scaled = not by_itself and graph.input[0].type.tensor_type.elem_type in _FLOATS
    return {
        "values": "raw" if raw else "normalised",
        "unit": _unit(described) if raw else None,
        "scaling": _scaling(described, contract) if scaled else None,
    }


def _said_of(described: Described, contract: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of one of several inputs are, and how they are made; nothing of whole numbers and states."""
    name = value["name"]
    part = described.parts.get(name)
    if part is None:
        return {}
    scale = next((info.byte_scale for info in described.inputs if info.name == name), None)
    own = replace(described, info=replace(described.info, normalization=part.normalization, input_shape=part.shape))
    own = replace(own, byte_scale=scale, input_type=value["type"], features=part.features)
    by_itself = own.folded or contract == "preprocess"
    raw = by_itself or is_identity(part.normalization)
    return {
        "values": "raw" if raw else "normalised",
        "unit": _unit(own) if raw else None,
        "scaling": None if by_itself else _scaling(own, contract),
        **(_features(part.features) if contract == "slim" else {}),
        **_names_of(described.info, name, part.features if contract == "slim" else None),
    }


def _features(features: InputFeatures | None) -> dict[str, Any]:
    """Which features of one of several inputs the slim contract takes; nothing where it takes all."""
    if features is None:
        return {}
    return {"features": {"size": features.size, "dim": features.dim, "indices": list(features.keep)}}


def _names_of(info: ModelInfo, name: str, features: InputFeatures | None) -> dict[str, Any]:
    """What the features are called that one of several inputs takes, in their order; nothing where no data say it."""
    names = dict(info.input_feature_names).get(name, ())
    if not names or (features is not None and len(names) != features.size):
        return {}
    return {"feature_names": list(names) if features is None else [names[index] for index in features.keep]}


def _ids(described: Described, contract: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Which ids an input takes; nothing of one that takes none, or all that the dense network does."""
    one = described.vocabularies.get(value["name"])
    if one is None:
        return {}
    is_new = contract == "slim"
    return {"ids": {"numbering": "new" if is_new else "old", "size": len(one.keep) if is_new else one.size}}


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have to be given: a state may be left out, as it is in the file."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _state(proto: onnx.ModelProto) -> dict[str, Any]:
    """What a run hands to the next one, as `export.state` has put it into the file."""
    found = [entry.value for entry in proto.metadata_props if entry.key == "edgeprune.state"]
    return {"state": json.loads(found[0])} if found else {}


def _unit(described: Described) -> str:
    """What a raw value of a file's input is."""
    if described.byte_scale is None:
        return _OWN
    return _BYTE if described.folded or described.byte_scale == 1 else f"a byte times {described.byte_scale:.9g}"


def _scaling(described: Described, contract: str) -> dict[str, Any]:
    """How an input is made of what a device hands over, `x`: one mean and std for each index along dim 1, or `dim`."""
    features = described.features if contract == "slim" else None
    scaling = feature_scaling(Preprocessing(tuple(described.info.input_shape), described.normalization, features))
    return {
        "formula": FORMULA,
        "x": _OWN if described.byte_scale is None else _BYTE,
        "x_type": described.input_type if described.byte_scale is None else "uint8",
        "byte_scale": 1.0 if described.byte_scale is None else described.byte_scale,
        **numbers_of(scaling),
    }


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """A free size is told by its name, e.g. `["batch", 6]`."""
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "type": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name,
        "shape": [size.dim_param or size.dim_value for size in tensor.shape.dim],
    }


def _note(contracts: Mapping[str, Any]) -> str:
    """What goes wrong without an error; nothing where the files take what a device has."""
    named = [entry["file"] for entry in contracts.values() if any(map(_is_scaled, entry["inputs"]))]
    if not named:
        return ""
    preprocess = contracts.get("preprocess")
    instead = f", or let {preprocess['file']} make what {named[-1]} takes" if preprocess else ""
    return (
        f"{' and '.join(named)} {'takes' if len(named) == 1 else 'take'} scaled values: unscaled ones give wrong "
        f"answers without an error. Apply the scaling that stands beside the input{instead}."
    )


def _is_scaled(value: Mapping[str, Any]) -> bool:
    scaling = value.get("scaling")
    if scaling is None:
        return False
    return bool(scaling["byte_scale"] != 1 or set(scaling["mean"]) != {0.0} or set(scaling["std"]) != {1.0})
