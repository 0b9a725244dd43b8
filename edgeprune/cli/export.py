"""`edgeprune export`."""

from typing import Annotated, Literal

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output
from edgeprune.errors import InputError
from edgeprune.runtimes import EVERY, ONNX, TARGETS, target, targets_in


def export(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model.pt or a slim.pt2; default: the newest run under runs/."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Write for these: {', '.join((ONNX, *(entry.name for entry in TARGETS)))}; {EVERY}: each runtime "
            "that is installed.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Write ONNX with a dynamic batch, simplified; of weights that share templates a small file too.",
            rich_help_panel=opt.WHAT,
        ),
    ] = False,
    c_header: Annotated[
        bool,
        typer.Option("--c-header", help=target("c-header").summary, rich_help_panel=opt.WHAT),
    ] = False,
    ort: Annotated[
        bool,
        typer.Option("--ort", help=target("ort").summary, rich_help_panel=opt.WHAT),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Write int8 and other small numbers too; all are measured, and the table says which to ship.",
            rich_help_panel=opt.WHAT,
        ),
    ] = False,
    int8_for: opt.Int8For = None,
    finetune_epochs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Finetune int8 for so many epochs where it loses more than --max-drop; default: 0, not at all.",
            parser=values.count("a number of at least 0", 0),
            rich_help_panel=opt.HOW,
        ),
    ] = 0,
    executorch: Annotated[
        bool,
        typer.Option("--executorch", help=target("executorch").summary, rich_help_panel=opt.WHAT),
    ] = False,
    mobile: Annotated[
        bool,
        typer.Option(
            "--mobile",
            help="Say what accelerators of phones would take of the network, by each one's own checker.",
            rich_help_panel=opt.WHAT,
        ),
    ] = False,
    web: Annotated[
        bool,
        typer.Option("--web", help=target("web").summary, rich_help_panel=opt.WHAT),
    ] = False,
    data: opt.Data = None,
    normalize: opt.Normalize = None,
    arch: opt.Arch = None,
    state_key: opt.StateKey = None,
    ignore_keys: opt.IgnoreKeys = None,
    input_shape: opt.InputShape = None,
    input_: opt.Input = None,
    dynamic_size: opt.DynamicSize = False,
    dynamic: opt.Dynamic = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="ONNX opset; default: the exporter's.",
            parser=values.count("an opset of at least 18", 18),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    ort_platform: Annotated[
        str | None,
        typer.Option(
            metavar="arm|amd64",
            help="Where the .ort file is to run: amd64 lays convolutions out for x86, arm keeps int8 as it is; "
            "default: it runs on both.",
            parser=values.one_of(("arm", "amd64")),
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            metavar="N|dynamic",
            help="A fixed batch, as accelerators of phones ask for, or a free one.",
            callback=values.check_batch,
            rich_help_panel=opt.HOW,
        ),
    ] = "dynamic",
    preprocess: Annotated[
        Literal["apart", "fold"],
        typer.Option(
            help="Scaling and mean/std in a file of their own, or folded into the graph, which then takes raw bytes.",
            rich_help_panel=opt.HOW,
        ),
    ] = "apart",
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="What the network is for, and int8 is judged by; default: the model's own, else what the targets of "
            "the data call for.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="DROP",
            help="What int8 may lose on the validation split: accuracy points, or the unit of the task's metric, or a "
            "share such as 2%; default: 1 point, or 1% of a metric in another unit.",
            parser=values.max_drop,
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense network, for the web page and for what `match` is to meet; default: the run's.",
            rich_help_panel=opt.HOW,
        ),
    ] = None,
    web_runtime: Annotated[
        str,
        typer.Option(
            metavar="VERSION|PATH",
            help="onnxruntime-web's version, which npm fetches, or the path of a package, its .tgz or node_modules.",
            rich_help_panel=opt.HOW,
        ),
    ] = "1.30.0",
    layout: Annotated[
        Literal["nhwc", "nchw"],
        typer.Option(
            help="How a .tflite file has images: channels last, as on Android, or first, as in PyTorch.",
            rich_help_panel=opt.HOW,
        ),
    ] = "nhwc",
    simplify: Annotated[
        bool, typer.Option("--simplify/--no-simplify", help="Run the graph simplifier.", rich_help_panel=opt.HOW)
    ] = True,
    allow_chance: opt.AllowChance = False,
    unsafe_pickle: opt.UnsafePickle = False,
    trust_recorded: opt.TrustRecorded = False,
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
    """[bold]edgeprune export --onnx run/slim.pt2 --out run/[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.requests import ExportRequest

        asked = {"c-header": c_header, "ort": ort, "executorch": executorch, "web": web}
        named = () if to is None else targets_in(to)
        if not any((onnx, int8, mobile, named, *asked.values())):
            raise InputError(
                "export: no target given: expected --onnx, --to NAME,... or one of --c-header, --ort, --int8, "
                "--executorch, --mobile and --web"
            )
        if int8_for is not None and not int8:
            raise InputError(f"--int8-for {int8_for}: expected --int8 beside it, got none")
        if finetune_epochs and not int8:
            raise InputError(f"--finetune-epochs {finetune_epochs}: expected --int8 beside it, got none")
        names = (*(name for name, is_asked in asked.items() if is_asked), *named)
        request = ExportRequest(
            model=model,
            out=out,
            data=data,
            arch=arch,
            input_shape=values.parse_shape(input_shape),
            inputs=values.parse_inputs(input_),
            dynamic_size=dynamic_size,
            dynamic=values.parse_dynamic(dynamic),
            opset=opset,
            targets=tuple(name for name in dict.fromkeys(names) if name not in (ONNX, EVERY)),
            every=EVERY in named,
            ort_platform=ort_platform,  # type: ignore[arg-type]
            int8=int8,
            int8_for=int8_for,
            finetune_epochs=finetune_epochs,
            mobile=mobile,
            batch=None if batch == "dynamic" else int(batch),
            preprocess=preprocess,
            max_drop=max_drop,
            task=task,
            dense=dense,
            web_runtime=web_runtime,
            layout=layout,
            simplify=simplify,
            force=force,
            unsafe_pickle=unsafe_pickle,
            state_key=state_key,
            ignore_keys=ignore_keys,
            normalize=values.normalization_of(normalize),
            allow_chance=allow_chance,
            trust_recorded=trust_recorded,
            shared=onnx or ONNX in named,
        )
        with output.working() as progress:
            with imported_for_good():
                from edgeprune.pipeline import export as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.export(record))
