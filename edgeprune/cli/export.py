"""`edgeprune export`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli.output import Output
from edgeprune.errors import InputError


def export(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model.pt or a slim.pt2; default: the newest run under runs/."),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX with a dynamic batch, simplified.", rich_help_panel=opt.WHAT)
    ] = False,
    data: opt.Data = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    dynamic_size: opt.DynamicSize = False,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="ONNX opset; default: the exporter's.",
            parser=opt.count("an opset of at least 18", 18),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    simplify: Annotated[
        bool, typer.Option("--simplify/--no-simplify", help="Run the graph simplifier.", rich_help_panel=opt.HOW)
    ] = True,
    unsafe_pickle: opt.UnsafePickle = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where to write; default: the folder of the model.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Write the file that a runtime loads, checked against PyTorch on real inputs.

    [bold]edgeprune export --onnx run/slim.pt2 --out run/[/bold]
    """
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import ExportRequest

        if not onnx:
            raise InputError("export: no target given: expected --onnx (the targets there are: --onnx)")
        request = ExportRequest(
            model=model,
            out=out,
            data=data,
            arch=arch,
            input_shape=opt.parse_shape(input_shape),
            dynamic_size=dynamic_size,
            opset=opset,
            simplify=simplify,
            force=force,
            unsafe_pickle=unsafe_pickle,
        )
        with output.working() as progress:
            from edgeprune import pipeline

            record = pipeline.export(request, progress)
        output.show(record, lambda terminal: terminal.export(record))
