"""`edgeprune inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output

if TYPE_CHECKING:
    from edgeprune.results import GroupRow


def inspect(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint (.pt, .safetensors), an exported program (.pt2), an .onnx file or an architecture, e.g. "
            "torchvision:resnet18.",
        ),
    ],
    arch: opt.Arch = None,
    state_key: opt.StateKey = None,
    ignore_keys: opt.IgnoreKeys = None,
    input_shape: opt.InputShape = None,
    input_: opt.Input = None,
    module: opt.Module = None,
    dynamic_size: opt.DynamicSize = False,
    dynamic: opt.Dynamic = None,
    attention: opt.Attention = "heads",
    unsafe_pickle: opt.UnsafePickle = False,
    dot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the groups for Graphviz.", rich_help_panel=opt.OUTPUT),
    ] = None,
    svg: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the groups as a picture for a browser.", rich_help_panel=opt.OUTPUT),
    ] = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune inspect model.pt[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import InspectRequest

        shape = values.parse_shape(input_shape)
        request = InspectRequest(
            model,
            arch,
            shape,
            dynamic_size,
            attention,
            unsafe_pickle,
            dot,
            svg,
            force,
            module,
            state_key=state_key,
            ignore_keys=ignore_keys,
            dynamic=values.parse_dynamic(dynamic),
            inputs=values.parse_inputs(input_),
        )
        with output.working() as progress:
            with imported_for_good():
                from edgeprune.pipeline import inspect as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.inspect(record))
        if all(group.kind == "locked" for group in record.groups):
            output.fail(f"{model}: nothing can be pruned: {_reasons(record.groups)}")


def _reasons(groups: tuple[GroupRow, ...]) -> str:
    """The distinct reasons, the first few of them, e.g. "fc: graph output; conv1: ... (and 3 more)"."""
    reasons: dict[str, str] = {}
    for group in groups:
        reasons.setdefault(group.reason or "no reason recorded", group.name)
    if not reasons:
        return "no channel group was found"
    shown = [f"{name}: {reason}" for reason, name in list(reasons.items())[:3]]
    more = len(reasons) - len(shown)
    return "; ".join(shown) + (f" (and {more} more)" if more > 0 else "")
