"""The strength of a penalty: that which gives the wanted share of zeros, or the best accuracy on the val split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .experiments import Contender, Experiment, Run
from .results import DONE, Record, in_short

TRIALS = 8
GRID = (1e-5, 3e-5, 1e-4, 3e-4)  # of a penalty whose zeros are made afterwards
_STEP = 4.0  # how far to look where all trials are on one side
_MARGIN = 0.1  # of what is to be left: how much less there may be
_INSIDE = 0.1  # how near to an end of the interval the next trial may be, of its logarithmic length
_ENOUGH = 1e-6
_DIGITS = 3

Point = tuple[float, float]
Try = Callable[[Run], Record]


def tune(experiment: Experiment, tries: Try, quick: bool = False) -> dict[str, dict[int, float]]:
    """For each contender with a strength by points, the strengths that were found; seed 0 and no test data.

    Args:
        tries: runs a run and writes it down.
    """
    found: dict[str, dict[int, float]] = {}
    for contender in experiment.contenders:
        points = [at for at in contender.at if at is not None]
        if "lam" in contender.train.get("options", {}):
            found[f"{contender.name}.train.options.lam"] = _by_share(experiment, contender, points, tries, quick)
        elif "l1" in contender.how:
            found[f"{contender.name}.how.l1"] = _by_accuracy(experiment, contender, points, tries, quick)
    return found


def in_toml(strengths: Mapping[int, float]) -> str:
    """As a config has it, e.g. `{ 90 = 1.2e-06, 95 = 3.1e-06 }`."""
    return "{ " + ", ".join(f"{at} = {value:g}" for at, value in strengths.items()) + " }"


# -- a share of zeros or MACs -----------------------------------------------------------------------------------------


def next_strength(tried: Sequence[Point], wanted: float, start: float) -> float | None:
    """The strength to try next, None where one that was tried gives the share that is wanted.

    Between a trial with too little and one with too much, it goes by the line through the logits of their shares over
    the logarithms of their strengths.

    Args:
        tried: strengths with the share, of zeros or of removed MACs, that each gave.
        wanted: a little more is right too.
        start: the first guess.
    """
    if not tried:
        return start
    most = wanted + _MARGIN * (1 - wanted)
    if any(wanted <= share <= most for _, share in tried):
        return None
    below = [point for point in tried if point[1] < wanted]
    above = [point for point in tried if point[1] > most]
    if not above:
        return _short(_STEP * max(below)[0])
    if not below:
        return _short(min(above)[0] / _STEP)
    (low, few), (high, many) = max(below), min(above)
    if low > high:  # noise: more strength gave less
        return _short(math.sqrt(low * high))
    aim = _logit((wanted + most) / 2)
    inside = (aim - _logit(few)) / (_logit(many) - _logit(few))
    inside = min(max(inside, _INSIDE), 1 - _INSIDE)
    return _short(low * (high / low) ** inside)


def _logit(share: float) -> float:
    share = min(max(share, _ENOUGH), 1 - _ENOUGH)
    return math.log(share / (1 - share))


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _by_share(
    experiment: Experiment, contender: Contender, points: Sequence[int], tries: Try, quick: bool
) -> dict[int, float]:
    """What is tried for one share tells about the others too."""
    tried: list[Point] = []
    found = {}
    for at in points:
        run = experiment.run(contender, at, 0, quick)
        start = float(run.train["options"]["lam"])
        for _ in range(TRIALS):
            strength = next_strength(tried, at / 100, start)
            if strength is None or strength in dict(tried):
                break
            options = {**run.train["options"], "lam": strength}
            trial = replace(run, train={**run.train, "options": options})
            tried.append((strength, _reached(_tried(tries, trial, strength), contender.goal)))
        found[at] = _closest(tried, at / 100)
    return found


def _reached(record: Record, goal: str) -> float:
    """The share of what is to go; a trial that diverged is taken for all, so that less is tried next."""
    if record["status"] != DONE:
        return 1.0
    figures = record["figures"]
    return 1 - float(figures["macs_share"]) if goal == "macs" else float(figures["zero_share"])


def _closest(tried: Sequence[Point], wanted: float) -> float:
    """The strength with the smallest share among those that have enough, else that with the largest."""
    enough = [point for point in tried if point[1] >= wanted]
    return min(enough, key=_share)[0] if enough else max(tried, key=_share)[0]


def _share(point: Point) -> float:
    return point[1]


# -- accuracy ---------------------------------------------------------------------------------------------------------


def _by_accuracy(
    experiment: Experiment, contender: Contender, points: Sequence[int], tries: Try, quick: bool
) -> dict[int, float]:
    found = {}
    for at in points:
        run = experiment.run(contender, at, 0, quick)
        scores: dict[float, float] = {}
        for strength in GRID:
            record = _tried(tries, replace(run, how={**run.how, "l1": strength}), strength)
            scores[strength] = record["figures"]["val_accuracy"] if record["status"] == DONE else 0.0
        found[at] = max(scores, key=scores.__getitem__)
    return found


def _tried(tries: Try, run: Run, strength: Any) -> Record:
    record = tries(run)
    print(f"tried {strength:g}: {in_short(run, record)}", flush=True)
    return record
