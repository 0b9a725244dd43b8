"""`edgeprune federate`."""

from typing import Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output

CLIENTS = "Clients"


def federate(
    context: typer.Context,
    *,
    arch: opt.TrainedArch,
    data: opt.TrainedData,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="What to train for; default: what the targets call for.", rich_help_panel=opt.WHAT
        ),
    ] = None,
    normalize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOW",
            help=opt.NORMALIZE_HELP + "Default: data.",
            callback=values.check_normalizations,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Among which samples are shared out. Default: 100, or as many as have two samples each.",
            parser=opt.positive_count,
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    per_round: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many train in each round. Default: 10, or all clients.",
            parser=opt.positive_count,
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Share samples out by classes, with a Dirichlet distribution: the smaller, the fewer classes a client "
            "has. Default: evenly.",
            parser=values.number("a number above 0", 0, low_allowed=False),
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    leaving: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="How many leave in mid-round.",
            parser=values.number("a share from 0 to 1", 0, 1),
            rich_help_panel=CLIENTS,
        ),
    ] = 0.0,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Rounds.", parser=opt.positive_count, rich_help_panel=opt.HOW)
    ] = 100,
    sparsity: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Share of the weights that is out, in [0, 1); 0 is federated averaging.",
            parser=values.number("a share of at least 0 and below 1", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 0.8,
    readjust_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Weights change places every N rounds.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = 5,
    moved: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="How many of them at first.",
            parser=values.number("a share from 0 to 1", 0, 1),
            rich_help_panel=opt.HOW,
        ),
    ] = 0.3,
    local_epochs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Passes of a client over its samples.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = 2,
    batch_size: Annotated[
        int,
        typer.Option(metavar="N", help="Samples in a batch.", parser=opt.positive_count, rich_help_panel=opt.HOW),
    ] = 32,
    lr: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Learning rate of the clients' SGD.",
            parser=values.number("a number above 0", 0, low_allowed=False),
            rich_help_panel=opt.HOW,
        ),
    ] = 0.05,
    momentum: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Its momentum.",
            parser=values.number("a number of at least 0 and below 1", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 0.0,
    weight_decay: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Its weight decay.",
            parser=values.number("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 0.0,
    class_weights: opt.ClassWeights = None,
    seed: opt.Seed = 0,
    threads: opt.Threads = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to write the checkpoint.", rich_help_panel=opt.OUTPUT)
    ],
    log: opt.Log = None,
    tensorboard: opt.Board = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune federate --arch models/digits.py:mlp --data digits --clients 20 --per-round 5 --alpha 0.1
    --out model.pt[/bold]
    """
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import FederateRequest
        from edgeprune.settings import FederatedSettings

        settings = FederatedSettings(
            clients=clients,
            per_round=per_round,
            rounds=rounds,
            sparsity=sparsity,
            alpha=alpha,
            local_epochs=local_epochs,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            readjust_every=readjust_every,
            moved=moved,
            leaving=leaving,
            seed=seed,
        )
        settings.check()
        how = values.normalization_of(normalize) or "data"
        request = FederateRequest(arch, data, out, settings, force, how, task, class_weights, threads)
        with output.working(log, tensorboard) as progress:
            with imported_for_good():
                from edgeprune.pipeline import federate as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.federate(record))
