"""`edgeprune bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.output import Output


def bench(
    context: typer.Context,
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILES",
            help="A run's folder with its exported files, or .tflite, .onnx and .ort files, the dense one first.",
        ),
    ],
    adb: Annotated[
        bool, typer.Option("--adb", help="Measure on the device that adb reaches.", rich_help_panel=opt.WHAT)
    ] = False,
    serial: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Which device, where there are several, as adb devices lists them; default: $ANDROID_SERIAL.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    benchmark_model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="LiteRT's benchmark_model, here or on the device; default: on PATH, or in the device's "
            "/data/local/tmp. Nothing is downloaded.",
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    perf_test: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The same of onnxruntime_perf_test.", rich_help_panel=opt.HOW),
    ] = None,
    delegate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What runs the networks: xnnpack (LiteRT's default), cpu (onnxruntime's), gpu, nnapi or qnn.",
            parser=values.one_of(("xnnpack", "cpu", "gpu", "nnapi", "qnn")),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(metavar="N", help="CPU threads.", parser=opt.positive_count, rich_help_panel=opt.HOW)
    ] = 1,
    runs: Annotated[
        int,
        typer.Option(metavar="N", help="Inferences of each round.", parser=opt.positive_count, rich_help_panel=opt.HOW),
    ] = 50,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="How often each network is run, in turn with the others.",
            parser=values.count("1 to 1000", 1, 1000),
            rich_help_panel=opt.HOW,
        ),
    ] = 5,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="What one round of one network may take.",
            parser=values.number("seconds above 0, at most 86400", 0, 86400, low_allowed=False),
            rich_help_panel=opt.HOW,
        ),
    ] = 300.0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Where to write; default: device.json in the run.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune bench --adb run/ --benchmark-model ~/benchmark_model[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.errors import InputError
        from edgeprune.requests import BenchRequest

        if not adb:
            raise InputError("bench: expected --adb, which measures on the phone that adb reaches, got none")
        request = BenchRequest(
            networks=tuple(networks),
            serial=serial,
            benchmark_model=benchmark_model,
            perf_test=perf_test,
            delegate=delegate,
            threads=threads,
            runs=runs,
            rounds=rounds,
            timeout=timeout,
            out=out,
            force=force,
        )
        with output.working() as progress:
            from edgeprune.pipeline import bench as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.bench(record))
