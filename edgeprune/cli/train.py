"""`edgeprune train`."""

from typing import Annotated, Literal

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import recipes, values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output


def train(
    context: typer.Context,
    *,
    arch: opt.TrainedArch,
    data: opt.TrainedData,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="What to train for: classification, multilabel, regression, segmentation or path/file.py:factory, "
            "with ?key=value arguments. Default: what the targets of the data call for.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    input_: opt.Input = None,
    normalize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOW",
            help=opt.NORMALIZE_HELP + "It is recorded in the checkpoint. Default: data.",
            callback=values.check_normalizations,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N", help="Passes over the training set.", parser=opt.positive_count, rich_help_panel=opt.HOW
        ),
    ] = 20,
    optimizer: Annotated[
        str, opt.named("optimizer", "AdamW, SGD with momentum, or one that trains to exact zeros.")
    ] = "adamw",
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Largest learning rate; default: the optimizer's usual one.",
            parser=values.number("a number above 0", 0, low_allowed=False),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Weight decay; default: the optimizer's usual one.",
            parser=values.number("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    schedule: Annotated[str | None, opt.named("lr-schedule", "How the learning rate falls. Default: cosine.")] = None,
    lam: Annotated[float | None, opt.own("lam")] = None,
    tau: Annotated[float | None, opt.own("tau")] = None,
    tau_b: Annotated[float | None, opt.own("tau_b")] = None,
    max_factor: Annotated[float | None, opt.own("max_factor")] = None,
    momentum: Annotated[float | None, opt.own("momentum")] = None,
    penalty: Annotated[str | None, opt.own("penalty")] = None,
    head_start: Annotated[float | None, opt.own("head_start")] = None,
    restarts: Annotated[int | None, opt.own("restarts")] = None,
    structure: Annotated[str | None, opt.own("structure")] = None,
    method: Annotated[
        str | None, opt.named("method", "Make zeros, or share weights, while training with adamw or sgd.", opt.SPARSE)
    ] = None,
    sparsity: Annotated[float | None, opt.own("sparsity")] = None,
    n_features: Annotated[int | None, opt.own("n_features")] = None,
    keep_macs: Annotated[float | None, opt.own("keep_macs")] = None,
    keep_params: Annotated[float | None, opt.own("keep_params")] = None,
    input_features: Annotated[str | None, opt.own("input_features")] = None,
    feature_price: Annotated[str | None, opt.own("feature_price")] = None,
    align: Annotated[int | None, opt.own("align")] = None,
    prune_schedule: Annotated[str | None, opt.own("prune_schedule")] = None,
    prune_every: Annotated[int | None, opt.own("prune_every")] = None,
    criterion: Annotated[str | None, opt.own("criterion")] = None,
    regrow: Annotated[str | None, opt.own("regrow")] = None,
    n_m: Annotated[str | None, opt.own("n_m")] = None,
    gates: Annotated[str | None, opt.own("gates")] = None,
    templates: Annotated[int | None, opt.own("templates")] = None,
    augment: recipes.Augment = None,
    mixup: recipes.Mixup = None,
    cutmix: recipes.Cutmix = None,
    label_smoothing: recipes.LabelSmoothing = None,
    warmup: recipes.Warmup = None,
    ema: recipes.Ema = None,
    clip_norm: recipes.ClipNorm = None,
    recipe: recipes.File = None,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Samples in a batch, over all processes.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = 128,
    accumulate: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Compute a batch in N parts, one after the other, where it does not fit into memory.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = 1,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Mixed precision; fp16 needs a GPU. Weights stay fp32.", rich_help_panel=opt.HOW),
    ] = "fp32",
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last",
            help="Keep images with their channels last in memory: faster convolutions on many GPUs and in bf16.",
            rich_help_panel=opt.HOW,
        ),
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where to train; auto: on a GPU where there is one.", rich_help_panel=opt.HOW),
    ] = "auto",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Processes that read samples ahead, where they are read from files.",
            parser=values.count("at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 0,
    class_weights: opt.ClassWeights = None,
    seed: opt.Seed = 0,
    threads: opt.Threads = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to write the checkpoint.", rich_help_panel=opt.OUTPUT)
    ],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the training that was stopped: its state after each epoch lies in FILE.training until it "
            "is done.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    log: opt.Log = None,
    tensorboard: opt.Board = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune train --arch models/digits.py:mlp --data digits --out model.pt[/bold]

    [bold]torchrun --nproc-per-node 2 -m edgeprune train ...[/bold] shares every batch between two processes.
    """
    from edgeprune.requests import TrainRequest
    from edgeprune.settings import Recipe, TrainSettings

    own: dict[str, float | str | None] = {"lam": lam, "tau": tau, "tau_b": tau_b, "max_factor": max_factor}
    own |= {"momentum": momentum, "penalty": penalty, "structure": structure, "sparsity": sparsity}
    own |= {"n_features": n_features, "head_start": head_start, "restarts": restarts}
    own |= {"keep_macs": keep_macs, "keep_params": keep_params, "align": align}
    own |= {"input_features": input_features, "feature_price": feature_price}
    own |= {"prune_schedule": prune_schedule, "prune_every": prune_every, "criterion": criterion}
    own |= {"regrow": regrow, "n_m": n_m, "gates": gates, "templates": templates}
    beside = recipes.asked(augment=augment, mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing)
    beside |= recipes.asked(warmup=warmup, ema=ema, clip_norm=clip_norm)
    settings = TrainSettings(
        epochs=epochs,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
        accumulate=accumulate,
        precision=precision,
        channels_last=channels_last,
        workers=workers,
        device=device,
        schedule=schedule,
        method=method,
        options={name: value for name, value in own.items() if value is not None},
        recipe=Recipe(**beside),
    )
    inputs = values.parse_inputs(input_)
    how = values.normalization_of(normalize) or "data"
    request = TrainRequest(arch, data, out, settings, force, resume, how, task, inputs, class_weights)
    with Output(context, as_json=as_json, debug=debug) as output:
        with output.working(log, tensorboard) as progress:
            with imported_for_good():
                from edgeprune.pipeline import train as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.train(record))
