"""features.h: what features.json says of the network's file, as a C99 header that needs no library.

    #include "features.h"
    edgeprune_raw raw[EDGEPRUNE_RAW_SIZE];                                /* one input, row by row */
    edgeprune_feature features[EDGEPRUNE_N_FEATURES * EDGEPRUNE_FEATURE_SIZE];
    edgeprune_features(raw, features);                                    /* what slim.onnx takes */

All identifiers are edgeprune's own; names of features and classes stand in string literals alone, as UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.description import FEATURES_FILE
from edgeprune.export.target import Material, Runtime
from edgeprune.files import write_atomically
from edgeprune.graph.names import CUT_ID
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile

HEADER_FILE = "features.h"
_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t",
    **{name: f"{name}_t" for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
}  # fmt: skip
_SCALED = "(x * EDGEPRUNE_BYTE_SCALE - edgeprune_mean[i]) / edgeprune_std[i]"
_NEW_ID = "(edgeprune_feature)edgeprune_new_id(x)"
_NUMBERING = """/* The new id of an old one. */
static inline int64_t edgeprune_new_id(int64_t id)
{
    size_t low = 0, high = EDGEPRUNE_N_IDS;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (edgeprune_ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < EDGEPRUNE_N_IDS && edgeprune_ids[low] == id ? (int64_t)low : EDGEPRUNE_UNKNOWN_ID;
}"""
_MAX_LITERAL = 4095  # characters that a C99 compiler has to take
_PER_LINE = 8


class CHeader:
    """features.h as a target; a compiler reads it, and nothing on this machine runs it."""

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
        """Write features.h; errors as `write_header`."""
        return (write_header(material.folder),)


def write_header(folder: Path) -> ExportedFile:
    """Write features.h beside the features.json in `folder`.

    Raises:
        InputError: the network has several inputs, or numbers or names that C does not have.
    """
    content = header_text(json.loads((folder / FEATURES_FILE).read_bytes())).encode("ascii")
    write_atomically(folder / HEADER_FILE, content)
    return ExportedFile(str(folder / HEADER_FILE), len(content), None)


def header_text(document: Mapping[str, Any]) -> str:
    """The header for a description as `edgeprune.export.description` makes it; errors as `write_header`."""
    network = document["contracts"].get("slim") or document["contracts"]["full"]
    if len(network["inputs"]) != 1:
        names = [value["name"] for value in network["inputs"]]
        raise InputError(f"--c-header: expected a network with one input, got {len(names)}: {', '.join(names)[:200]}")
    [taken] = network["inputs"]
    scaling = taken.get("scaling")
    raw = scaling["x_type"] if scaling else document["input_type"]
    parts = [
        _sizes(document, network, taken),
        f"typedef {_type(raw)} edgeprune_raw;\ntypedef {_type(taken['type'])} edgeprune_feature;",
        _array("uint32_t edgeprune_index", map(str, document["indices"]), "where each kept feature lies"),
        _strings("edgeprune_feature_names", document["names"]),
        _strings("edgeprune_classes", document["classes"]),
        _strings("edgeprune_output_names", [value["name"] for value in network["outputs"]]),
        _array(
            "size_t edgeprune_output_sizes",
            (str(_size(value["shape"][1:])) for value in network["outputs"]),
            "numbers in each output for one input; 0: as many as its input's sizes make them",
        ),
        *_made_of_raw(scaling, document.get("vocabularies", {}).get(taken["name"]), taken["type"]),
    ]
    return (
        "/* Made by edgeprune: how a raw input becomes what the network's file takes. */\n"
        "#ifndef EDGEPRUNE_FEATURES_H\n#define EDGEPRUNE_FEATURES_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n"
        + "\n\n".join(filter(None, parts))
        + "\n\n#endif\n"
    )


def _sizes(document: Mapping[str, Any], network: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    shape = document["input_shape"]
    per_feature = math.prod(shape[1:]) if document["dim"] == 1 else 1
    macros = {
        "FILE": _literal(network["file"]),
        "INPUT_NAME": _literal(taken["name"]),
        "RAW_SIZE": math.prod(shape),
        "N_FEATURES": len(document["indices"]),
        "FEATURE_SIZE": per_feature,
        "N_CLASSES": len(document["classes"]),
        "N_OUTPUTS": len(network["outputs"]),
    }
    free = [size for size in taken["shape"][1:] if isinstance(size, str)]
    lines = ["/* One raw input has RAW_SIZE numbers, row by row: N_FEATURES of FEATURE_SIZE numbers are kept. */"]
    if free:
        lines.append(f"/* {len(free)} of its sizes are free in the file; here they are as captured. */")
    return "\n".join([*lines, *(f"#define EDGEPRUNE_{name} {value}" for name, value in macros.items())])


def _type(name: str) -> str:
    if name not in _TYPES:
        raise InputError(f"--c-header: expected inputs of a type that C99 has ({', '.join(_TYPES)}), got {name}")
    return _TYPES[name]


def _size(shape: Sequence[int | str]) -> int:
    return 0 if any(isinstance(size, str) for size in shape) else math.prod(int(size) for size in shape)


def _scaling(scaling: Mapping[str, Any], kind: str) -> list[str]:
    """Mean and std of each kept feature, and the scale of a byte, in the network's own precision."""
    mean, std = ([_number(value, kind) for value in scaling[name]] for name in ("mean", "std"))
    if any(float(value.rstrip("f")) <= 0 for value in std):
        raise InputError(f"--c-header: expected every std above 0 in {kind}, got {min(scaling['std']):.3g}")
    return [
        f"/* x is {scaling['x']}: {scaling['formula']} */\n"
        f"#define EDGEPRUNE_BYTE_SCALE {_number(scaling['byte_scale'], kind)}",
        _array("edgeprune_feature edgeprune_mean", mean),
        _array("edgeprune_feature edgeprune_std", std),
    ]


def _number(value: float, kind: str) -> str:
    """A literal that reads back as the same number, e.g. `0.1307f`."""
    with np.errstate(over="ignore"):
        number = np.dtype(kind).type(value)
    if not np.isfinite(number):
        raise InputError(f"--c-header: expected numbers within the range of {kind}, got {value:.6g}")
    text = f"{float(number):.9g}" if kind == "float32" else f"{float(number):.17g}"
    text = text if any(mark in text for mark in ".e") else f"{text}.0"
    return text + ("f" if kind == "float32" else "")


def _array(declared: str, values: Iterable[str], says: str = "") -> str:
    values = list(values)
    lines = [", ".join(values[start : start + _PER_LINE]) for start in range(0, len(values), _PER_LINE)]
    body = ",\n    ".join(lines)
    note = f"/* {says} */\n" if says else ""
    return f"{note}static const {declared}[{len(values)}] = {{\n    {body}\n}};"


def _strings(name: str, texts: Sequence[str]) -> str:
    """C has no empty arrays: nothing is declared for nothing."""
    if not texts:
        return ""
    body = ",\n    ".join(map(_literal, texts))
    return f"static const char *const {name}[{len(texts)}] = {{\n    {body}\n}};"


def _literal(text: str) -> str:
    """A string literal of printable ASCII: other bytes in octal, which ends after three digits, and no trigraphs."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > _MAX_LITERAL:
        raise InputError(f"--c-header: expected names of at most {_MAX_LITERAL} bytes, got {text[:40]!r}...")
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + '"'


def _made_of_raw(scaling: Mapping[str, Any] | None, vocabulary: Mapping[str, Any] | None, kind: str) -> list[str]:
    """How a number that the network takes is made of a raw one: scaled, numbered anew, or as it is."""
    if scaling is not None:
        return [*_scaling(scaling, kind), _function(_SCALED)]
    if vocabulary is not None:
        return [*_numbering(vocabulary), _function(_NEW_ID)]
    return [_function("x")]


def _numbering(vocabulary: Mapping[str, Any]) -> list[str]:
    """The old id of every new one, and the function that finds the new one of an old one."""
    keep, unknown = vocabulary["keep"], vocabulary["unknown"]
    new = CUT_ID if unknown is None else keep.index(unknown)
    return [
        f"#define EDGEPRUNE_N_IDS {len(keep)}\n"
        "/* The new id of every old one that was cut: that of the unknown id, or one that no table has a row for. */\n"
        f"#define EDGEPRUNE_UNKNOWN_ID {new}",
        _array("int64_t edgeprune_ids", map(str, keep), "the old id of every new one, ascending"),
        _NUMBERING,
    ]


def _function(value: str) -> str:
    return f"""/* From one raw input to what the network takes: N_FEATURES * FEATURE_SIZE numbers. */
static inline void edgeprune_features(const edgeprune_raw *raw, edgeprune_feature *features)
{{
    size_t i, j;
    for (i = 0; i < EDGEPRUNE_N_FEATURES; i++) {{
        const size_t from = (size_t)edgeprune_index[i] * EDGEPRUNE_FEATURE_SIZE;
        for (j = 0; j < EDGEPRUNE_FEATURE_SIZE; j++) {{
            const edgeprune_feature x = (edgeprune_feature)raw[from + j];
            features[i * EDGEPRUNE_FEATURE_SIZE + j] = {value};
        }}
    }}
}}"""
