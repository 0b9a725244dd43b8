"""The `edgeprune` command: registers the commands, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgeprune import __version__
from edgeprune.cli import interrupts, messages, surroundings
from edgeprune.cli.deferred import Deferred, uncalled
from edgeprune.processes import check_alone

_HELP = """Make a trained PyTorch network small and fast, keep the accuracy you state, and prove it.

[bold]edgeprune compress model.pt --data digits --max-drop 1.0 --out run/[/bold]

[bold]edgeprune export --onnx run/slim.pt2 --out run/[/bold]
"""

# Command, which is also its module here and its function there -> what it does.
_COMMANDS = {
    "compress": "Prune a trained network to a budget, prove the cut, and write a run folder with a report.",
    "export": "Write the file that a runtime loads, checked against PyTorch on real inputs.",
    "validate": (
        "Compare two files in onnxruntime: the task's metric, parity, size and latency; a missed budget exits 1."
    ),
    "certify": "Prove that no input near a sample is answered otherwise, and attack what is not proved.",
    "inspect": "List the groups of channels that go together, what they cost, and why some cannot be removed.",
    "profile": (
        "Measure how the time of a network's layers moves with their widths on this machine, for compress --device."
    ),
    "bench": "Time exported networks on a phone, dense and slim in turn, by their runtime's own benchmark program.",
    "serve": "Serve the page of an export, so that browsers run the networks on threads; Ctrl-C ends it.",
    "train": "Train a network and write a checkpoint that knows its architecture, input and classes.",
    "federate": (
        "Train a sparse network on clients that keep their data, and count the bytes; one process simulates them."
    ),
    "methods": (
        "List what sparse training can be made of: optimizers, methods, criteria and schedules, each with its paper."
    ),
}

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


for _name, _summary in _COMMANDS.items():
    app.command(_name, cls=Deferred, help=_summary)(uncalled)


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
