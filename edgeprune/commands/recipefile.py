"""Recipes as TOML files: how a network is trained, for `train` and for the finetuning of `compress`."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from edgeprune.catalog import IN_RECIPE_FILES, check_values
from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown
from edgeprune.reading import read_file


def read_recipe(path: str | Path) -> dict[str, Any]:
    """What a recipe file says, by the names of the settings; `label-smoothing` is `label_smoothing`.

    Example: `read_recipe("recipe.toml") == {"augment": "crop-flip", "ema": 0.999}`.

    Raises:
        InputError: no recipe file, unknown or doubled keys, or values that their options do not take.
    """
    found: dict[str, Any] = {}
    for key, value in _table(path).items():
        name = key.replace("-", "_")
        if name not in IN_RECIPE_FILES:
            raise InputError(f"{path}: expected keys of a recipe, got {_unknown(name, key)}")
        if name in found:
            raise InputError(f"{path}: expected each key once, got {key} and {name}")
        found[name] = value
    try:
        check_values(found, IN_RECIPE_FILES)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def _table(path: str | Path) -> dict[str, Any]:
    content = read_file(path, "recipe")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # what is no UTF-8 and no TOML are ValueErrors, too
        raise InputError(f"{path}: expected a recipe in TOML, got {error_line(error)}") from error


def _unknown(name: str, key: str) -> str:
    near = difflib.get_close_matches(name[:100], IN_RECIPE_FILES, n=1)
    hint = near[0] if near else ", ".join(IN_RECIPE_FILES)
    return f"{shown(key)}; {'did you mean' if near else 'there are'} {hint.replace('_', '-')}{'?' if near else ''}"
