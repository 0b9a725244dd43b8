"""A command that `edgeprune --help` only lists: its module is imported and its options are built when it is called."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

import typer
from typer.core import TyperCommand


class Deferred(TyperCommand):
    """Stands in the list of commands for the one that its module, `edgeprune.cli.NAME`, holds under the same name."""

    def whole(self) -> TyperCommand:
        """The command with its options; its help is the summary and what the function's docstring adds."""
        function = getattr(importlib.import_module(f"edgeprune.cli.{self.name}"), cast(str, self.name))
        added = inspect.getdoc(function) or ""
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        alone.command(self.name, help=f"{self.help}\n\n{added}".strip(), no_args_is_help=False)(function)
        return cast(TyperCommand, typer.main.get_command(alone))

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the command's own arguments: from here on the whole command is the one that runs."""
        return self.whole().make_context(*arguments, **settings)


def uncalled() -> None:
    """Typer wants a function where a command is registered; the whole command has its own."""
