"""`edgeprune validate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output


def validate(
    context: typer.Context,
    dense: Annotated[
        str,
        typer.Argument(
            metavar="DENSE.onnx",
            help="The network before: an .onnx, .ort or .pt2 file, or a checkpoint of edgeprune's.",
        ),
    ],
    slim: Annotated[
        str, typer.Argument(metavar="SLIM.onnx", help="The network after; or a run folder with several widths.")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help=opt.DATA_HELP + ".", rich_help_panel=opt.WHAT)],
    normalize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOW",
            help="How the inputs of a file that does not say are made of the data: none, data, or 'mean=0.5;std=0.25'; "
            "of one of several inputs NAME:HOW, once for each; default: as the other file says, else none.",
            callback=values.check_normalizations,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="What the networks are for, and judged by; default: as the files say, else what the targets of the "
            "data call for. `match` judges by the answers of the network before.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="DROP",
            help="Exit 1 when the test metric drops by more than this: accuracy points, or the unit of the task's "
            "metric, or a share such as 2% of what the network before has.",
            parser=values.max_drop,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            help="Exit 1 when slim takes more than this share of the dense time.",
            parser=values.number("a ratio above 0", 0, low_allowed=False),
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(metavar="N", help="Threads of the runtime.", parser=opt.positive_count, rich_help_panel=opt.HOW),
    ] = 1,
    runs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Timed runs of each network, interleaved.",
            parser=values.count("at least 10 runs", 10),
            rich_help_panel=opt.HOW,
        ),
    ] = 200,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N", help="Samples in each timed run.", parser=opt.positive_count, rich_help_panel=opt.HOW
        ),
    ] = 1,
    allow_chance: opt.AllowChance = False,
    trust_recorded: opt.TrustRecorded = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune validate dense.onnx run/slim.onnx --data digits --max-drop 1.0[/bold]"""
    from edgeprune.requests import ValidateRequest

    request = ValidateRequest(
        dense,
        slim,
        data,
        max_drop,
        max_latency_ratio,
        threads,
        runs,
        batch_size,
        normalize=values.normalization_of(normalize),
        allow_chance=allow_chance,
        task=task,
        trust_recorded=trust_recorded,
    )
    with Output(context, as_json=as_json, debug=debug) as output:
        with output.working() as progress:
            record: Any
            if Path(slim).is_dir():
                with imported_for_good():
                    from edgeprune.pipeline import validate_widths

                record = validate_widths(request, progress)
            else:
                with imported_for_good():
                    from edgeprune.pipeline import validate as of_file

                record = of_file(request, progress)
        output.show(record, lambda terminal: terminal.validated(record))
        if record.failures:
            output.fail("budget missed: " + "; ".join(record.failures))
