"""`edgeprune certify`."""

from typing import Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.library import imported_for_good
from edgeprune.cli.output import Output


def certify(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run folder, or a file of a network: .pt2, .pt, .safetensors or .onnx."),
    ],
    data: opt.Data = None,
    eps: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="How far each input may move, in the units of the data before normalisation: pixels from 0 to 1.",
            parser=values.number("a number of at least 0", 0),
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    dropped_inputs: Annotated[
        bool,
        typer.Option(
            "--dropped-inputs",
            help="Prove that the inputs that the run removed, anywhere in their range, do not change what the dense "
            "network decides.",
            rich_help_panel=opt.WHAT,
        ),
    ] = False,
    equivalence: Annotated[
        bool,
        typer.Option(
            "--equivalence",
            help="Bound how far the outputs of the slim and the dense network can be apart within --eps.",
            rich_help_panel=opt.WHAT,
        ),
    ] = False,
    min_verified: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Exit 1 when a smaller share of the samples is verified.",
            parser=values.number("a share from 0 to 1", 0, 1),
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="With --equivalence: exit 1 when the outputs may differ by more.",
            parser=values.number("a number of at least 0", 0),
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The dense network; default: the one of the run.", rich_help_panel=opt.WHAT),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW:HIGH",
            help="Where inputs can lie at all; default: what a byte can be, else what the training data hold.",
            rich_help_panel=opt.WHAT,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Samples of the test split, drawn by --seed.",
            parser=opt.positive_count,
            rich_help_panel=opt.HOW,
        ),
    ] = 100,
    method: Annotated[
        str,
        typer.Option(
            metavar="interval|crown|sdp",
            help="How bounds are computed, from quick and loose to slow and tight.",
            parser=values.one_of(("interval", "crown", "sdp")),
            rich_help_panel=opt.HOW,
        ),
    ] = "crown",
    seed: opt.Seed = 0,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    normalize: opt.Normalize = None,
    unsafe_pickle: opt.UnsafePickle = False,
    trust_recorded: opt.TrustRecorded = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune certify run/slim.pt2 --data mnist --eps 0.1 --method sdp[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune.errors import InputError
        from edgeprune.requests import CertifyRequest

        if dropped_inputs and equivalence:
            raise InputError("--dropped-inputs: expected it without --equivalence, got both")
        request = CertifyRequest(
            model,
            data,
            "dropped-inputs" if dropped_inputs else "equivalence" if equivalence else "robustness",
            eps,
            samples,
            method,
            min_verified,
            max_difference,
            range_,
            dense,
            seed,
            arch,
            values.parse_shape(input_shape),
            values.normalization_of(normalize),
            unsafe_pickle,
            trust_recorded,
        )
        with output.working() as progress:
            with imported_for_good():
                from edgeprune.pipeline import certify as run

            record = run(request, progress)
        output.show(record, lambda terminal: terminal.certify(record))
        if record.failures:
            output.fail("missed: " + "; ".join(record.failures))
