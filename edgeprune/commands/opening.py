"""What a request names: the model, the data that fit it, the task, and which of the inputs stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgeprune.commands.featurerules import asked_rules
from edgeprune.commands.resolve import (
    Threads,
    assumed_task,
    model_and_data,
    notes_of,
    task_of,
    threads_of,
)
from edgeprune.commands.resuming import own_cores
from edgeprune.commands.sharing import no_longer_shared
from edgeprune.commands.vocabulary import asked_vocabularies, check_data
from edgeprune.formats.normalizing import with_normalization
from edgeprune.graph.capture import Program
from edgeprune.pruning.feature_rules import named_groups
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import DataSource, Model, Vocabulary
from edgeprune.requests import CompressRequest
from edgeprune.settings import FeatureRules
from edgeprune.tasks.classification import Classification, check_logits
from edgeprune.tasks.task import Task

Assume = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """The model, the data that fit it and the task.

    `rules` say which input features stay, `vocabularies` which ids; `is_guess` is set where nobody said how the inputs
    are normalised.
    """

    model: Model
    dense: Program
    data: DataSource | None
    task: Task | None
    rules: FeatureRules | None
    threads: Threads
    is_guess: bool
    vocabularies: Mapping[str, Vocabulary]


def open_all(request: CompressRequest, plan: PruningPlan | None, assume: Assume) -> Opened:
    """Read the model and the data, and say what is assumed of them; raises InputError where they do not fit."""
    model, data = model_and_data(request, request.seed)
    task = task_of(request, model, data)
    if data is not None:
        if isinstance(task, Classification):
            check_logits(model.program, data)
        if request.data is None:
            assume(f"--data {model.info.data} (the data that the model was trained on)")
    for text in assumed_task(request, model, task):
        assume(text)
    for note in (*notes_of(model, data), *no_longer_shared(model)):
        assume(note)
    is_guess = request.normalize is None and model.info.normalization is None
    model = with_normalization(model, data, request.normalize, assume)
    rules = asked_rules(request, model, data)
    model = replace(model, info=replace(model.info, feature_groups=named_groups(rules) or model.info.feature_groups))
    threads = threads_of(request.threads, model.program)
    threads = replace(threads, training=threads.training or own_cores())
    asked = asked_vocabularies(request, model.program, data)
    vocabularies = asked if plan is None else plan.vocabularies
    check_data(vocabularies, model.program, data)
    return Opened(model, Program.adopt(model.program), data, task, rules, threads, is_guess, vocabularies)
