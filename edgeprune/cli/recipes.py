"""The options of `train` and `compress` that make up a recipe, and the file that may say them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgeprune.catalog import IN_RECIPE_FILES, RECIPE
from edgeprune.cli.options import numeric
from edgeprune.cli.values import one_of

PANEL = "Recipe"
_OF_THE_COMMANDS = ("epochs", "finetune_epochs")


def _option(name: str) -> Any:
    """The option, as the catalog has it."""
    option = RECIPE[name]
    if not option.choices:
        return numeric(option, option.help, PANEL)
    parser = one_of(option.choices)
    return typer.Option(metavar="|".join(option.choices), help=option.help, parser=parser, rich_help_panel=PANEL)


def _fill_in(context: typer.Context, path: str | None) -> str | None:
    """Let the file say what the command line does not, before its other options are read."""
    if path is not None:
        from edgeprune.commands.recipefile import read_recipe

        context.default_map = {**(context.default_map or {}), **read_recipe(path)}
    return path


Augment = Annotated[str | None, _option("augment")]
Mixup = Annotated[float | None, _option("mixup")]
Cutmix = Annotated[float | None, _option("cutmix")]
LabelSmoothing = Annotated[float | None, _option("label_smoothing")]
Warmup = Annotated[float | None, _option("warmup")]
Ema = Annotated[float | None, _option("ema")]
ClipNorm = Annotated[float | None, _option("clip_norm")]
File = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help='Take these, and what else says how to train, from a TOML file: augment = "crop-flip". What stands on the '
        "command line wins.",
        callback=_fill_in,
        is_eager=True,
        rich_help_panel=PANEL,
    ),
]


def asked(**options: float | str | None) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def with_file(context: typer.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, and what the file says beside, but for how many epochs it takes."""
    filed = {name: value for name, value in (context.default_map or {}).items() if name in IN_RECIPE_FILES}
    return {name: value for name, value in {**filed, **given}.items() if name not in _OF_THE_COMMANDS}
