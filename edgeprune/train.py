"""Training and evaluation of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from edgeprune.data import batches, normalize
from edgeprune.errors import InputError, TrainingError
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, EpochRecord, Evaluation, Normalization, TrainSettings

# Peak learning rate and weight decay where the settings leave them open.
DEFAULTS = {"adamw": (2e-3, 5e-2), "sgd": (5e-2, 5e-4)}
MOMENTUM = 0.9
WARMUP = 0.05  # share of all steps
TEMPERATURE = 2.0  # Hinton et al., Distilling the Knowledge in a Neural Network, 2015
TEACHER_WEIGHT = 0.5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def fit(
    module: nn.Module,
    data: DataSource,
    normalization: Normalization,
    settings: TrainSettings,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    teacher: nn.Module | None = None,
) -> tuple[EpochRecord, ...]:
    """Train `module` in place; it ends in eval mode with the weights of its best epoch.

    The best epoch has the highest validation accuracy and, among equals, the lowest validation loss. With the same
    seed and thread count the weights are the same, and PyTorch's random state is left as it was.

    Args:
        module: takes normalised inputs `(batch, *data.input_shape)`, gives logits `(batch, n_classes)`.
        teacher: a trained network with the same inputs and outputs; its softened outputs are half of the loss.

    Raises:
        TrainingError: the loss became NaN or infinite; says the epoch and step.
        InputError: settings out of range.
    """
    _check(settings)
    device = _device(module)
    with _seeded(settings, device), _in_eval(teacher):
        return _Run(module, data, normalization, settings, progress, _loss(teacher)).epochs()


def predict(module: nn.Module, split: Dataset[Any], normalization: Normalization, batch_size: int = 512) -> np.ndarray:
    """The logits `(n_samples, n_classes)` float32 over a split, in its order."""
    return np.concatenate([logits.cpu().numpy() for logits, _ in _outputs(module, split, normalization, batch_size)])


def evaluate(module: nn.Module, split: Dataset[Any], normalization: Normalization) -> Evaluation:
    """Which samples of a split are classified correctly, and the mean cross entropy."""
    correct, loss = [], 0.0
    for logits, y in _outputs(module, split, normalization, 512):
        correct.append((logits.argmax(dim=1) == y).cpu().numpy())
        loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))
    outcome = np.concatenate(correct)
    return Evaluation(correct=outcome, loss=loss / len(outcome))


def _outputs(
    module: nn.Module, split: Dataset[Any], normalization: Normalization, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    device, dtype = _device(module), float_type(module)
    with _in_eval(module), torch.no_grad():
        for x, y in batches(split, batch_size):
            logits = module(normalize(x.to(device, dtype), normalization))
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(f"{type(module).__name__}: expected logits (batch, n_classes) as output, got {got}")
            yield logits, y.to(device)


@dataclass(slots=True, eq=False)
class _Run:
    """One call of `fit`."""

    module: nn.Module
    data: DataSource
    normalization: Normalization
    settings: TrainSettings
    progress: Progress
    loss: Loss

    def epochs(self) -> tuple[EpochRecord, ...]:
        """Train every epoch, then put the best weights back."""
        n_epochs = self.settings.epochs
        optimizer = _optimizer(self.module, self.settings)
        total = n_epochs * self._steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, total))
        records: list[EpochRecord] = []
        best: tuple[float, float] | None = None
        best_state: dict[str, Tensor] = {}
        for epoch in range(1, n_epochs + 1):
            loss, train_accuracy = self._epoch(epoch, optimizer, schedule)
            self.module.eval()
            val = evaluate(self.module, self.data.val, self.normalization)
            if not math.isfinite(val.loss):
                raise TrainingError(f"training diverged: validation loss {val.loss} after epoch {epoch}")
            records.append(EpochRecord(epoch, loss, train_accuracy, val.accuracy))
            score = (val.accuracy, -val.loss)
            eligible = epoch > self.settings.best_from * n_epochs or epoch == n_epochs
            if eligible and (best is None or score > best):
                best, best_state = score, {k: v.detach().clone() for k, v in self.module.state_dict().items()}
            self.progress.advance(epoch * self._steps(), total, _note(records[-1], n_epochs))
        if best_state:
            self.module.load_state_dict(best_state)
        self.module.eval()
        return tuple(records)

    def _steps(self) -> int:
        return math.ceil(len(self.data.train) / self.settings.batch_size)  # type: ignore[arg-type]

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> tuple[float, float]:
        """Mean loss and accuracy over the train split while it is trained on."""
        device, dtype = _device(self.module), float_type(self.module)
        self.module.train()
        loss_sum, n_correct, n_seen = 0.0, 0, 0
        order_seed = self.settings.seed * 1_000_003 + epoch
        loader = batches(self.data.train, self.settings.batch_size, shuffle=True, seed=order_seed)
        for step, (raw, labels) in enumerate(loader, start=1):
            x, y = normalize(raw.to(device, dtype), self.normalization), labels.to(device)
            logits = self.module(x)
            loss = self.loss(x, logits, y)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(f"training diverged: loss {value} in epoch {epoch}, step {step}; try a lower lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += value * len(y)
            n_correct += int((logits.argmax(dim=1) == y).sum())
            n_seen += len(y)
            if step < self._steps():  # the epoch's last step is told with its validation accuracy
                done = (epoch - 1) * self._steps() + step
                note = f"epoch {epoch}/{self.settings.epochs} loss {loss_sum / n_seen:.2f}"
                self.progress.advance(done, self.settings.epochs * self._steps(), note)
        return loss_sum / n_seen, n_correct / n_seen


def _note(record: EpochRecord, n_epochs: int) -> str:
    return f"epoch {record.epoch}/{n_epochs} loss {record.loss:.2f} val {100 * record.val_accuracy:.1f} %"


def _check(settings: TrainSettings) -> None:
    if settings.optimizer not in DEFAULTS:
        raise InputError(f"optimizer: expected one of {', '.join(DEFAULTS)}, got {settings.optimizer!r}")
    positive = {"batch size": settings.batch_size, "learning rate": settings.lr, "threads": settings.threads}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}: expected more than 0, got {value}")
    for name, value in {"epochs": settings.epochs, "weight decay": settings.weight_decay}.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}: expected 0 or more, got {value}")


def _optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Weights decay; biases and the 1-D parameters of normalisation do not."""
    lr, decay = DEFAULTS[settings.optimizer]
    lr = settings.lr if settings.lr is not None else lr
    decay = settings.weight_decay if settings.weight_decay is not None else decay
    params = [param for param in module.parameters() if param.requires_grad]
    groups = [
        {"params": [param for param in params if param.dim() > 1], "weight_decay": decay},
        {"params": [param for param in params if param.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(f"{type(module).__name__}: expected parameters to train, got none")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


def _cosine(step: int, total: int) -> float:
    """Factor on the peak learning rate: a linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def _loss(teacher: nn.Module | None) -> Loss:
    """Cross entropy, or its mean with the teacher's softened outputs (times T^2, so that gradients stay in scale)."""
    if teacher is None:
        return lambda x, logits, y: F.cross_entropy(logits, y)

    def distill(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(x) / TEMPERATURE, dim=1)
        got = F.log_softmax(logits / TEMPERATURE, dim=1)
        soft = F.kl_div(got, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return TEACHER_WEIGHT * soft + (1 - TEACHER_WEIGHT) * F.cross_entropy(logits, y)

    return distill


def float_type(module: nn.Module) -> torch.dtype:
    """The type that a network computes in, which its inputs must have: that of its first floating-point parameter."""
    types = (param.dtype for param in module.parameters() if param.dtype.is_floating_point)
    return next(types, torch.float32)


def _device(module: nn.Module) -> torch.device:
    return next((param.device for param in module.parameters()), torch.device("cpu"))


@contextmanager
def _seeded(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Seed PyTorch and set its threads, then put both back."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), threads_set(settings.threads):
        torch.manual_seed(settings.seed)
        yield


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads, or as many as before for None; then put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _in_eval(module: nn.Module | None) -> Iterator[None]:
    """Put a module in eval mode, and back into train mode if it was in it."""
    was_training = module is not None and module.training
    if module is not None and was_training:
        module.eval()
    try:
        yield
    finally:
        if module is not None and was_training:
            module.train()
