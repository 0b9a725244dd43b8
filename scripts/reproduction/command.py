"""Run the experiments of docs/REPRODUCTION.md: their contenders, each with several seeds, for as many epochs each.

Usage: scripts/reproduce [EXPERIMENT...] [--only PATTERN] [--seeds N] [--epochs N] [--threads N] [--resume] [--quick]
       scripts/reproduce --list                the experiments, and what each consists of
       scripts/reproduce --tune EXPERIMENT...  look for the strengths of its penalties
       scripts/reproduce --tables              docs/REPRODUCTION.md from the files in docs/results

An experiment is a file of scripts/reproduction/configs. Each run is written to FILE (runs/reproduce.jsonl) as soon as
it is done, one line of JSON each; an experiment ends with docs/results/NAME.json and NAME.png. Interrupted, a campaign
goes on with --resume where it was, in the middle of a run too. Several experiments may run at the same time.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import EdgepruneError, InputError

from .experiments import Experiment, names, read

if TYPE_CHECKING:
    from .campaign import Campaign

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ROOT / "runs" / "quick"
QUICK_EPOCHS = 2  # some contenders train in two parts


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="all that need no GPU by default")
    parser.add_argument("--only", default="", metavar="PATTERN", help="contenders whose name contains it")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds each contender has")
    parser.add_argument("--epochs", type=int, metavar="N", help="how long each trains")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--resume", action="store_true", help="leave out what FILE has, go on with what was begun")
    parser.add_argument("--quick", action="store_true", help="some hundred samples, two epochs: only whether it runs")
    parser.add_argument("--list", action="store_true", help="print the experiments and stop")
    parser.add_argument("--tune", action="store_true", help="look for strengths, print them and stop")
    parser.add_argument("--tables", action="store_true", help="write the page from the results and stop")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where runs are written down")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="where the results and the page go (docs)")
    chosen = parser.parse_args()
    base = QUICK if chosen.quick else ROOT / "runs"
    chosen.out = chosen.out or base / "reproduce.jsonl"
    chosen.docs = chosen.docs or (QUICK if chosen.quick else ROOT / "docs")
    return chosen


def main() -> int:
    """Do what is asked for; 1 where a run failed, 2 where something is wrong with what is asked for."""
    chosen = options()
    try:
        return work(chosen)
    except EdgepruneError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"reproduce: stopped; {chosen.out} has what is done, --resume goes on", file=sys.stderr)
        return 130


def work(chosen: argparse.Namespace) -> int:
    """One of the four things that can be asked for."""
    if chosen.tables:
        from .page import write_page

        print(write_page([read(name) for name in names()], chosen.docs))
        return 0
    experiments = [changed(read(name), chosen) for name in chosen.experiments or names()]
    if not chosen.experiments and not chosen.list:
        experiments = [experiment for experiment in experiments if not experiment.needs_gpu]
    if chosen.list:
        for experiment in experiments:
            print(told(experiment))
        return 0
    return measure(experiments, chosen)


def changed(experiment: Experiment, chosen: argparse.Namespace) -> Experiment:
    """The experiment with the seeds and epochs that are asked for."""
    for name in ("seeds", "epochs", "threads"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected at least 1, got {value}")
    epochs = chosen.epochs or (QUICK_EPOCHS if chosen.quick else experiment.epochs)
    contenders = tuple(replace(own, seeds=chosen.seeds or own.seeds) for own in experiment.contenders)
    return replace(experiment, contenders=contenders, train={**experiment.train, "epochs": epochs})


def part(experiment: Experiment, pattern: str) -> Experiment:
    """The experiment with these contenders alone."""
    try:
        contenders = tuple(own for own in experiment.contenders if re.search(pattern, own.name))
    except re.error as error:
        raise InputError(f"--only: expected a regular expression, got {pattern!r}: {error}") from error
    if not contenders:
        known = ", ".join(own.name for own in experiment.contenders)
        raise InputError(f"{experiment.name}: --only: expected a part of {known}, got {pattern!r}")
    return replace(experiment, contenders=contenders)


def told(experiment: Experiment) -> str:
    """A few lines about it."""
    gpu = ", needs a GPU" if experiment.needs_gpu else ""
    head = f"{experiment.name}: {experiment.title} ({len(experiment.runs())} runs of {experiment.epochs} epochs{gpu})"
    lines = [
        f"  {contender.name:20} {contender.label}; {places(contender.at)}{contender.seeds} seeds"
        for contender in experiment.contenders
    ]
    return "\n".join([head, *lines])


def places(at: Sequence[int | None]) -> str:
    """The points of a contender, in words."""
    return "" if None in at else f"at {', '.join(map(str, at))}; "


def measure(experiments: Sequence[Experiment], chosen: argparse.Namespace) -> int:
    """Run or tune; what is done of an experiment is written also where it is interrupted."""
    parts = [part(experiment, chosen.only) for experiment in experiments]
    import torch

    from edgeprune.cli.bars import follow

    from .campaign import Campaign, check_gpu
    from .place import Machine

    torch.set_num_threads(chosen.threads)
    machine = Machine(chosen.threads, chosen.device)
    for experiment in experiments if not chosen.quick else ():
        check_gpu(experiment, machine)
    failed = 0
    with follow() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of what it calls itself
        campaign = Campaign(chosen.out, machine, progress, chosen.resume)
        for experiment, asked in zip(experiments, parts, strict=True):
            if chosen.tune:
                look_for_strengths(campaign, asked, chosen.quick)
                continue
            try:
                failed += campaign.run_all(asked.runs(chosen.quick))
            finally:
                campaign.write(experiment, chosen.quick, chosen.docs / "results")
    return 1 if failed else 0


def look_for_strengths(campaign: Campaign, experiment: Experiment, quick: bool) -> None:
    """Print them as the config has them."""
    from .tuning import in_toml, tune

    for name, strengths in tune(experiment, campaign.run_once, quick).items():
        print(f"{experiment.name}: contenders.{name} = {in_toml(strengths)}", flush=True)
