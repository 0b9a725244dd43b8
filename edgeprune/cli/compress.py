"""`edgeprune compress`."""

from typing import Annotated

import typer

from edgeprune.catalog import ENTRIES
from edgeprune.cli import options as opt
from edgeprune.cli import recipes, values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output
from edgeprune.settings import ALLOCATIONS, DISTILLATIONS, MOST_FINETUNINGS

NEED_DATA = " and ".join(entry.name for entry in ENTRIES if entry.needs_data)


def compress(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint (.pt, .safetensors), exported program (.pt2) or .onnx file."
        ),
    ],
    data: opt.Data = None,
    normalize: opt.Normalize = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="What the network is for, and judged by: classification, multilabel, regression, segmentation, match "
            "(to answer as the dense network does, without labels) or path/file.py:factory, with ?key=value "
            "arguments. Default: the model's own, else what the targets of the data call for.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Finetune by a function of yours, function(module), which trains it in place; it may also take "
            "step, share (of the MACs), macs, epochs, seed and device.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Judge by a function of yours, function(module), which gives a number, or a dict of them by name; it "
            "may also take seed and device. With --finetune no data are needed.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:lower|:higher]",
            help="Which figure of --evaluate counts, and whether less of it is better. Default: the only one; less is "
            "better of what is called a loss or an error.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="DROP",
            help="The smallest network that loses at most this much on the validation set: accuracy points, or the "
            "unit of the task's metric, or a share such as 2% of what the dense network has. Assumed to be 1 point, or "
            "1% of a metric in another unit, where there is data and no other budget.",
            parser=values.max_drop,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    keep_macs: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            help="Keep at most this share of the multiply-accumulates (MACs); e.g. 0.5.",
            parser=values.number("a share in (0, 1]", 0, 1, low_allowed=False),
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="One inference in onnxruntime takes at most this long, measured: 5ms, 800us, or 0.5x of the dense "
            "network's time.",
            callback=values.check_latency,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The ONNX file is at most this large: 500kB, 1.5MB.",
            callback=values.check_size,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Inputs, outputs and activations that are alive at once take at most this, for one sample in float: "
            "256kB.",
            callback=values.check_ram,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Plan by the milliseconds of this device.json; see edgeprune profile. With --max-latency, this "
            "machine is measured where no file is given.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    pareto: opt.Pareto = None,
    widths: opt.Widths = None,
    gate: opt.Gate = None,
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8",
            help="Write ONNX, int8 and other small numbers too, as export does; int8 that loses more than --max-drop "
            "is finetuned as it is rounded.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    int8_for: opt.Int8For = None,
    input_features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|off|N|RATIO|INPUT=IDS",
            help="Drop input features (pixels, columns, sensors) too: as many as the budget allows (auto), none, "
            "or down to N or a RATIO of them; default auto. And keep only these ids of an input of tokens: those that "
            "the data use (ids=used), a list (ids=0,5-90) or a file of them; may be given for each input.",
            callback=values.check_input_features,
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    unknown_id: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=ID",
            help="The id that stands for all that are cut; without one, an id that was cut is an error.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    always_keep: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURES",
            help="Input features that stay, by name, number or range: temperature,3-7.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    feature_groups: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Input features that come together, as JSON: {"accelerometer": ["ax", "ay", "az"], ...}.',
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    feature_price: Annotated[
        str | None,
        typer.Option(
            metavar="PRICE|FILE",
            help="How many times dearer an input is than its arithmetic: one number, or a .csv or .json of them by "
            "feature or group.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Replay this plan.json instead of planning.", rich_help_panel=opt.WHAT),
    ] = None,
    arch: opt.Arch = None,
    state_key: opt.StateKey = None,
    ignore_keys: opt.IgnoreKeys = None,
    module: opt.Module = None,
    input_shape: opt.InputShape = None,
    input_: opt.Input = None,
    dynamic_size: opt.DynamicSize = False,
    dynamic: opt.Dynamic = None,
    criterion: Annotated[
        str | None,
        opt.named(
            "criterion",
            f"How channels are scored; {NEED_DATA} need data. Default: taylor or l2, the one whose cut loses less "
            "before anything is trained; without data l2.",
        ),
    ] = None,
    class_weights: opt.ClassWeights = None,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Epochs of finetuning after each cut; 0 for none: what is left only takes over what it can.",
            parser=values.count("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    max_finetunings: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The most training that the search takes where no cost is given, in finetunings.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = MOST_FINETUNINGS,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct/--no-reconstruct",
            help="After each cut let the layers that are left take over what went, by least squares on 512 samples, "
            "without labels.",
            rich_help_panel=opt.HOW,
        ),
    ] = True,
    augment: recipes.Augment = None,
    mixup: recipes.Mixup = None,
    cutmix: recipes.Cutmix = None,
    label_smoothing: recipes.LabelSmoothing = None,
    warmup: recipes.Warmup = None,
    ema: recipes.Ema = None,
    clip_norm: recipes.ClipNorm = None,
    recipe: recipes.File = None,
    distill: opt.Distill = DISTILLATIONS[0],
    no_distill: opt.NoDistill = False,
    align: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Prefer widths in multiples of this: odd ones can be slower than the dense network. Where a budget "
            "cannot be met so, it gives way, which is told. Default: 8, finer in layers of fewer than 64 channels, or "
            "the stairs of --device.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    allocation: Annotated[
        str,
        typer.Option(
            metavar="|".join(ALLOCATIONS),
            help="How the widths of all layers are chosen: greedy, by scores, in no time; sensitivity, by what four "
            "cuts of each layer lose, measured with data first (a second or more each), and exactly; predictor, by "
            "what up to 256 choices of all widths lose, measured so, from which others are foretold.",
            parser=values.one_of(ALLOCATIONS),
            rich_help_panel=opt.HOW,
        ),
    ] = ALLOCATIONS[0],
    prune_schedule: Annotated[
        str | None,
        opt.named(
            "cut-schedule",
            "How a network comes down to its cost: in one cut; within one finetuning, by cuts along an S; or in rounds "
            "of a fifth, with the learning rate rewound. Default: as many cuts of 30 % as it takes, each finetuned.",
        ),
    ] = None,
    depth: opt.Depth = False,
    lowrank: opt.LowRank = False,
    attention: opt.Attention = "heads",
    keep_equal_chunks: Annotated[
        bool,
        typer.Option(
            "--keep-equal-chunks",
            help="Cut so that slim.apply_to(model) can put it back: parts of a chunk stay equally wide, and layers "
            "whose width stands in the class's own forward are left alone.",
            rich_help_panel=opt.HOW,
        ),
    ] = False,
    keep_layer: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-layer",
            "--leave",
            metavar="LAYER",
            help="A layer (or a group of edgeprune inspect) whose channels all stay, by name or pattern (layer1.*); "
            "may be given several times.",
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    layer_ratio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=SHARE",
            help="A layer, in the same way, that keeps this share of its channels, no more and no less: conv1=0.5. The "
            "others make up for it; may be given several times.",
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    seed: opt.Seed = 0,
    threads: opt.Threads = None,
    allow_chance: opt.AllowChance = False,
    unsafe_pickle: opt.UnsafePickle = False,
    trust_recorded: opt.TrustRecorded = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run folder; default: runs/NAME-N.", rich_help_panel=opt.OUTPUT),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run that was stopped: what its search has come to lies in DIR.compressing until it is "
            "done. Without --out, the last one under runs/.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    log: opt.Log = None,
    tensorboard: opt.Board = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune compress model.pt --data digits --max-drop 1.0 --out run/[/bold]

    [bold]torchrun --nproc-per-node 2 -m edgeprune compress ...[/bold] shares finetuning, scores and metrics out.
    """
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import CompressRequest

        beside = recipes.asked(augment=augment, mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing)
        further = recipes.asked(warmup=warmup, ema=ema, clip_norm=clip_norm)
        features, vocabularies = values.split_input_features(input_features or ())
        request = CompressRequest(
            model=model,
            data=data,
            out=out,
            keep_macs=keep_macs,
            max_drop=max_drop,
            input_features=features,
            class_weights=class_weights,
            int8=int8,
            int8_for=int8_for,
            vocabularies=vocabularies,
            unknown_ids=tuple(unknown_id) if unknown_id else None,
            always_keep=always_keep,
            feature_groups=feature_groups,
            feature_price=feature_price,
            max_latency=max_latency,
            max_size=max_size,
            max_ram=max_ram,
            device=device,
            pareto=pareto,
            widths=values.widths_of(widths),
            gate=gate,
            criterion=criterion,
            finetune_epochs=finetune_epochs,
            max_finetunings=max_finetunings,
            reconstruct=reconstruct,
            distill=distill != "off" and not no_distill,
            distill_features=(distill == "features" and not no_distill) or None,
            align=align,
            seed=seed,
            plan=plan,
            arch=arch,
            module=module,
            input_shape=values.parse_shape(input_shape),
            inputs=values.parse_inputs(input_),
            dynamic_size=dynamic_size,
            dynamic=values.parse_dynamic(dynamic),
            attention=attention,
            appliable=keep_equal_chunks,
            leave=tuple(keep_layer or ()),
            layer_ratios=tuple(layer_ratio or ()),
            allocation=allocation,
            prune_schedule=prune_schedule,
            depth=depth or None,
            lowrank=lowrank or None,
            threads=threads,
            force=force,
            resume=resume,
            unsafe_pickle=unsafe_pickle,
            state_key=state_key,
            ignore_keys=ignore_keys,
            normalize=values.normalization_of(normalize),
            task=task,
            finetune=finetune,
            evaluate=evaluate,
            metric=metric,
            allow_chance=allow_chance,
            trust_recorded=trust_recorded,
            recipe=recipes.with_file(context, {**beside, **further}) or None,
            command=output.command,
        )
        with output.working(log, tensorboard) as progress:
            with imported_for_good():
                from edgeprune.pipeline import compress as run

            folder, record = run(request, progress)
        output.show(record, lambda terminal: terminal.run(record, folder), folder=str(folder))
