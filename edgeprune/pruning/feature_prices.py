"""What input features cost beside their arithmetic, as a user writes it: one number, or a file of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.pruning.feature_rules import RuledFeatures, named_features
from edgeprune.reading import read_file, read_json
from edgeprune.settings import FeatureRules

_OPTION = "--feature-price"


def priced(text: str | None, rules: FeatureRules, features: RuledFeatures) -> FeatureRules:
    """The rules with the prices of the network's features; without a text the rules as they are.

    Raises:
        InputError: as `feature_prices`, or the network has no features that can be removed.
    """
    if text is None:
        return rules
    if not features.may_go:
        raise InputError(f"{_OPTION}: expected a network with inputs whose features can be removed, got none")
    return replace(rules, prices=feature_prices(text, rules, features))


def feature_prices(text: str, rules: FeatureRules, features: RuledFeatures) -> tuple[float, ...]:
    """How many times dearer each feature is than its arithmetic, `(n_features,)`; 1 where nothing is said.

    Args:
        text: a number for all, or a file: an object of prices as .json, or lines of a name and a price as .csv. A name
            is that of a feature or a group of the rules, a number from 0 or a range such as `3-7`.
        rules: the groups that come together, and their names.
        features: of the network's inputs.

    Raises:
        InputError: a price that is no number above 0, a feature that does not exist or has two prices, or a file that
            is no such list.
    """
    names = features.names
    try:
        return (_price(float(text), _OPTION),) * features.n_features
    except ValueError:
        pass
    path, groups = Path(text), dict(zip(rules.names, rules.together, strict=False))
    if path.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"{_OPTION}: expected a number above 0, or a .csv or .json file of them, got {shown(text)}")

    def known(name: str) -> bool:
        return name in names or name in groups or name[:1].isdecimal()

    prices: dict[int, float] = {}
    for name, price in _of_csv(path, known) if path.suffix.lower() == ".csv" else _of_json(path):
        where = f"{path}: {shown(name)}"
        is_group = name in groups and name not in names
        members = groups[name] if is_group else named_features(name, names, features.n_numbered, path)
        for index in members:
            if index in prices:
                raise InputError(f"{where}: expected one price for each feature, got a second one for {index}")
            prices[index] = _price(price, where)
    if not prices:
        raise InputError(f"{path}: expected a feature and its price at least, got none")
    return tuple(prices.get(index, 1.0) for index in range(features.n_features))


def _of_json(path: Path) -> list[tuple[str, object]]:
    document = read_json(path, "prices")
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object of prices by feature, got {type(document).__name__}")
    return list(document.items())


def _of_csv(path: Path, known: Callable[[str], bool]) -> list[tuple[str, object]]:
    """A first line whose second cell is no number is a header, unless a feature or a group is called like the first."""
    lines = _lines(path)
    wrong = next((line for line in lines if len(line) != 2), None)
    if wrong is not None:
        raise InputError(f"{path}: expected a feature and its price in each line, got {shown(','.join(wrong))}")
    rows: list[tuple[str, object]] = [(name.strip(), _number(price)) for name, price in lines]
    return rows[1:] if rows and isinstance(rows[0][1], str) and not known(rows[0][0]) else rows


def _lines(path: Path) -> list[list[str]]:
    try:
        text = read_file(path, "prices").decode("utf-8-sig")
        return [line for line in csv.reader(text.splitlines(), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected lines of a feature and its price, got {shown(str(error))}") from error


def _number(text: str) -> float | str:
    """The number that a text is, or else the text."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _price(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}: expected a price above 0, got {shown(value)}")
    return float(value)
