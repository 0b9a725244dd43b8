"""The `edgeprune` command: registers the commands, and nothing else.

The commands' modules leave their annotations as they are where they can: as strings, Typer would have to compile each
one again, which took a tenth of the time of `edgeprune --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgeprune import __version__
from edgeprune.cli import interrupts, messages, surroundings
from edgeprune.cli.bench import bench
from edgeprune.cli.certify import certify
from edgeprune.cli.compress import compress
from edgeprune.cli.export import export
from edgeprune.cli.federate import federate
from edgeprune.cli.inspect import inspect
from edgeprune.cli.methods import methods
from edgeprune.cli.profile import profile
from edgeprune.cli.serve import serve
from edgeprune.cli.train import train
from edgeprune.cli.validate import validate
from edgeprune.processes import check_alone

_HELP = """Make a trained PyTorch network small and fast, keep the accuracy you state, and prove it.

[bold]edgeprune compress model.pt --data digits --max-drop 1.0 --out run/[/bold]

[bold]edgeprune export --onnx run/slim.pt2 --out run/[/bold]
"""

app = typer.Typer(
    name="edgeprune",
    help=_HELP,
    rich_markup_mode="rich",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeprune {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (compress, export, validate, certify, inspect, profile, bench, serve, train, federate, methods):
    app.command(no_args_is_help=False)(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    surroundings.fill_streams()
    guard = messages.Guard(debug="--debug" in given, may_exit=True)
    with interrupts.noticed(), interrupts.ended_together(), guard:
        surroundings.check()
        messages.check_arguments(given)
        if given:
            check_alone(given[0])
        code = app(given, prog_name="edgeprune", standalone_mode=False, obj={messages.ARGUMENTS: given})
        guard.exit_code = code if isinstance(code, int) else 0
    return guard.exit_code
