"""The training loop: epochs of steps, the best epoch kept, the state written after each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.cost.limits import Aim
from edgeprune.data import Inputs, fed, order
from edgeprune.errors import InputError, TrainingError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.lines import error_text, one_line
from edgeprune.methods import Method, Subject, make_method
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, Normalization
from edgeprune.results import EpochRecord
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Outcomes, Task, joined
from edgeprune.training.carried import let_state_go
from edgeprune.training.channels import channel_graph
from edgeprune.training.checks import check_settings
from edgeprune.training.ema import Average
from edgeprune.training.features import Features
from edgeprune.training.figures import figures_of
from edgeprune.training.judging import Judge
from edgeprune.training.optimizer import make_optimizer, make_schedule
from edgeprune.training.placement import (
    begin_training,
    device_of,
    float_type,
    in_eval,
    placed,
    random_state,
    seeded,
    set_random_state,
    threads_set,
)
from edgeprune.training.samples import Samples
from edgeprune.training.state import StateFile, check_alike
from edgeprune.training.team import Team

_FIGURES = 5  # of an epoch's record that its state holds; what they measure is the task's


def fit(  # noqa: PLR0913 - the network, its data, how it is trained, and who watches
    module: nn.Module,
    data: DataSource,
    normalization: Normalization,
    settings: TrainSettings,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    teacher: nn.Module | None = None,
    *,
    checkpoint: StateFile | None = None,
    graph: ChannelGraph | None = None,
    task: Task = CLASSIFICATION,
    aim: Aim | None = None,
    part: tuple[int, int] | None = None,
    features: Features | None = None,
    finished: Callable[[Method], None] | None = None,
) -> tuple[EpochRecord, ...]:
    """Train `module` in place for a task; it ends in eval mode with the weights of its best epoch.

    The best epoch does best on the validation split by the task's metric and, among equals, has the lowest loss there;
    where they ask for zeros it is the last one, since those become ever more until then, and so it is where weights are
    shared, by the templates of the last step. With the same seed and
    thread count the weights are the same, and PyTorch's random state is left as it was. Started by `torchrun`, the
    processes share every batch, and the weights are those of one process to rounding; what the network draws at random
    differs, other than dropout, and so do rules of its own that mix samples, other than batch norm.

    Args:
        module: takes the data's inputs `(batch, ...)`, normalised, and gives outputs that the task takes.
        teacher: a trained network with the same inputs and outputs, to which it is drawn; for a task whose targets are
            the dense network's answers, that network.
        checkpoint: where the state is kept after each epoch; where it is to be resumed, training goes on from there
            and ends with the same weights, bit for bit, as if it had not stopped.
        graph: the module's channel groups, for a method that works on them; else they are found here.
        aim: what the network may cost, for a method that prunes it so far.
        part: the epochs of this training that are trained, `(2, 5)` for the third to the fifth: at their learning
            rates, with an optimizer that begins anew; all of them where it is not given.
        features: of the module and of its teacher, by which it is drawn to that beside the outputs.
        finished: is called with the method when all steps are done.

    Raises:
        TrainingError: the loss became NaN or infinite; says the epoch and step. The last checkpoint is left.
        InputError: settings out of range, or the checkpoint is damaged or of another training.
    """
    check_settings(settings, data, task)
    graph = graph or channel_graph(module, data, settings)
    team = Team(settings)
    device = team.device_for(module)
    with ExitStack() as stack:
        stack.enter_context(team.together())
        stack.enter_context(seeded(settings.seed, team.share.rank, device))
        stack.enter_context(threads_set(settings.threads))
        stack.enter_context(placed(module, device, settings.channels_last))
        if teacher is not None:
            stack.enter_context(in_eval(teacher))
            stack.enter_context(placed(teacher, device, settings.channels_last))
        judge = Judge(task, normalization, teacher if task.by_reference else None)
        taught = None if task.by_reference else teacher
        run = _Run(module, data, judge, settings, team, progress, taught, checkpoint, graph, aim, part, features)
        stack.enter_context(nullcontext() if features is None else features.watched())
        records = run.epochs()
        if finished is not None:
            finished(run.method)
        return records


@dataclass(eq=False)
class _Run:
    """One call of `fit`: what it trains, and how far it has come."""

    module: nn.Module
    data: DataSource
    judge: Judge
    settings: TrainSettings
    team: Team
    progress: Progress
    teacher: nn.Module | None
    checkpoint: StateFile | None
    graph: ChannelGraph | None = None
    aim: Aim | None = None
    part: tuple[int, int] | None = None
    features: Features | None = None
    records: list[EpochRecord] = field(default_factory=list)
    best: tuple[tuple[float, float], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        self.task = self.judge.task
        self.device = device_of(self.module)
        self.n_steps = math.ceil(len(self.data.train) / self.settings.batch_size)  # type: ignore[arg-type]
        self.first, self.last = self.part or (0, self.settings.epochs)
        n_all = self.settings.epochs * self.n_steps
        self.team.make_same(self.module)
        subject = Subject(self.module, self.graph, n_all, self.settings.options, self.settings.seed, self.aim)
        self.method = make_method(self.settings.method, subject)
        # What a method begins with, an SVD say, need not come out alike on all machines.
        self.team.make_same(self.module, (own for kept in self.method.kept().values() for own in kept.values()))
        own = self.method.trained()
        self.plain_optimizer = make_optimizer(self.module, self.settings, n_all, self.graph, own)
        self.schedule = make_schedule(self.plain_optimizer, self.settings, n_all, self.first * self.n_steps)
        self.optimizer = self.team.optimizer(self.plain_optimizer)
        self.params = [param for group in self.plain_optimizer.param_groups for param in group["params"]]
        self.passed = _passed(self.params, list(subject.parameters().values()))
        place = self.device, float_type(self.module)
        self.samples = Samples(self.data, self.judge, self.settings, self.team.share, *place)
        self.average = Average(self.module, self.settings.recipe.ema)

    def epochs(self) -> tuple[EpochRecord, ...]:
        """Train every epoch that is left, then put the best weights back."""
        n_epochs, workers = self.settings.epochs, self.settings.workers
        self._resume()
        for epoch in range(self.epoch + 1, self.last + 1):
            loss, train_value = self._epoch(epoch)
            if epoch == n_epochs:
                self.method.finish()
            self.module.eval()
            with self.average.shown():
                with self.method.shown():
                    outcomes, val_loss = self.judge.outcomes(self.module, self.data.val, workers, self.team)
                if not math.isfinite(val_loss):
                    raise self._diverged(f"validation loss {val_loss} after epoch {epoch}")
                value, metric = self.task.value(outcomes), self.task.metric
                self.records.append(EpochRecord(epoch, loss, train_value, value, self.method.n_features, metric.name))
                self._keep_best((value if metric.higher_is_better else -value, -val_loss))
            self._keep_state()
            note = f"epoch {epoch}/{n_epochs} loss {loss:.2f} val {metric.shown(value)}"
            self._tell(epoch * self.n_steps, note)
            if self.team.is_main:
                self.progress.measured(figures_of(self.records[-1], val_loss))
        if self.best is not None:
            self.module.load_state_dict(self.best[1])
        self.module.eval()
        return tuple(self.records)

    @property
    def epoch(self) -> int:
        """How many epochs of the training are behind it."""
        return self.first + len(self.records)

    # -- an epoch --------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> tuple[float, float | None]:
        """Mean loss, and the metric where training tells it, over the train split while it is trained on."""
        # Answers that a network gives without dropout are not met by one that trains with it.
        begin_training(self.module, draws=not self.task.by_reference)
        loss_sum, n_seen, clip_norm = 0.0, 0, self.settings.recipe.clip_norm
        outcomes: list[Outcomes] = []
        n_samples = len(self.data.train)  # type: ignore[arg-type]
        seed = self.settings.seed * 1_000_003 + epoch
        plan = order(n_samples, self.settings.batch_size, shuffle=True, seed=seed)
        parts = [_parts(batch, self.settings.accumulate) for batch in plan]
        samples = self.samples.of([part for batch in parts for part in batch], seed)
        for step, (batch, batch_parts) in enumerate(zip(plan, parts, strict=True), start=1):
            self.optimizer.zero_grad()
            self.method.begin(training=True)
            loss, found = self._gradients(batch_parts, samples)
            self.method.end(self.team.loss_scale)
            if not math.isfinite(loss):
                raise self._diverged(f"loss {loss} in epoch {epoch}, step {step}")
            if clip_norm:
                self.team.clip(self.params, clip_norm, self.optimizer)
            self.optimizer.step()
            self.average.after_step()
            self.method.after_step(self.plain_optimizer.param_groups[0]["lr"])
            self.schedule.step()
            loss_sum += loss * len(batch)
            outcomes += found
            n_seen += len(batch)
            if step < self.n_steps:  # the epoch's last step is told with its validation accuracy
                note = f"epoch {epoch}/{self.settings.epochs} loss {loss_sum / n_seen:.2f}"
                self._tell((epoch - 1) * self.n_steps + step, note)
        gathered = self.team.gathered(outcomes)
        return loss_sum / n_seen, self.task.value(joined(gathered)) if self.task.in_training else None

    def _gradients(
        self, parts: Sequence[Tensor], samples: Iterator[tuple[Inputs, Any]]
    ) -> tuple[float, list[Outcomes]]:
        """Add up the gradients of a batch, which comes in parts; its mean loss and this process's outcomes."""
        n_batch = sum(len(part) for part in parts)
        total, outcomes = torch.zeros((), dtype=torch.float64, device=self.device), []
        for part in parts:
            n_own = len(self.team.share.of(part))
            x, y = next(samples)
            with self.team.forward(n_own, len(part)):
                outputs = fed(self.module, x)
                loss = self._loss(x, outputs, y)
            weight = n_own / n_batch  # a mean over few samples counts less
            self.team.backward(loss * weight)
            let_state_go(self.module)
            total += loss.detach().double() * weight
            if self.task.in_training and n_own:
                classes = y.argmax(dim=1) if self.samples.mixing.softens else y
                outcomes.append(self.task.outcomes(outputs, classes)[:n_own])
        self.team.add_up(self.passed)
        return self.team.summed(total).item(), outcomes

    def _loss(self, x: Inputs, outputs: Any, y: Any) -> Tensor:
        teacher = self.teacher if self.features is None else self.features.teacher
        if teacher is None:
            return self.task.loss(outputs, y)
        with torch.no_grad():
            wanted = fed(teacher, x)
        loss = self.task.loss(outputs, y) if self.teacher is None else self.task.taught_loss(outputs, y, wanted)
        return loss if self.features is None else loss + self.features.distance()

    def _tell(self, done: int, note: str) -> None:
        if self.team.is_main:
            self.progress.advance(done, self.settings.epochs * self.n_steps, note)

    def _say(self, message: str) -> None:
        if self.team.is_main:
            self.progress.say(message)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _keep_best(self, score: tuple[float, float]) -> None:
        epoch, n_epochs = self.epoch, self.settings.epochs
        late = epoch > self.settings.best_from * n_epochs and not self.settings.keeps_last
        eligible = late or epoch == self.last
        if eligible and (self.best is None or score > self.best[0]):
            self.best = score, {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _keep_state(self) -> None:
        if self.checkpoint is None:
            return
        # Where it is due by the clock, the main process's counts: all hand over what they have, or none does.
        if not self.team.any(self.team.is_main and self.checkpoint.is_due):
            return
        random = self.team.rows(random_state(self.device))
        if self.team.is_main:
            self.checkpoint.write(
                {
                    "epoch": len(self.records),
                    "weights": self.module.state_dict(),
                    "optimizer": self.plain_optimizer.state_dict(),
                    "method": self.method.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "scaler": self.team.scaler.state_dict() if self.team.scaler else {},
                    "best": self.best,
                    "records": [astuple(record)[:_FIGURES] for record in self.records],
                    "random": random,
                    **self._further(),
                }
            )

    def _further(self) -> dict[str, Any]:
        """What is in the state where the recipe or several processes ask for it."""
        average = self.average.state_dict()
        drawn = {"drawn": self.team.drawing.state} if self.team.share.n_ranks > 1 else {}
        return {**({"average": average} if average else {}), **drawn}

    def _resume(self) -> None:
        """Go on from the checkpoint, where there is one to go on from."""
        if self.checkpoint is None:
            return
        content = self.team.from_main(self.checkpoint.content)
        if content is None:
            return
        state, path = self.checkpoint.read(content), self.checkpoint.path
        try:
            own = random_state(self.device)
            self.checkpoint.check_random(state, (self.team.share.n_ranks, len(own)), self.device)
            self._restore(state)
        except InputError:
            raise
        except Exception as error:  # whatever PyTorch says of values that are none of its own
            raise InputError(
                f"{path}: expected this training's whole state, got a damaged one: {one_line(error_text(error), 200)}"
            ) from error
        self._say(f"resumed after epoch {len(self.records)}/{self.settings.epochs} of {path}")

    def _restore(self, state: dict[str, Any]) -> None:
        asked = [group["initial_lr"] for group in self.plain_optimizer.param_groups]
        self._check_whole(state)
        self.module.load_state_dict(state["weights"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state.get("average", {}))
        if self.team.scaler:
            self.team.scaler.load_state_dict(state["scaler"])
        self.records = [_epoch_record(self.task.metric.name, *figures) for figures in state["records"]]
        if len(self.records) != state["epoch"] or not 0 < state["epoch"] <= self.settings.epochs:
            raise ValueError(f"{len(self.records)} records of {state['epoch']} epochs")
        if state["best"] is not None:
            (accuracy, loss), weights = state["best"]
            check_alike([(0.0, 0.0), self.module.state_dict()], state["best"], "best")
            self.best = (float(accuracy), float(loss)), weights
        set_random_state(state["random"][self.team.share.rank], self.device)
        if self.team.share.n_ranks > 1:
            check_alike(self.team.drawing.state, state["drawn"], "drawn")
            self.team.drawing.state = state["drawn"]
        self._change_lr(asked)

    def _check_whole(self, state: dict[str, Any]) -> None:
        """Raise ValueError where it is not a state that this training writes; PyTorch itself takes almost anything."""
        own = self.plain_optimizer.state_dict()
        check_alike(own["param_groups"], state["optimizer"]["param_groups"], "optimizer")
        check_alike(self.schedule.state_dict(), state["schedule"], "schedule")
        check_alike(self.average.state_dict(), state.get("average", {}), "average")
        numbered = [index for group in own["param_groups"] for index in group["params"]]
        shapes = {index: param.shape for index, param in zip(numbered, self.params, strict=True)}
        for index, kept in state["optimizer"]["state"].items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape not in (shapes[index], ()):
                    raise ValueError(f"optimizer.{name}: expected {tuple(shapes[index])}, got {tuple(value.shape)}")
        for record in state["records"]:
            expected = [0, 0.0, 0.0 if self.task.in_training else None, 0.0, None]
            check_alike(expected[: len(record)], record, "records")

    def _change_lr(self, asked: Sequence[float]) -> None:
        """Go on with the learning rates that are asked for, at the place in the schedule that was reached."""
        groups = self.plain_optimizer.param_groups
        if asked == [group["initial_lr"] for group in groups]:
            return
        for group, lr in zip(groups, asked, strict=True):
            group["lr"] *= lr / group["initial_lr"]
            group["initial_lr"] = lr
        self.schedule.base_lrs = list(asked)
        self._say(f"the learning rate is {max(asked):g} from here on")

    def _diverged(self, what: str) -> TrainingError:
        advice = "try a lower lr"
        if self.checkpoint is not None and self.checkpoint.pace is None and self.records:
            reached = f"{self.checkpoint.path} holds the state after epoch {len(self.records)}"
            advice = f"{reached}, from which --resume goes on with a lower --lr"
        return TrainingError(f"training diverged: {what}; {advice}")


def _epoch_record(  # noqa: PLR0913 - the fields of the record
    metric: str, epoch: int, loss: float, train: float | None, val: float, n_features: int | None
) -> EpochRecord:
    train = None if train is None else float(train)
    return EpochRecord(int(epoch), float(loss), train, float(val), n_features and int(n_features), metric)


def _passed(stepped: Sequence[nn.Parameter], own: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The module's parameters that a pass gives gradients: those that are stepped on first, in their order."""
    of_module, of_optimizer = set(own), set(stepped)
    return [param for param in stepped if param in of_module] + [param for param in own if param not in of_optimizer]


def _parts(batch: Tensor, n_parts: int) -> tuple[Tensor, ...]:
    """A batch cut into parts of nearly one size, as many as leave two samples to each, which batch norm needs."""
    return batch.tensor_split(max(1, min(n_parts, len(batch) // 2)))
