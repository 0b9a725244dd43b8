"""Values as users write them on the command line, read and checked before any work begins."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from edgeprune.errors import InputError
from edgeprune.units import check_normalization, parse_gate, parse_latency, parse_size, parse_widths

if TYPE_CHECKING:
    from edgeprune.records import InputInfo

N = TypeVar("N", int, float)
_DROP = "a number of at least 0, with % or the metric's unit"
_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def fail(expected: str, got: object, hint: str | None = None) -> typer.BadParameter:
    """What is raised for a value that is not what was expected."""
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
            raise fail(expected, text) from None
        above = value >= low if low_allowed else value > low
        if not (math.isfinite(value) and above and value <= high):
            raise fail(expected, value)
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
            raise fail(_DROP, text) from None
    if not (math.isfinite(value) and value >= 0):
        raise fail(_DROP, value)
    return value


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A parser of names."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def split_input_features(values: Sequence[str]) -> tuple[str, tuple[str, ...] | None]:
    """What is asked of features, `auto` where nothing is, and of the ids of inputs: `ids=used`."""
    plain = [value for value in values if "=" not in value]
    if len(plain) > 1:
        raise fail("one of auto, off, a count or a ratio beside ids of inputs", " and ".join(plain))
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
        raise fail(expected, value) from None
    is_count = value.isdecimal() and amount >= 1
    if not (is_count or (not value.isdecimal() and 0 < amount <= 1)):
        raise fail(expected, value)
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


def check_widths(value: str | None) -> str | None:
    """Accept several shares that fall, or rise: `0.25,0.5,1`."""
    return _checked_by(parse_widths, value)


def check_gate(value: str | None) -> str | None:
    """Accept `0.6` or `0.6x`."""
    return _checked_by(parse_gate, value)


def widths_of(value: str | None) -> tuple[float, ...] | None:
    """The shares, the largest first; None stays None."""
    return None if value is None else parse_widths(value)


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
        raise fail("dynamic or a whole number from 1", value)
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
        raise fail("positive sizes without the batch, such as 3,224,224", value, "'--input-shape'")
    return tuple(int(size) for size in sizes)


def parse_dynamic(values: Sequence[str] | None) -> dict[str, dict[int, tuple[int, int | None] | None]] | None:
    """The free dims of each input, the batch among them: "x:2,3" is {"x": {0: None, 2: None, 3: None}}."""
    found: dict[str, dict[int, tuple[int, int | None] | None]] = {}
    for value in values or ():
        parts = re.fullmatch(r"(?:(\d{1,9})<=)?(\w+):(\d{1,2}(?:,\d{1,2})*)(?:<=(\d{1,9}))?", value.replace(" ", ""))
        if parts is None:
            raise fail("an input and its free dims, such as x:2,3 or tokens:1<=64", value, "'--dynamic'")
        least, name, dims, largest = parts.groups()
        bounds = (int(least or 1), None if largest is None else int(largest)) if least or largest else None
        found.setdefault(name, {0: None}).update({int(dim): bounds for dim in dims.split(",")})
    return found or None


def parse_inputs(values: Sequence[str] | None) -> tuple[InputInfo, ...] | None:
    """The inputs of a network: "image=1,8,8" and "ids=-1:int64"; -1 or a name is a size that stays free.

    Of "sr=16000:constant" the numbers become part of the network.
    """
    found: dict[str, InputInfo] = {}
    for value in values or ():
        info = _input_of(value)
        if info.name in found:
            raise fail("each input once", f"{info.name} twice", "'--input'")
        found[info.name] = info
    return tuple(found.values()) or None


def _input_of(text: str) -> InputInfo:
    from edgeprune.records import InputInfo

    settled = re.fullmatch(r"([A-Za-z_]\w*)=([^:]+):constant", text.replace(" ", ""))
    if settled:
        return InputInfo(settled[1], (), numbers=_numbers_of(settled[2], text))
    parts = re.fullmatch(r"([A-Za-z_]\w*)=([\w,-]*)(?::(\w+))?", text.replace(" ", ""))
    name, shape, dtype = parts.groups() if parts else ("", "0", None)
    sizes = tuple(_size_of(size) for size in shape.split(",") if size)
    if 0 in sizes or (dtype or "float32") not in _TYPES:
        expected = f"NAME=SHAPE[:TYPE], such as image=3,224,224 or ids=-1:int64, TYPE one of {', '.join(_TYPES)}"
        raise fail(expected, text, "'--input'")
    return InputInfo(name, sizes, dtype or "float32")


def _numbers_of(text: str, given: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise fail("NAME=NUMBERS:constant, such as sr=16000:constant", given, "'--input'")
    return numbers


def _size_of(text: str) -> int | None:
    """A size; None for one that is free, -1 or by a name, and 0 for what is none."""
    if text == "-1" or re.fullmatch(r"[A-Za-z_]\w*", text):
        return None
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0
