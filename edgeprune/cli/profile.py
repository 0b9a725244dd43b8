"""`edgeprune profile`."""

from typing import Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output


def profile(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint (.pt, .safetensors), an exported program (.pt2), an .onnx file or an architecture.",
        ),
    ],
    arch: opt.Arch = None,
    state_key: opt.StateKey = None,
    ignore_keys: opt.IgnoreKeys = None,
    input_shape: opt.InputShape = None,
    input_: opt.Input = None,
    threads: Annotated[
        int,
        typer.Option(metavar="N", help="onnxruntime threads.", parser=opt.positive_count, rich_help_panel=opt.HOW),
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Inputs at a time.", parser=opt.positive_count, rich_help_panel=opt.HOW)
    ] = 1,
    runs: Annotated[
        int,
        typer.Option(metavar="N", help="Timed runs of each layer.", parser=opt.positive_count, rich_help_panel=opt.HOW),
    ] = 20,
    warmup: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Untimed runs before.",
            parser=values.count("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 3,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Measure again what is known from before.", rich_help_panel=opt.HOW),
    ] = False,
    unsafe_pickle: opt.UnsafePickle = False,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to write.", rich_help_panel=opt.OUTPUT)
    ] = "device.json",
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune profile model.pt --out device.json[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import ProfileRequest

        request = ProfileRequest(
            model=model,
            out=out,
            arch=arch,
            input_shape=values.parse_shape(input_shape),
            inputs=values.parse_inputs(input_),
            threads=threads,
            batch_size=batch_size,
            runs=runs,
            warmup=warmup,
            fresh=fresh,
            force=force,
            unsafe_pickle=unsafe_pickle,
            state_key=state_key,
            ignore_keys=ignore_keys,
        )
        with output.working() as progress:
            with imported_for_good():
                from edgeprune.pipeline import profile as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.profile(record))
