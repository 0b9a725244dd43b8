"""edgeprune_features.h: what features.json says of the network's file, as a C99 header that needs no library.

    #include "edgeprune_features.h"
    edgeprune_raw raw[EDGEPRUNE_RAW_SIZE];                                /* one input, row by row */
    edgeprune_feature features[EDGEPRUNE_N_FEATURES * EDGEPRUNE_FEATURE_SIZE];
    edgeprune_features(raw, features);                                    /* what slim.onnx takes */

Of a network with several inputs each has a section of its own, in the file's order: `edgeprune_input0_raw`,
`EDGEPRUNE_INPUT0_RAW_SIZE`, `edgeprune_input0_features(raw, features)` and so on. Sizes that are free in the file are
to be defined before the header is read, e.g. `EDGEPRUNE_INPUT0_SIZE_1`. Features that lie along another dim than the
first (sensors of steps) come in `EDGEPRUNE_N_BLOCKS` blocks, which `features` is as many times longer for.

All identifiers are edgeprune's own; names of features and classes stand in string literals alone, as UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.ctext import MADE, array, literal, number, strings
from edgeprune.export.description import FEATURES_FILE
from edgeprune.export.target import Material, Runtime
from edgeprune.files import write_atomically
from edgeprune.graph.names import CUT_ID
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile

HEADER_FILE = "edgeprune_features.h"
_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t",
    **{name: f"{name}_t" for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
}  # fmt: skip
_SCALED = "(x * {P}BYTE_SCALE - {p}mean[{at}]) / {p}std[{at}]"
_NEW_ID = "({p}feature){p}new_id(x)"
_NUMBERING = """/* The new id of an old one. */
static inline int64_t {p}new_id(int64_t id)
{{
    size_t low = 0, high = {P}N_IDS;
    while (low < high) {{
        const size_t middle = low + (high - low) / 2;
        if ({p}ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }}
    return low < {P}N_IDS && {p}ids[low] == id ? (int64_t)low : {P}UNKNOWN_ID;
}}"""
_BLOCKS = """/* From one raw input to what the network takes: N_BLOCKS * N_FEATURES * FEATURE_SIZE numbers. */
static inline void {p}features(const {p}raw *raw, {p}feature *features)
{{
    size_t block, i, j;
    for (block = 0; block < {P}N_BLOCKS; block++) {{
        for (i = 0; i < {P}N_FEATURES; i++) {{
            const size_t from = block * {P}BLOCK_SIZE + {index} * {P}FEATURE_SIZE;
            const size_t to = (block * {P}N_FEATURES + i) * {P}FEATURE_SIZE;
            for (j = 0; j < {P}FEATURE_SIZE; j++) {{
                const {p}feature x = ({p}feature)raw[from + j];
                features[to + j] = {value};
            }}
        }}
    }}
}}"""
_FUNCTION = """/* From one raw input to what the network takes: N_FEATURES * FEATURE_SIZE numbers. */
static inline void {p}features(const {p}raw *raw, {p}feature *features)
{{
    size_t i, j;
    for (i = 0; i < {P}N_FEATURES; i++) {{
        const size_t from = {index} * {P}FEATURE_SIZE;
        for (j = 0; j < {P}FEATURE_SIZE; j++) {{
            const {p}feature x = ({p}feature)raw[from + j];
            features[i * {P}FEATURE_SIZE + j] = {value};
        }}
    }}
}}"""


class CHeader:
    """edgeprune_features.h as a target; a compiler reads it, and nothing on this machine runs it."""

    name = "c-header"
    runtime: Runtime | None = None
    free_batch = False

    def files(self, model: str) -> tuple[str, ...]:
        """The header, whatever the model's name."""
        return (HEADER_FILE,)

    def check_installed(self) -> None:
        """It needs nothing."""

    def check(self, program: ExportedProgram) -> None:
        """What it refuses is told by features.json, see `write_header`."""

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write edgeprune_features.h; errors as `write_header`."""
        return (write_header(material.folder),)


def write_header(folder: Path) -> ExportedFile:
    """Write edgeprune_features.h beside the features.json in `folder`.

    Raises:
        InputError: numbers, types or names that C does not have.
    """
    content = header_text(json.loads((folder / FEATURES_FILE).read_bytes())).encode("ascii")
    write_atomically(folder / HEADER_FILE, content)
    return ExportedFile(str(folder / HEADER_FILE), len(content), None)


@dataclass(frozen=True, slots=True)
class _Input:
    """What the header says of one input; sizes are numbers, or expressions where they are free.

    `number` is its place among several, None of a single one. `dim` is the one that features lie along, `n_blocks` how
    many numbers the dims before it have together, of `block_size` numbers each; `indices` of None are all along it: it
    is free.
    """

    number: int | None
    taken: Mapping[str, Any]
    raw_type: str
    raw_size: int | str
    n_features: int | str
    feature_size: int | str
    indices: Sequence[int] | None
    vocabulary: Mapping[str, Any] | None
    dim: int = 1
    n_blocks: int | str = 1
    block_size: int | str = 0

    @property
    def prefixes(self) -> dict[str, str]:
        """What its identifiers begin with: `p` of types, constants and functions, `P` of macros."""
        own = "" if self.number is None else f"input{self.number}_"
        return {"p": f"edgeprune_{own}", "P": f"EDGEPRUNE_{own.upper()}"}

    @property
    def sizes(self) -> dict[str, int | str]:
        """The macros of its sizes."""
        sizes = {"RAW_SIZE": self.raw_size, "N_FEATURES": self.n_features, "FEATURE_SIZE": self.feature_size}
        return {**sizes, "N_BLOCKS": self.n_blocks, "BLOCK_SIZE": self.block_size} if self.in_blocks else sizes

    @property
    def in_blocks(self) -> bool:
        """Whether its features do not lie one behind the other."""
        return self.n_blocks != 1


def header_text(document: Mapping[str, Any]) -> str:
    """The header for a description as `edgeprune.export.description` makes it; errors as `write_header`."""
    network = document["contracts"].get("slim") or document["contracts"]["full"]
    parts = _of_several(document, network) if len(network["inputs"]) > 1 else _of_one(document, network)
    return (
        f"{MADE}: how a raw input becomes what the network's file takes. */\n"
        "#ifndef EDGEPRUNE_FEATURES_H\n#define EDGEPRUNE_FEATURES_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n"
        + "\n\n".join(filter(None, parts))
        + "\n\n#endif\n"
    )


def _of_one(document: Mapping[str, Any], network: Mapping[str, Any]) -> list[str]:
    """The parts of a network with one input."""
    [taken] = network["inputs"]
    scaling, shape = taken.get("scaling"), document["input_shape"]
    raw = scaling["x_type"] if scaling else document["input_type"]
    indices, vocabulary = document["indices"], document.get("vocabularies", {}).get(taken["name"])
    laid = _laid(shape, document["dim"])
    own = _Input(None, taken, raw, math.prod(shape), len(indices), laid[0], indices, vocabulary, *laid[1:])
    macros = {
        "FILE": literal(network["file"]),
        "INPUT_NAME": literal(taken["name"]),
        **own.sizes,
        "N_CLASSES": len(document["classes"]),
        "N_OUTPUTS": len(network["outputs"]),
    }
    free = [size for size in taken["shape"][1:] if isinstance(size, str)]
    lines = [f"/* One raw input has RAW_SIZE numbers, row by row: {_kept_in_words(own)} are kept. */"]
    if free:
        lines.append(f"/* {len(free)} of its sizes are free in the file; here they are as captured. */")
    return [
        "\n".join([*lines, *_defines("EDGEPRUNE_", macros)]),
        _types(own),
        _index(own),
        strings("edgeprune_feature_names", document["names"]),
        *_answers(document, network),
        *_made_of_raw(own),
    ]


def _of_several(document: Mapping[str, Any], network: Mapping[str, Any]) -> list[str]:
    """The parts of a network with several inputs: what it answers, then one input after the other."""
    macros = {
        "FILE": literal(network["file"]),
        "N_INPUTS": len(network["inputs"]),
        "N_CLASSES": len(document["classes"]),
        "N_OUTPUTS": len(network["outputs"]),
    }
    names = [one["name"] for one in network["inputs"]]
    top = ["/* The inputs have a section each, in the order of the file. */", *_defines("EDGEPRUNE_", macros)]
    whole = {one["name"]: one for one in document["contracts"]["full"]["inputs"]}
    vocabularies = document.get("vocabularies", {})
    sections = [
        _section(number, taken, whole.get(taken["name"], taken), vocabularies.get(taken["name"]))
        for number, taken in enumerate(network["inputs"])
    ]
    return ["\n".join(top), strings("edgeprune_input_names", names), *_answers(document, network), *sum(sections, [])]


def _section(
    number: int, taken: Mapping[str, Any], whole: Mapping[str, Any], vocabulary: Mapping[str, Any] | None
) -> list[str]:
    """One of several inputs: `taken` by the file, `whole` where nothing of it went."""
    macro = f"EDGEPRUNE_INPUT{number}_"
    shape, taken_shape = (_sized(one["shape"][1:], macro) for one in (whole, taken))
    scaling, (indices, dim) = taken.get("scaling"), _placed(taken, shape)
    laid = _laid(shape, dim)
    own = _Input(
        number,
        taken,
        scaling["x_type"] if scaling else whole["type"],
        _product(shape),
        shape[laid[1] - 1] if indices is None else len(indices),
        laid[0],
        indices,
        vocabulary,
        *laid[1:],
    )
    macros = {"NAME": literal(taken["name"]), "TYPE": literal(taken["type"]), "N_DIMS": len(taken_shape), **own.sizes}
    says = f"One raw input of this name has RAW_SIZE numbers, row by row: {_kept_in_words(own)} are kept."
    said = "what the file takes of one input, dim by dim"
    return [
        "\n".join([f"/* {says} */", *_asked(shape), *_defines(macro, macros)]),
        _types(own),
        array(f"size_t edgeprune_input{number}_shape", map(str, taken_shape), said) if taken_shape else "",
        _index(own),
        strings(f"edgeprune_input{number}_feature_names", taken["feature_names"]) if "feature_names" in taken else "",
        *_made_of_raw(own),
    ]


def _sized(shape: Sequence[int | str], macro: str) -> list[int | str]:
    """The sizes of an input without its batch; one that is free by its macro."""
    return [f"{macro}SIZE_{dim}" if isinstance(size, str) else size for dim, size in enumerate(shape, 1)]


def _placed(taken: Mapping[str, Any], shape: Sequence[int | str]) -> tuple[Sequence[int] | None, int | None]:
    """Which features of an input are kept, and along which dim: by that of its scaling where all are kept."""
    features = taken.get("features")
    if features is not None:
        return features["indices"], features["dim"]
    dim = (taken.get("scaling") or {}).get("dim", 1)
    size = shape[dim - 1] if shape else 1
    return list(range(size)) if isinstance(size, int) else None, dim


def _laid(shape: Sequence[int | str], dim: int | None) -> tuple[int | str, int, int | str, int | str]:
    """The numbers in a feature, the dim, and the blocks that features lie in: how many, of how many numbers each."""
    if dim is None:
        return 1, 1, 1, _product(shape)
    return _product(shape[dim:]), dim, _product(shape[: dim - 1]), _product(shape[dim - 1 :])


def _kept_in_words(own: _Input) -> str:
    kept = "N_FEATURES of FEATURE_SIZE numbers"
    return f"of each of N_BLOCKS blocks of BLOCK_SIZE numbers {kept}" if own.in_blocks else kept


def _asked(shape: Sequence[int | str]) -> list[str]:
    """A size that is free in the file is whoever includes the header's to say."""
    lines = []
    for name in shape:
        if isinstance(name, str):
            lines += [f"#ifndef {name}", f'#error "define {name}: this size is free in the file"', "#endif"]
    return lines


def _product(sizes: Sequence[int | str]) -> int | str:
    """The numbers in a part of a shape; an expression of C where sizes are free."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    free = [size for size in sizes if isinstance(size, str)]
    if not free:
        return known
    return f"({' * '.join([*([str(known)] if known != 1 else []), *free])})"


def _defines(prefix: str, macros: Mapping[str, Any]) -> list[str]:
    return [f"#define {prefix}{name} {value}" for name, value in macros.items()]


def _types(own: _Input) -> str:
    p = own.prefixes["p"]
    return f"typedef {_type(own.raw_type)} {p}raw;\ntypedef {_type(own.taken['type'])} {p}feature;"


def _type(name: str) -> str:
    if name not in _TYPES:
        raise InputError(f"--c-header: expected inputs of a type that C99 has ({', '.join(_TYPES)}), got {name}")
    return _TYPES[name]


def _index(own: _Input) -> str:
    if own.indices is None:
        return ""
    return array(f"uint32_t {own.prefixes['p']}index", map(str, own.indices), "where each kept feature lies")


def _answers(document: Mapping[str, Any], network: Mapping[str, Any]) -> list[str]:
    """The classes, and the outputs."""
    return [
        strings("edgeprune_classes", document["classes"]),
        strings("edgeprune_output_names", [value["name"] for value in network["outputs"]]),
        array(
            "size_t edgeprune_output_sizes",
            (str(_size(value["shape"][1:])) for value in network["outputs"]),
            "numbers in each output for one input; 0: as many as its input's sizes make them",
        ),
    ]


def _size(shape: Sequence[int | str]) -> int:
    return 0 if any(isinstance(size, str) for size in shape) else math.prod(int(size) for size in shape)


def _made_of_raw(own: _Input) -> list[str]:
    """How a number that the network takes is made of a raw one: scaled, numbered anew, or as it is."""
    if own.taken.get("scaling") is not None:
        return _scaling(own)
    if own.vocabulary is not None:
        return [*_numbering(own, own.vocabulary), _function(own, _NEW_ID)]
    return [_function(own, "x")]


def _scaling(own: _Input) -> list[str]:
    """Mean and std of each kept feature, and the scale of a byte, in the network's own precision."""
    scaling, kind = own.taken["scaling"], own.taken["type"]
    numbers: dict[str, Sequence[str]] = {
        name: [number(value, kind) for value in scaling[name]] for name in ("mean", "std")
    }
    if any(float(value.rstrip("f")) <= 0 for value in numbers["std"]):
        raise InputError(f"--c-header: expected every std above 0 in {kind}, got {min(scaling['std']):.3g}")
    at = "i"
    if scaling.get("dim", 1) != own.dim:
        numbers, at = _by_number(own, numbers)
    elif own.indices is None:  # as many as whoever includes it says: they can be but one number
        if any(len(set(values)) > 1 for values in numbers.values()):
            raise InputError(
                f"--c-header: {own.taken['name']}: expected a fixed size along dim 1, which its mean and std go by, "
                "got a free one"
            )
        numbers, at = {name: values[:1] for name, values in numbers.items()}, "0"
    p, macro = own.prefixes["p"], own.prefixes["P"]
    return [
        f"/* x is {scaling['x']}: {scaling['formula']} */\n"
        f"#define {macro}BYTE_SCALE {number(scaling['byte_scale'], kind)}",
        *(array(f"{p}feature {p}{name}", values) for name, values in numbers.items()),
        _function(own, _SCALED, at),
    ]


def _by_number(own: _Input, numbers: Mapping[str, Sequence[str]]) -> tuple[dict[str, Sequence[str]], str]:
    """Mean and std along another dim than that of the features: one where all are the same, else for every number."""
    if all(len(set(values)) == 1 for values in numbers.values()):
        return {name: values[:1] for name, values in numbers.items()}, "0"
    dim, shape = own.taken["scaling"].get("dim", 1), own.taken["shape"][1:]
    if any(isinstance(size, str) for size in shape):
        raise InputError(f"--c-header: {own.taken['name']}: expected fixed sizes beside dim {dim}'s mean and std")
    behind = math.prod(shape[dim:])
    places = [number // behind % shape[dim - 1] for number in range(math.prod(shape))]
    at = f"{'to' if own.in_blocks else 'i * {P}FEATURE_SIZE'} + j"
    return {name: [values[place] for place in places] for name, values in numbers.items()}, at


def _numbering(own: _Input, vocabulary: Mapping[str, Any]) -> list[str]:
    """The old id of every new one, and the function that finds the new one of an old one."""
    keep, unknown = vocabulary["keep"], vocabulary["unknown"]
    new = CUT_ID if unknown is None else keep.index(unknown)
    p, macro = own.prefixes["p"], own.prefixes["P"]
    return [
        f"#define {macro}N_IDS {len(keep)}\n"
        "/* The new id of every old one that was cut: that of the unknown id, or one that no table has a row for. */\n"
        f"#define {macro}UNKNOWN_ID {new}",
        array(f"int64_t {p}ids", map(str, keep), "the old id of every new one, ascending"),
        _NUMBERING.format(**own.prefixes),
    ]


def _function(own: _Input, value: str, at: str = "i") -> str:
    index = "i" if own.indices is None else f"(size_t){own.prefixes['p']}index[i]"
    text = value.format(**own.prefixes, at=at.format(**own.prefixes))
    return (_BLOCKS if own.in_blocks else _FUNCTION).format(**own.prefixes, index=index, value=text)
