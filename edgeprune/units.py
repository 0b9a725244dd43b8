"""Budgets and scalings as people write them: `5ms`, `0.5x`, `500kB`, `mean=0.5;std=0.25`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from edgeprune.errors import InputError

_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[A-Za-z]*)")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class LatencyLimit:
    """The most that one inference may take: milliseconds, or a share of the dense network's time; the other is None."""

    ms: float | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        return f"{self.ratio:g}x" if self.ms is None else f"{self.ms:g}ms"


def parse_latency(text: str, option: str = "--max-latency") -> LatencyLimit:
    """`5ms`, `800us` or `0.02s`; `0.5x` for a share of the dense network's time. `option` is what a refusal calls it.

    Raises:
        InputError: another text, or a number that is not above 0 (or a share above 1).
    """
    number, unit = _parts(text, option, "a time such as 5ms, 800us or 0.5x (of the dense network's time)")
    if unit == "x" and number <= 1:
        return LatencyLimit(ratio=number)
    if unit in _MILLISECONDS:
        return LatencyLimit(ms=number * _MILLISECONDS[unit])
    expected = "a share of at most 1x" if unit == "x" else "one of the units us, ms, s and x"
    raise InputError(f"{option}: expected {expected}, got {text!r}")


def parse_size(text: str, option: str = "--max-size") -> int:
    """Bytes, from `500kB`, `1.5MB`, `300KiB` or `120000B`. `option` is what a refusal calls it.

    Raises:
        InputError: another text, or a number that is not above 0.
    """
    number, unit = _parts(text, option, "a size such as 500kB or 1.5MB")
    if unit not in _BYTES:
        raise InputError(f"{option}: expected one of the units {', '.join(_BYTES)}, got {text!r}")
    size = int(number * _BYTES[unit])
    if size < 1:
        raise InputError(f"{option}: expected at least one byte, got {text!r}")
    return size


def size_as_asked(n_bytes: int) -> str:
    """The shortest text that `parse_size` reads as so many bytes: `13kB` of 13000, `128KiB` of 131072."""
    units = [(unit, size) for unit, size in _BYTES.items() if unit != "KB" and size <= n_bytes]
    texts = [f"{n_bytes / size:.12g}{unit}" for unit, size in units]
    return min((text for text in texts if "e" not in text and parse_size(text) == n_bytes), key=len)


MOST_WIDTHS = 8


def parse_widths(text: str, option: str = "--widths") -> tuple[float, ...]:
    """Shares of the MACs from `0.25,0.5,1`, the largest first. `option` is what a refusal calls it.

    Raises:
        InputError: as `checked_widths`, or something that is no number.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option}: expected shares of the MACs such as 0.25,0.5,1, got {text!r}") from None
    return checked_widths(shares, option)


def checked_widths(shares: tuple[float, ...], option: str = "--widths") -> tuple[float, ...]:
    """The shares, the largest first.

    Raises:
        InputError: one alone or too many, one that is not in (0, 1], or none that rise, or fall, from each to the next.
    """
    names = [f"{share:g}" for share in shares]
    got = ",".join(names)
    if not 2 <= len(shares) <= MOST_WIDTHS:
        raise InputError(f"{option}: expected 2 to {MOST_WIDTHS} widths of one network, got {len(shares)} ({got})")
    wrong = next((name for name, share in zip(names, shares, strict=True) if not 0 < share <= 1), None)
    if wrong is not None:
        raise InputError(f"{option}: expected shares of the MACs in (0, 1], got {wrong}")
    falling = tuple(sorted(shares, reverse=True))
    if shares not in (falling, falling[::-1]) or len(set(names)) < len(names):
        raise InputError(f"{option}: expected widths that fall (or rise) from each to the next, got {got}")
    return falling


@dataclass(frozen=True, slots=True)
class GateLimit:
    """A mean share of what the widest network takes: of its MACs, or of its time where `is_latency`."""

    share: float
    is_latency: bool = False

    def __str__(self) -> str:
        """As it is asked for: `0.6`, `0.6x`."""
        return f"{self.share:g}{'x' if self.is_latency else ''}"


def parse_gate(text: str, option: str = "--gate") -> GateLimit:
    """A share of the widest network's MACs from `0.6`, of its time from `0.6x`.

    Raises:
        InputError: no such share, or one that is not in (0, 1].
    """
    expected = f"{option}: expected a share of the widest network's MACs in (0, 1], such as 0.6, or of its time, 0.6x"
    try:
        share = float(text.removesuffix("x"))
    except ValueError:
        raise InputError(f"{expected}, got {text!r}") from None
    if not 0 < share <= 1:
        raise InputError(f"{expected}, got {text}")
    return GateLimit(share, text.endswith("x"))


NORMALIZE = ("none", "data", "weights")
_SCALING = re.compile(r"mean=(?P<mean>[^;]+);\s*std=(?P<std>[^;]+)")
_NAMED = re.compile(r"([A-Za-z_]\w*):(.*)", re.DOTALL)


def split_normalization(text: str) -> dict[str, str]:
    """What is asked of each input by its name, `{"image": "mean=0.5;std=0.25", "table": "data"}` of
    `image:mean=0.5;std=0.25 table:data`; `{}` where no input is named.

    Raises:
        InputError: an input that is named twice, or one beside a text that names none.
    """
    parts = [_NAMED.fullmatch(part) for part in re.split(r"\s+(?=[A-Za-z_]\w*:)", text.strip())]
    found: dict[str, str] = {}
    for part in parts:
        if part is None and len(parts) > 1:
            raise InputError(f"--normalize: expected NAME:HOW for each input, got {text[:80]!r}")
        if part is not None and part[1] in found:
            raise InputError(f"--normalize: expected input {part[1]} once, got it twice")
        if part is not None:
            found[part[1]] = part[2]
    return found


def check_normalization(text: str) -> None:
    """Raise InputError unless it says how inputs are scaled: those of a network, or each by its name."""
    parts = split_normalization(text)
    for name, how in parts.items():
        parse_normalization(how, f"--normalize {name}")
    if not parts:
        parse_normalization(text)


def parse_normalization(text: str, option: str = "--normalize") -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Means and stds, of all inputs or of each channel or column: `mean=0.485,0.456,0.406;std=0.229,0.224,0.225`.

    Returns None for the words in NORMALIZE, which say where to take them from. `option` is what a refusal calls it.

    Raises:
        InputError: another text, numbers that are not finite, or a std that is not above 0.
    """
    if text in NORMALIZE:
        return None
    found = _SCALING.fullmatch(text.strip())
    try:
        mean, std = (tuple(map(float, found[name].split(","))) for name in ("mean", "std")) if found else ((), ())
    except ValueError:
        mean, std = (), ()
    if not mean or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise InputError(
            f"{option}: expected {', '.join(NORMALIZE)} or numbers such as 'mean=0.5;std=0.25' with std above 0, "
            f"got {text[:80]!r}"
        )
    return mean, std


def size_text(n_bytes: float) -> str:
    """Bytes for people, e.g. `1.5 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def _parts(text: str, option: str, expected: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text.strip())
    number = float(found["number"]) if found else math.nan
    if found is None or not (math.isfinite(number) and number > 0):
        raise InputError(f"{option}: expected {expected}, got {text!r}")
    return number, found["unit"]


def ranges(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers as texts of their runs: `[0, 1, 2, 7]` is `["0-2", "7"]`."""
    runs = (list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return [str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs]
