"""The options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from edgeprune.catalog import OPTIONS, Option, names, owners
from edgeprune.cli import values
from edgeprune.settings import DISTILLATIONS

WHAT = "What to do"
HOW = "How to do it"
SPARSE = "Sparse training; see edgeprune methods"
OUTPUT = "Output"
_WIDE = 24  # characters


def named(kind: str, text: str, panel: str = HOW) -> Any:
    """The option that takes the name of something in the catalog."""
    return _choice(names(kind), text, panel)


def _choice(choices: Sequence[str], text: str, panel: str) -> Any:
    """An option that takes one of these names; many of them stand in its help."""
    metavar = "|".join(choices)
    if len(metavar) > _WIDE:
        metavar, text = "NAME", f"{text} One of {', '.join(choices)}."
    return typer.Option(metavar=metavar, help=text, parser=values.one_of(choices), rich_help_panel=panel)


def own(name: str) -> Any:
    """An option that belongs to some optimizers, as the catalog has it."""
    option = OPTIONS[name]
    text = f"{option.help} For {', '.join(owners(name))}."
    if option.choices:
        return _choice(option.choices, text, SPARSE)
    if option.form:
        return typer.Option(metavar=option.form.split(",")[0], help=text, rich_help_panel=SPARSE)
    return numeric(option, text, SPARSE)


def numeric(option: Option, text: str, panel: str) -> Any:
    """An option that takes a number, as the catalog has it."""

    def parse(value: str | float) -> float:
        try:
            number = int(value) if option.whole else float(value)
        except ValueError:
            raise values.fail(option.expected, value) from None
        if not option.allows(number):
            raise values.fail(option.expected, number)
        return number

    return typer.Option(metavar="N" if option.whole else "X", help=text, parser=parse, rich_help_panel=panel)


positive_count = values.count("a number of at least 1", 1)
Pareto = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="N networks along the front of accuracy and latency, down to --keep-macs (default 0.2); the smallest "
        "within --max-drop becomes the run's.",
        parser=values.count("2 to 20 networks", 2, 20),
        rich_help_panel=WHAT,
    ),
]
Int8For = Annotated[
    Literal["any", "arm", "vnni"] | None,
    typer.Option(
        help="Where int8 is to run: weights of 7 bits are right on any CPU; arm and vnni (x86) keep 8, whose "
        "products saturate on x86 without VNNI; default: any.",
        rich_help_panel=HOW,
    ),
]
Widths = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE,SHARE,...",
        help="One network at several widths, such as 0.25,0.5,1 of the MACs: one training, and one file of weights of "
        "which each width reads the first rows and columns. The smallest within --max-drop becomes the run's.",
        callback=values.check_widths,
        rich_help_panel=WHAT,
    ),
]
Gate = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="With --widths: one file more, in which a small gate picks the width by the input, trained to this mean "
        "share of the widest network's MACs, such as 0.6, or of its time, 0.6x.",
        callback=values.check_gate,
        rich_help_panel=WHAT,
    ),
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of tables.", rich_help_panel=OUTPUT)
]
Log = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Add what is told of the work to this file, too: one JSON object a line, with times and what is left.",
        rich_help_panel=OUTPUT,
    ),
]
Board = Annotated[
    str | None,
    typer.Option(
        "--tensorboard",
        metavar="DIR",
        help="Write losses, the metric and what each step came to for TensorBoard.",
        rich_help_panel=OUTPUT,
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show warnings, and the traceback of an error.", rich_help_panel=OUTPUT)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is already there.", rich_help_panel=OUTPUT)]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="ARCH",
        help="What builds the network, where the file does not say: torchvision:NAME, timm:NAME, "
        "package.module:factory or path/file.py:factory, with ?key=value&... arguments.",
        rich_help_panel=WHAT,
    ),
]
StateKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which weights of a checkpoint that holds several: ema, generator, student, ...",
        rich_help_panel=WHAT,
    ),
]
IgnoreKeys = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERNS",
        help="What of a checkpoint is no weight of the network, by patterns: 'loss.*,similarity_*'.",
        rich_help_panel=WHAT,
    ),
]
Module = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Take this part of the network alone, e.g. backbone: of a detector, say, which cannot be exported whole. "
        "--input-shape is that of the part.",
        rich_help_panel=WHAT,
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="C,H,W",
        help="One input's shape without the batch, where the file does not say; e.g. 3,224,224.",
        rich_help_panel=WHAT,
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SHAPE[:TYPE]",
        help="One of the network's inputs by name, where the file does not say: image=3,224,224, or ids=-1:int64 whose "
        "length stays free; once for each input. sr=16000:constant makes an input of an .onnx file a constant.",
        rich_help_panel=WHAT,
    ),
]
DynamicSize = Annotated[
    bool,
    typer.Option(
        "--dynamic-size",
        help="Leave height and width free (all sizes from the third on), for a fully convolutional network.",
        rich_help_panel=WHAT,
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT:DIMS",
        help="Dims of an input that are free beside the batch, with bounds or without: x:2,3 or tokens:1<=64 or "
        "4<=tokens:1<=64; once for each input.",
        rich_help_panel=WHAT,
    ),
]
Attention = Annotated[
    Literal["heads", "head-dim"],
    typer.Option(help="What an attention loses: whole heads, or the same channels of every head.", rich_help_panel=HOW),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        metavar="balanced|none|FILE",
        help="How much the samples of each class count in the loss: those of rare classes more (balanced), all alike "
        '(none), or as a JSON file says: {"cat": 1, "lynx": 12}. It is recorded with the task. Default: as the task '
        "says, else none.",
        rich_help_panel=HOW,
    ),
]
DATA_HELP = (
    "digits, mnist[:ROOT], cifar10[:ROOT], ..., imagefolder:ROOT, audiofolder:ROOT, webdataset:SHARDS, npz:FILE, "
    "csv:FILE?target=COLUMN, parquet:FILE?target=COLUMN, hf:DIR "
    "or path/file.py:factory"
)
TrainedArch = Annotated[
    str,
    typer.Option(
        metavar="ARCH",
        help="What builds the network: torchvision:NAME, timm:NAME, package.module:factory or "
        "path/file.py:factory, with ?key=value&... arguments.",
        rich_help_panel=WHAT,
    ),
]
TrainedData = Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP + ".", rich_help_panel=WHAT)]
Data = Annotated[str | None, typer.Option(metavar="DATA", help=DATA_HELP + ".", rich_help_panel=WHAT)]
NORMALIZE_HELP = (
    "How the network's inputs are made of the data: none (as the data hold them), data (mean and std of the training "
    "split), weights (as torchvision or timm say of theirs), or 'mean=0.485,0.456,0.406;std=0.229,0.224,0.225'; of "
    "one of several inputs NAME:HOW, such as 'image:mean=0.5;std=0.25', once for each. "
)
Normalize = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOW",
        help=NORMALIZE_HELP + "Default: as the model's file records; none for weights that edgeprune did not train.",
        callback=values.check_normalizations,
        rich_help_panel=WHAT,
    ),
]
AllowChance = Annotated[
    bool,
    typer.Option(
        "--allow-chance",
        help="Go on where the network is no better than guessing on the data.",
        rich_help_panel=HOW,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="The seed of everything random.",
        parser=values.count("at least 0", 0, 2**32 - 1),
        rich_help_panel=HOW,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="CPU threads; default: one for a small network, else all cores.",
        parser=positive_count,
        rich_help_panel=HOW,
    ),
]
UnsafePickle = Annotated[
    bool,
    typer.Option(
        "--unsafe-pickle",
        help="Read a file that has to be unpickled. This runs code that the file carries: only for files you made.",
        rich_help_panel=HOW,
    ),
]
TrustRecorded = Annotated[
    bool,
    typer.Option(
        "--trust-recorded",
        help="Run the code, and open the files, that the model's file names: a data set or an architecture that is a "
        "factory. Only for files you made.",
        rich_help_panel=HOW,
    ),
]
Depth = Annotated[
    bool,
    typer.Option(
        "--depth",
        help="Let whole residual blocks go, where that loses less on the validation set than narrower layers do.",
        rich_help_panel=HOW,
    ),
]
LowRank = Annotated[
    bool,
    typer.Option(
        "--lowrank",
        help="Let linear layers and 1x1 convolutions become two of low rank, where that loses less so, too.",
        rich_help_panel=HOW,
    ),
]
Distill = Annotated[
    str,
    typer.Option(
        metavar="|".join(DISTILLATIONS),
        help="What finetuning learns from the dense network beside the labels: its outputs; what its kept channels "
        "hold at the ends of stages as well; nothing.",
        parser=values.one_of(DISTILLATIONS),
        rich_help_panel=HOW,
    ),
]
NoDistill = Annotated[bool, typer.Option("--no-distill", help="As --distill off.", rich_help_panel=HOW)]
