"""The options that commands share, and the checks of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from edgeprune.catalog import OPTIONS, names, owners
from edgeprune.errors import InputError
from edgeprune.units import check_normalization, parse_latency, parse_size

if TYPE_CHECKING:
    from edgeprune.records import InputInfo

N = TypeVar("N", int, float)
WHAT = "What to do"
HOW = "How to do it"
SPARSE = "Sparse training; see edgeprune methods"
OUTPUT = "Output"
_DROP = "a number of at least 0, with % or the metric's unit"
_WIDE = 24  # characters
_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def _fail(expected: str, got: object, hint: str | None = None) -> typer.BadParameter:
    return typer.BadParameter(f"expected {expected}, got {got}", param_hint=hint)


def number(
    expected: str, low: float, high: float = math.inf, *, low_allowed: bool = True
) -> Callable[[str | float], float]:
    """A parser of numbers in [low, high], or (low, high]; NaN and infinity never pass."""
    return _parser(float, expected, low, high, low_allowed)


def count(expected: str, low: int, high: float = math.inf) -> Callable[[str | int], int]:
    """A parser of whole numbers in [low, high]."""
    return _parser(int, expected, low, high, True)


def _parser(kind: Callable[[Any], N], expected: str, low: float, high: float, low_allowed: bool) -> Callable[[Any], N]:
    def parse(text: Any) -> N:
        try:
            value = kind(text)
        except ValueError:
            raise _fail(expected, text) from None
        above = value >= low if low_allowed else value > low
        if not (math.isfinite(value) and above and value <= high):
            raise _fail(expected, value)
        return value

    return parse


def max_drop(text: str | float) -> float | str:
    """A drop: a bare number is in the unit of the metric, which is not known yet; a text says the unit, or %."""
    try:
        value = float(text)
    except ValueError:
        from edgeprune.tasks.budget import parse_max_drop  # its records take longer than the help

        try:
            return str(parse_max_drop(str(text)))
        except InputError:
            raise _fail(_DROP, text) from None
    if not (math.isfinite(value) and value >= 0):
        raise _fail(_DROP, value)
    return value


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A parser of names."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def named(kind: str, text: str, panel: str = HOW) -> Any:
    """The option that takes the name of something in the catalog."""
    return _choice(names(kind), text, panel)


def _choice(choices: Sequence[str], text: str, panel: str) -> Any:
    """An option that takes one of these names; many of them stand in its help."""
    metavar = "|".join(choices)
    if len(metavar) > _WIDE:
        metavar, text = "NAME", f"{text} One of {', '.join(choices)}."
    return typer.Option(metavar=metavar, help=text, parser=one_of(choices), rich_help_panel=panel)


def own(name: str) -> Any:
    """An option that belongs to some optimizers, as the catalog has it."""
    option = OPTIONS[name]
    text = f"{option.help} For {', '.join(owners(name))}."
    if option.choices:
        return _choice(option.choices, text, SPARSE)

    if option.form:
        return typer.Option(metavar=option.form.split(",")[0], help=text, rich_help_panel=SPARSE)

    def parse(value: str | float) -> float:
        try:
            number = int(value) if option.whole else float(value)
        except ValueError:
            raise _fail(option.expected, value) from None
        if not option.allows(number):
            raise _fail(option.expected, number)
        return number

    return typer.Option(metavar="N" if option.whole else "X", help=text, parser=parse, rich_help_panel=SPARSE)


def split_input_features(values: Sequence[str]) -> tuple[str, tuple[str, ...] | None]:
    """What is asked of features, `auto` where nothing is, and of the ids of inputs: `ids=used`."""
    plain = [value for value in values if "=" not in value]
    if len(plain) > 1:
        raise _fail("one of auto, off, a count or a ratio beside ids of inputs", " and ".join(plain))
    return (plain or ["auto"])[0], tuple(value for value in values if "=" in value) or None


def check_input_features(values: Sequence[str] | None) -> Sequence[str] | None:
    """Accept `auto`, `off`, a count such as `20`, a ratio such as `0.5`, and ids of inputs such as `ids=used`."""
    for value in values or ():
        if "=" not in value:
            _check_features(value)
    return values


def _check_features(value: str) -> str:
    if value in {"auto", "off"}:
        return value
    expected = "auto, off, a count of at least 1 or a ratio in (0, 1]"
    try:
        amount = float(value)
    except ValueError:
        raise _fail(expected, value) from None
    is_count = value.isdecimal() and amount >= 1
    if not (is_count or (not value.isdecimal() and 0 < amount <= 1)):
        raise _fail(expected, value)
    return value


def check_latency(value: str | None) -> str | None:
    """Accept `5ms`, `800us`, `0.02s` or `0.5x`."""
    return _checked_by(parse_latency, value)


def check_size(value: str | None) -> str | None:
    """Accept `500kB`, `1.5MB`, `300KiB`."""
    return _checked_by(parse_size, value)


def check_ram(value: str | None) -> str | None:
    """Accept what `check_size` does."""
    return _checked_by(lambda text: parse_size(text, "--max-ram"), value)


def check_normalizations(values: Sequence[str] | None) -> Sequence[str] | None:
    """Accept `none`, `data`, `weights` or `mean=0.5;std=0.25`, or one of them for each input, as `image:data`."""
    _checked_by(check_normalization, normalization_of(values))
    return values


def normalization_of(values: Sequence[str] | None) -> str | None:
    """What was asked of all inputs, as one text."""
    return " ".join(values) if values else None


def check_batch(value: str) -> str:
    """Accept `dynamic`, or a whole number from 1."""
    if value != "dynamic" and not (value.isdecimal() and 0 < int(value) < 2**31):
        raise _fail("dynamic or a whole number from 1", value)
    return value


def _checked_by(parse: Callable[[str], object], value: str | None) -> str | None:
    if value is not None:
        parse(value)
    return value


def parse_shape(value: str | None) -> tuple[int, ...] | None:
    """The shape in `value`, e.g. (3, 224, 224) from "3,224,224"; None stays None."""
    if value is None:
        return None
    sizes = value.replace("x", ",").split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise _fail("positive sizes without the batch, such as 3,224,224", value, "'--input-shape'")
    return tuple(int(size) for size in sizes)


def parse_dynamic(values: Sequence[str] | None) -> dict[str, dict[int, tuple[int, int | None] | None]] | None:
    """The free dims of each input, the batch among them: "x:2,3" is {"x": {0: None, 2: None, 3: None}}."""
    found: dict[str, dict[int, tuple[int, int | None] | None]] = {}
    for value in values or ():
        parts = re.fullmatch(r"(?:(\d{1,9})<=)?(\w+):(\d{1,2}(?:,\d{1,2})*)(?:<=(\d{1,9}))?", value.replace(" ", ""))
        if parts is None:
            raise _fail("an input and its free dims, such as x:2,3 or tokens:1<=64", value, "'--dynamic'")
        least, name, dims, largest = parts.groups()
        bounds = (int(least or 1), None if largest is None else int(largest)) if least or largest else None
        found.setdefault(name, {0: None}).update({int(dim): bounds for dim in dims.split(",")})
    return found or None


def parse_inputs(values: Sequence[str] | None) -> tuple[InputInfo, ...] | None:
    """The inputs of a network: "image=1,8,8" and "ids=-1:int64"; -1 or a name is a size that stays free."""
    found: dict[str, InputInfo] = {}
    for value in values or ():
        info = _input_of(value)
        if info.name in found:
            raise _fail("each input once", f"{info.name} twice", "'--input'")
        found[info.name] = info
    return tuple(found.values()) or None


def _input_of(text: str) -> InputInfo:
    from edgeprune.records import InputInfo

    parts = re.fullmatch(r"([A-Za-z_]\w*)=([\w,-]*)(?::(\w+))?", text.replace(" ", ""))
    name, shape, dtype = parts.groups() if parts else ("", "0", None)
    sizes = tuple(_size_of(size) for size in shape.split(",") if size)
    if 0 in sizes or (dtype or "float32") not in _TYPES:
        expected = f"NAME=SHAPE[:TYPE], such as image=3,224,224 or ids=-1:int64, TYPE one of {', '.join(_TYPES)}"
        raise _fail(expected, text, "'--input'")
    return InputInfo(name, sizes, dtype or "float32")


def _size_of(text: str) -> int | None:
    """A size; None for one that is free, -1 or by a name, and 0 for what is none."""
    if text == "-1" or re.fullmatch(r"[A-Za-z_]\w*", text):
        return None
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0


positive_count = count("a number of at least 1", 1)

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
        "length stays free; once for each input.",
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
        callback=check_normalizations,
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
        parser=count("at least 0", 0, 2**32 - 1),
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
