"""Along which dim a network's file records the features of its inputs: by its metadata, or the features.json beside it.

Mean and std that are measured on the data go along it, as the network was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeprune.errors import InputError
from edgeprune.export.description import FEATURES_FILE
from edgeprune.export.metadata import feature_dims_in
from edgeprune.lines import shown
from edgeprune.measure.networkfile import NetworkFile, trained_normalization
from edgeprune.reading import read_json
from edgeprune.records import DataSource

_ALONE = "x"


def recorded_dims(network: NetworkFile, data: DataSource) -> dict[str, tuple[int, str]]:
    """By input of the data (a lone one is `x`) the dim of its features and the file that says it, where one does.

    Raises:
        InputError: what a file says is malformed, or a dim that the data have not.
    """
    shapes = {info.name: len(info.shape) for info in data.inputs} or {_ALONE: len(data.input_shape)}
    found: dict[str, tuple[int, str]] = {}
    for told, dim, where in (*_in_metadata(network, data), *_in_features(network, data)):
        name = next(iter(shapes)) if len(shapes) == 1 else told  # a single one has no name of its own in a file
        if name not in shapes:
            continue
        if type(dim) is not int or not 1 <= dim <= shapes[name]:
            raise InputError(f"{where}: expected features along a dim of 1 to {shapes[name]}, got {shown(dim, 40)}")
        found.setdefault(name, (dim, where))
    return found


def _in_metadata(network: NetworkFile, data: DataSource) -> Iterator[tuple[str, Any, str]]:
    """What the numbers that the network was trained with go along, and what is said without any."""
    where = str(network.path)
    trained = trained_normalization(network)
    scaled = () if trained is None else trained.inputs if data.inputs else ((_ALONE, trained),)
    yield from ((name, own.dim, where) for name, own in scaled if own.count > 1)
    said = feature_dims_in(network.session.get_modelmeta().custom_metadata_map, where)
    yield from ((name, dim, where) for name, dim in said.items())


def _in_features(network: NetworkFile, data: DataSource) -> Iterator[tuple[str, Any, str]]:
    """What features.json says of the file: dim 1 with all features is what it says of those that nobody told apart."""
    path = network.path.parent / FEATURES_FILE
    document = read_json(path, "features") if path.is_file() else {}
    where = str(path)
    contracts = _of_type(_of_type(document, dict, where).get("contracts", {}), dict, where).values()
    entries = [_of_type(entry, dict, where) for entry in contracts]
    if not any(entry.get("file") == network.path.name for entry in entries):
        return
    yield from _told(_ALONE, document, where)  # of a single input
    parts = (_of_type(entry.get("inputs", []), list, where) for entry in entries)
    for value in (_of_type(value, dict, where) for part in parts for value in part):
        yield from _told(value.get("name"), _of_type(value.get("features", {}), dict, where), where)


def _told(name: Any, features: Mapping[str, Any], where: str) -> Iterator[tuple[Any, Any, str]]:
    dim, indices = features.get("dim"), _of_type(features.get("indices", []), list, where)
    if dim is not None and (dim != 1 or len(indices) != features.get("size")):
        yield name, dim, where


def _of_type(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        what = "an object" if kind is dict else "a list"
        raise InputError(f"{where}: expected a description of an export, got {shown(value, 60)} in place of {what}")
    return value
