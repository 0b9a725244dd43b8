"""Records as JSON and back: run.json, and what `--json` prints."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal, Union

from edgeprune.errors import InputError
from edgeprune.lines import one_line, shown
from edgeprune.reading import parse_json
from edgeprune.records import ACCURACY, Metric
from edgeprune.results import RunRecord, VariantTable, values_of

FORMAT = "edgeprune-run/1"
_WITH_VALUES = ("dense", "slim", "steps", "selection", "front")  # parts of a run that hold values of its metric


def to_dict(record: Any, values: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The record as plain JSON values; a tuple becomes a list. `json_names` of a record name fields otherwise, or not.

    `values` name fields of any record in it; a record's `json_values` do for those within.

    Raises: ValueError for a value that JSON cannot hold, named by its place, e.g. `latency.ratio: nan`.
    """
    values = {**values, **getattr(record, "json_values", {})}
    others: dict[str, str | None] = {**values, **getattr(record, "json_names", {})}
    named = [(others.get(field.name, field.name), getattr(record, field.name)) for field in dataclasses.fields(record)]
    plain = {name: _plain(value, name, values) for name, value in named if name is not None}
    if hasattr(record, "significant"):
        plain["significant"] = record.significant
    return plain


def to_json(record: Any) -> str:
    """The record as an indented JSON document that ends with a newline."""
    return json.dumps(to_dict(record), indent=2, allow_nan=False) + "\n"


def run_from_json(text: str, where: str = "run.json") -> RunRecord:
    """The run record in `text`.

    Raises: InputError that names the place, what was expected and what came.
    """
    value = parse_json(text, f"{where}: expected a JSON document")
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {_kind(value)}")
    if value.get("format") != FORMAT:
        raise InputError(f"{where}: format: expected {FORMAT!r}, got {shown(value.get('format'))}")
    record: RunRecord = _read(_with_field_names(value, where), RunRecord, where)
    return record


def _with_field_names(value: dict[str, Any], where: str) -> dict[str, Any]:
    """The document of a run with the fields that its values are in, whatever the metric."""
    metric = ACCURACY
    if "metric" in value:
        metric = _read(value["metric"], Metric, f"{where}: metric")
        value = {"accuracy": None, **value}
    names = {name: field for field, name in values_of(metric.name).items()}
    found = {key: _renamed(part, names) if key in _WITH_VALUES else part for key, part in value.items()}
    table = found.get("variants")
    if isinstance(table, dict) and metric == ACCURACY:
        names = {name: field for field, name in VariantTable((), (), "", "").json_values.items()}
        found["variants"] = {**table, "variants": _renamed(table.get("variants"), names)}
    return found


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    return {names.get(key, key): part for key, part in value.items()} if isinstance(value, dict) else value


def _plain(value: Any, where: str, values: Mapping[str, str]) -> Any:
    if dataclasses.is_dataclass(value):
        inner = to_dict(value, values)
        return {name: _plain(part, f"{where}.{name}", values) for name, part in inner.items()}
    if isinstance(value, dict):
        return {str(key): _plain(part, f"{where}.{key}", values) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{index}]", values) for index, part in enumerate(value)]
    return str(value) if isinstance(value, PurePath) else _plain_scalar(value, where)


def _plain_scalar(value: Any, where: str) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        value = value.item()
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{where}: {type(value).__name__} has no place in JSON")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} has no place in JSON")
    return value


def _read(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, checked all the way down."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_record(value, typing.cast(type, kind), where)
    origin = typing.get_origin(kind)
    if origin is Literal:
        kinds = typing.get_args(kind)
        _expect(isinstance(value, str) and value in kinds, f"one of {', '.join(kinds)}", value, where)
        return value
    if origin in (Union, types.UnionType):
        return _read_union(value, typing.get_args(kind), where)
    if origin is tuple:
        return _read_tuple(value, typing.get_args(kind), where)
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        inner = typing.get_args(kind)[1]
        return {key: _read(part, inner, f"{where}: {key}") for key, part in value.items()}
    return _read_scalar(value, kind, where)


def _read_record(value: Any, kind: type, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: _is_required(field) for field in dataclasses.fields(kind)}
    derived = {"significant"} if hasattr(kind, "significant") else set()
    missing = sorted(name for name, required in fields.items() if required and name not in value)
    unknown = sorted(value.keys() - fields.keys() - derived)
    if missing or unknown:
        problem = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}"
        raise InputError(f"{where}: expected the fields of {kind.__name__}, got {problem}")
    given = {name: part for name, part in value.items() if name not in derived}
    return kind(**{name: _read(part, hints[name], f"{where}: {name}") for name, part in given.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    (inner,) = [kind for kind in kinds if kind is not type(None)]
    return _read(value, inner, where)


def _read_tuple(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), "a list", value, where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_read(part, kinds[0], f"{where}[{index}]") for index, part in enumerate(value))
    _expect(len(value) == len(kinds), f"{len(kinds)} values", value, where)
    return tuple(
        _read(part, kind, f"{where}[{index}]") for index, (part, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _read_scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        return float(value)
    fits = type(value) is kind
    _expect(fits, {int: "a whole number", str: "a text", bool: "true or false"}.get(kind, kind.__name__), value, where)
    return value


def _expect(holds: bool, expected: str, got: Any, where: str) -> None:
    if not holds:
        raise InputError(f"{where}: expected {expected}, got {_kind(got)}")


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return {dict: "an object", list: f"a list of {len(value)}"}[type(value)]
    return one_line(json.dumps(value), 60)
