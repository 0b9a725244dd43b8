"""From a spec such as `digits`, `cifar10:~/data` or `csv:flowers.csv?target=kind` to a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from edgeprune.data import dialect, framing, hf, shards, sounds
from edgeprune.data.arrays import open_npz
from edgeprune.data.digits import open_digits
from edgeprune.data.factory import open_factory
from edgeprune.data.framing import Framing
from edgeprune.data.hf import open_hf
from edgeprune.data.images import open_image_folder
from edgeprune.data.masked import has_masks, open_masked_folder
from edgeprune.data.parquet import open_parquet
from edgeprune.data.table import open_csv
from edgeprune.data.vision import open_caltech, open_cifar, open_idx_set
from edgeprune.errors import InputError
from edgeprune.records import DataSource
from edgeprune.tasks.wanted import WantedTargets

# Of preparations; a shape is compared elsewhere.
_COMPARED = ("fit", "crop_pct", "interpolation", "channels", "rate", "n_samples", "n_mels")
_FACTORY = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
KNOWN = (
    "digits, mnist[:ROOT], fashion-mnist[:ROOT], cifar10[:ROOT], cifar100[:ROOT], caltech101[:ROOT], "
    "imagefolder:ROOT, audiofolder:ROOT, webdataset:SHARDS, npz:FILE, csv:FILE?target=COLUMN, "
    "parquet:FILE?target=COLUMN, hf:DIR or path/file.py:factory"
)


@dataclass(frozen=True, slots=True)
class _Spec:
    """`kind:place?key=value&...`, taken apart."""

    text: str
    kind: str
    place: str | None
    options: Mapping[str, str]
    wanted: WantedTargets | None = None

    def required_place(self) -> str:
        if not self.place:
            raise InputError(f"data {self.text!r}: expected {self.kind}:PATH, got no path")
        return self.place

    def framing(self) -> Framing:
        return Framing.asked(self.options, f"data {self.text!r}")

    def log_mel(self) -> sounds.LogMel:
        return sounds.LogMel.asked(self.options, f"data {self.text!r}")


def _image_folder(spec: _Spec) -> DataSource:
    """Images in folders of their classes, or beside their masks."""
    base = Path(spec.required_place())
    if has_masks(base):
        return open_masked_folder(f"imagefolder:{base}", base, spec.framing(), spec.wanted)
    return open_image_folder(spec.required_place(), spec.framing())


# Kind -> (how it is opened, the options it takes).
_OPENERS: dict[str, tuple[Callable[[_Spec], DataSource], tuple[str, ...]]] = {
    "mnist": (lambda spec: open_idx_set("mnist", spec.place), ()),
    "fashion-mnist": (lambda spec: open_idx_set("fashion-mnist", spec.place), ()),
    "cifar10": (lambda spec: open_cifar("cifar10", spec.place), ()),
    "cifar100": (lambda spec: open_cifar("cifar100", spec.place), ()),
    "caltech101": (lambda spec: open_caltech(spec.place, spec.framing()), framing.OPTIONS),
    "imagefolder": (_image_folder, framing.OPTIONS),
    "audiofolder": (
        lambda spec: sounds.open_sound_folder(spec.required_place(), spec.log_mel()),
        sounds.OPTIONS,
    ),
    "webdataset": (
        lambda spec: shards.open_shards(spec.required_place(), spec.options, spec.framing(), spec.wanted),
        (*shards.OPTIONS, *framing.OPTIONS),
    ),
    "npz": (
        lambda spec: open_npz(spec.required_place(), spec.wanted, spec.options.get("features")),
        ("features",),
    ),
    "parquet": (
        lambda spec: open_parquet(spec.required_place(), spec.options.get("target"), spec.wanted),
        ("target",),
    ),
    "hf": (
        lambda spec: open_hf(spec.required_place(), spec.options, spec.framing(), spec.wanted),
        (*hf.OPTIONS, *framing.OPTIONS),
    ),
    "csv": (
        lambda spec: open_csv(spec.required_place(), spec.options.get("target"), spec.options, spec.wanted),
        ("target", *dialect.OPTIONS),
    ),
}


def is_built_in(spec: str) -> bool:
    """Whether `open_data` reads this itself, rather than run a file of the user's."""
    head = spec.partition("?")[0]
    return not _FACTORY.fullmatch(head) and head.partition(":")[0] in ("digits", *_OPENERS)


def place_of(spec: str) -> str | None:
    """The file or folder that a spec of built-in data names; None where it names none."""
    place = spec.partition("?")[0].partition(":")[2]
    return os.path.expanduser(place) or None


def preparation_in(spec: str) -> Mapping[str, Any]:
    """How a spec says that raw inputs are made of files, as `DataSource.preparation`; empty where it says nothing."""
    head, _, query = spec.partition("?")
    kind = head.partition(":")[0]
    known = _OPENERS[kind][1] if is_built_in(spec) and kind in _OPENERS else ()
    options = dict(parse_qsl(query, keep_blank_values=True))
    try:
        if kind == "audiofolder":
            return sounds.LogMel.asked(options, spec).stated
        return Framing.asked(options, spec).stated if "fit" in known else {}
    except InputError:  # it is told where the spec is opened, if it ever is
        return {}


def told_apart(data: DataSource, recorded: str | None) -> DataSource:
    """The data with a note where their files are prepared otherwise than those that a model was trained on."""
    before, now = preparation_in(recorded or ""), data.preparation
    if not before or before.get("kind") != now.get("kind"):
        return data
    apart = [f"{name} {now[name]} (there {before[name]})" for name in _COMPARED if before.get(name) != now.get(name)]
    if not apart:
        return data
    told = f"files are prepared otherwise than those that the model was trained on: {', '.join(apart)}"
    return replace(data, notes=(*data.notes, told))


def open_data(spec: str, *, seed: int = 0, wanted: WantedTargets | None = None) -> DataSource:
    """Open the data set that `spec` names; nothing is downloaded.

    The splits never depend on `seed`: a model trained with one seed and compressed with another must not be tested on
    what it was trained on. It is handed to a factory that has a parameter of that name. `wanted` says what the targets
    of arrays and tables are read as; else they are what they look like, see `found_targets`.

    Example: `open_data("digits").input_shape == (1, 8, 8)`.

    Raises:
        InputError: an unknown kind or option, files that are missing or damaged, or data that cannot be used.
    """
    head, _, query = spec.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise InputError(f"data {spec!r}: expected key=value&key=value after '?', got {query!r}") from None
    match = _FACTORY.fullmatch(head)
    if match:
        return open_factory(os.path.expanduser(match["file"]), match["function"], options, seed, wanted)
    kind, _, place = head.partition(":")
    if head == "digits" and not query:
        return open_digits()
    if kind not in _OPENERS:
        raise InputError(f"data: expected {KNOWN}; got {spec!r}")
    opener, known = _OPENERS[kind]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"data {spec!r}: expected options {', '.join(known) or '(none)'}, got {unknown[0]!r}")
    return opener(_Spec(spec, kind, os.path.expanduser(place) if place else None, options, wanted))
