"""The input features that a run keeps, as the report shows them: those of one input, or of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from edgeprune.records import InputFeatures, KeptInput
from edgeprune.report import formats as fmt
from edgeprune.report import plots
from edgeprune.results import RunRecord

_MAX_LISTED = 400


@dataclass(frozen=True, slots=True)
class ShownInput:
    """One input in the report: which features stay, drawn and by name; `of` is " of NAME" of one among several."""

    of: str
    n_kept: int
    size: int
    svg: Markup
    caption: str
    names: tuple[str, ...]
    groups: tuple[str, ...]


def shown_inputs(run: RunRecord) -> tuple[ShownInput, ...]:
    """Every input of which features are counted."""
    kept, starts = fmt.kept_of(run), [0]
    starts += accumulate(one.features.size for one in kept)
    return tuple(_shown(run, one, start) for one, start in zip(kept, starts, strict=False))


def _shown(run: RunRecord, one: KeptInput, start: int) -> ShownInput:
    """One input, whose features are counted from `start` on where those of all inputs are."""
    features = one.features
    given = dict(run.model.get("input_feature_names") or ()).get(one.input) if one.input else None
    names = tuple(map(str, given or (() if one.input else run.model.get("feature_names") or ())))
    svg, caption = plots.features_svg(features, one.weights, one.shape, names, f"features{fmt.of_input(one)}")
    return ShownInput(
        fmt.of_input(one),
        len(features.keep),
        features.size,
        Markup(svg),
        caption,
        _names(one, names),
        _groups(run, features, start),
    )


def _names(one: KeptInput, names: Sequence[str]) -> tuple[str, ...]:
    """The kept features by name, or by index where they have none; cut short in a page that would grow too long."""
    keep = one.features.keep
    named = len(names) == one.features.size
    kept = tuple(names[index] if named else str(index) for index in keep[:_MAX_LISTED])
    return (*kept, "…") if len(keep) > _MAX_LISTED else kept


def _groups(run: RunRecord, features: InputFeatures, start: int) -> tuple[str, ...]:
    """Of each named group how many features are left, e.g. "accelerometer: 3 of 3"; it stays or goes as one."""
    kept, whole = {start + index for index in features.keep}, range(start, start + features.size)
    groups = [(name, [index for index in members if index in whole]) for name, members in _named_groups(run)]
    return tuple(f"{name}: {len(kept.intersection(own))} of {len(own)}" for name, own in groups if own)


def _named_groups(run: RunRecord) -> Sequence[tuple[str, Sequence[int]]]:
    groups: Sequence[tuple[str, Sequence[int]]] = run.model.get("feature_groups") or ()
    return groups
