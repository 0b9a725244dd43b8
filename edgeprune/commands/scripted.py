"""`--finetune` and `--evaluate`: functions in a script of the user's take the place of the data's training and task."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from edgeprune.errors import InputError
from edgeprune.processes import n_processes
from edgeprune.progress import Progress
from edgeprune.records import IDENTITY, Metric, ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.search.ownscript import (
    EVALUATE_TOLD,
    FINETUNE_TOLD,
    NamedFigure,
    OwnFigure,
    OwnFinetuning,
    OwnFunction,
)
from edgeprune.search.owntrainer import OwnTrainer
from edgeprune.search.trainer import Trainer
from edgeprune.tasks.budget import parse_max_drop
from edgeprune.userfile import function_in, load_file

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_EPOCHS = 10  # of a function that asks how many, where nothing is said

Assume = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Scripted:
    """The functions that a request names, as far as it names any."""

    finetune: OwnFunction | None
    evaluate: OwnFunction | None

    @classmethod
    def of(cls, request: CompressRequest) -> Scripted:
        """What the request names; a file that holds both is run once.

        Raises:
            InputError: no such function, one that asks for what it cannot be told, or options that do not go together;
                or several processes would each call it.
        """
        for option, spec in (("--finetune", request.finetune), ("--evaluate", request.evaluate)):
            if spec is not None and n_processes() > 1:
                raise InputError(
                    f"{option} {spec}: expected one process for a function of yours, got {n_processes()}; without "
                    "torchrun it may start as many as it likes"
                )
        if request.metric is not None and request.evaluate is None:
            raise InputError(f"--metric {request.metric}: expected --evaluate, whose figure it names, got none")
        modules: dict[str, ModuleType] = {}
        finetune = _function("--finetune", request.finetune, FINETUNE_TOLD, modules)
        evaluate = _function("--evaluate", request.evaluate, EVALUATE_TOLD, modules)
        if finetune is not None:
            _check_epochs(request, finetune)
        return cls(finetune, evaluate)

    def told_inputs(self, info: ModelInfo) -> tuple[str, ...]:
        """What the functions have to know of a network that edgeprune normalises inputs for: that they do it."""
        normalization = info.normalization
        if (self.finetune is None and self.evaluate is None) or normalization in (None, IDENTITY):
            return ()
        return ("the functions normalise what they hand the network, (x - mean) / std, as its file records",)

    def figure(self, request: CompressRequest, dense: nn.Module, told: Progress, assume: Assume) -> OwnFigure | None:
        """The user's figure, by what it is of the dense network; None where the task judges.

        Raises:
            InputError: as `OwnFigure.of`, or the drop that is asked for leaves nothing of the figure.
        """
        if self.evaluate is None:
            return None
        told.stage("measure the dense network")
        asked = NamedFigure.parse(request.metric)
        figure, value = OwnFigure.of(self.evaluate, request.seed, asked, dense)
        _check_drop(request, figure.metric, value)
        if asked.name is None or asked.higher_is_better is None:
            assume(f"--metric {figure.metric.name}:{'higher' if figure.metric.higher_is_better else 'lower'}")
        return figure

    def trainer(
        self, request: CompressRequest, figure: OwnFigure | None, data: Trainer | None, told: Progress, assume: Assume
    ) -> Trainer | None:
        """What trains and judges: the functions, and the trainer of the data where there is none of them."""
        if self.finetune is None and figure is None:
            return data
        if self.finetune is None and data is None:
            assume("--finetune-epochs 0 (there are no data to finetune on)")
        finetuning = None
        if self.finetune is not None:
            finetuning = OwnFinetuning(self.finetune, _epochs(request, self.finetune, assume), request.seed)
        return OwnTrainer(finetuning, figure, data, told)


def _function(
    option: str, spec: str | None, told: tuple[str, ...], modules: dict[str, ModuleType]
) -> OwnFunction | None:
    if spec is None:
        return None
    match = _FUNCTION.fullmatch(spec)
    if match is None:
        raise InputError(f"{option}: expected path/file.py:function, got {spec!r}")
    path = Path(os.path.expanduser(match["file"]))
    key = os.path.realpath(path)
    if key not in modules:
        modules[key] = load_file(path)
    return OwnFunction(function_in(modules[key], path, match["function"]), f"{path}:{match['function']}", told)


def _check_epochs(request: CompressRequest, function: OwnFunction) -> None:
    """Raise InputError where epochs are asked for and the function knows nothing of them."""
    asked = request.finetune_epochs
    if asked == 0:
        raise InputError(f"--finetune-epochs: expected at least 1 beside --finetune {request.finetune}, got 0")
    if asked is not None and "epochs" not in function.defaults:
        raise function.refusal(f"an argument epochs for --finetune-epochs {asked}", "none")


def _epochs(request: CompressRequest, function: OwnFunction, assume: Assume) -> int | None:
    """How many epochs a finetuning has, where the function asks: as asked for, else by its own default."""
    if "epochs" not in function.defaults:
        return None
    own = function.defaults["epochs"]
    known = isinstance(own, int) and not isinstance(own, bool) and own > 0
    epochs = request.finetune_epochs or (own if known else _EPOCHS)
    if request.finetune_epochs is None:
        assume(f"--finetune-epochs {epochs}")
    return int(epochs)


def _check_drop(request: CompressRequest, metric: Metric, dense: float) -> None:
    """Raise InputError where a drop would leave nothing of the figure: a share in [0, 1] is not counted in points."""
    if request.max_drop is None or not metric.higher_is_better or dense <= 0:
        return
    asked = parse_max_drop(str(request.max_drop))
    if asked.unit is None and asked.amount >= dense:
        raise InputError(
            f"--max-drop: expected less than {metric.name} of the dense network, {dense:.4g}, or a share of it such as "
            f"1%, got {asked}"
        )
