"""`edgeprune train`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from edgeprune.cli import options as opt
from edgeprune.cli.output import Output
from edgeprune.records import TrainRequest, TrainSettings


def train(
    context: typer.Context,
    *,
    arch: Annotated[
        str,
        typer.Option(
            metavar="ARCH",
            help="What builds the network: torchvision:NAME, timm:NAME, package.module:factory or "
            "path/file.py:factory, with ?key=value&... arguments.",
            rich_help_panel=opt.WHAT,
        ),
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help=opt.DATA_HELP + ".", rich_help_panel=opt.WHAT)],
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N", help="Passes over the training set.", parser=opt.positive_count, rich_help_panel=opt.HOW
        ),
    ] = 20,
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        typer.Option(help="AdamW, or SGD with momentum; both with a cosine schedule.", rich_help_panel=opt.HOW),
    ] = "adamw",
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Peak learning rate; default: the optimizer's usual one.",
            parser=opt.number("a number above 0", 0, low_allowed=False),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Weight decay; default: the optimizer's usual one.",
            parser=opt.number("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Samples in a batch.", parser=opt.positive_count, rich_help_panel=opt.HOW)
    ] = 128,
    seed: opt.Seed = 0,
    threads: opt.Threads = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to write the checkpoint.", rich_help_panel=opt.OUTPUT)
    ],
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Train a network and write a checkpoint that knows its architecture, input and classes.

    [bold]edgeprune train --arch models/digits.py:mlp --data digits --out model.pt[/bold]
    """
    settings = TrainSettings(epochs, optimizer, lr, weight_decay, batch_size, seed, threads)
    request = TrainRequest(arch, data, out, settings, force)
    with Output(context, as_json=as_json, debug=debug) as output:
        with output.working() as progress:
            from edgeprune import pipeline

            record = pipeline.train(request, progress)
        output.show(record, lambda terminal: terminal.train(record))
