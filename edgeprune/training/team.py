"""The processes that train together: one as a rule, more under `torchrun`. Only here does training meet accelerate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgeprune.data import Share
from edgeprune.errors import InputError, LostProcessError
from edgeprune.processes import n_processes, rank
from edgeprune.settings import TrainSettings
from edgeprune.tasks.wholebatch import whole_batch
from edgeprune.training.batchnorm import GlobalBatchNorm
from edgeprune.training.dropout import Drawing, WholeDropout
from edgeprune.training.placement import device_of, is_movable

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_DEVICES = ("auto", "cpu", "cuda")
# What gloo and nccl say where another process has gone.
_GONE = ("closed by peer", "reset by peer", "broken pipe", "remote process exited", "nccl", "gloo")
_PATIENCE = timedelta(days=30)  # while the main process measures or writes, the others wait; one that ends is noticed
_T = TypeVar("_T")


class Team:
    """This process's place among those that work together, the device it trains on, and how they add up.

    They go through the same steps: where one adds up, all do. Each takes its `share` of every batch; batch norm,
    dropout, gradients and what a loss divides by are those of the whole batch, so that the weights are those of a
    single process. What else is random within the network is drawn by each process for its own samples, and differs
    from what one process would draw.

    Raises:
        InputError: a precision or device that is unknown or that this machine has not.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._on_gpu, self._settings = _on_gpu(settings), settings
        self.share = Share(rank(), n_processes())
        if self.share.n_ranks > 1:
            self._accelerator  # noqa: B018 - the processes meet here, and not where one of them first has to add up

    @cached_property
    def _accelerator(self) -> Any:
        """Made where it is first needed: a process that is alone and does not train needs none."""
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState

        precision, on_gpu = _PRECISIONS[self._settings.precision], self._on_gpu
        state = AcceleratorState._shared_state
        if state and (state.get("_mixed_precision") != precision or (state["device"].type == "cuda") != on_gpu):
            # The precision and the device are the process's, for accelerate, and another training may have had others.
            AcceleratorState._reset_state(reset_partial_state=n_processes() == 1)
        patient = InitProcessGroupKwargs(timeout=_PATIENCE)
        return Accelerator(cpu=not on_gpu, mixed_precision=precision, kwargs_handlers=[patient])

    @property
    def device(self) -> torch.device:
        """Where this process trains, and where what is added up lies meanwhile."""
        found: torch.device = self._accelerator.device
        return found

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.share.rank == 0

    @cached_property
    def drawing(self) -> Drawing:
        """The random numbers that the processes draw alike, as one process would."""
        return Drawing(self._settings.seed, self.device)

    def device_for(self, module: nn.Module) -> torch.device:
        """Where a network trains: where it lies on a GPU already, else this process's device."""
        own = device_of(module)
        stays = own.type != "cpu" or (self._settings.device == "auto" and not is_movable(module))
        return own if stays and self.share.n_ranks == 1 else self.device

    # -- adding up -------------------------------------------------------------------------------------------------

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the processes, the same on all; gradients flow through it."""
        return tensor if self.share.n_ranks == 1 else _Total.apply(tensor, self)

    def summed(self, tensor: Tensor) -> Tensor:
        """As `total`, on this process's device and without gradients."""
        if self.share.n_ranks == 1:
            return tensor.detach()
        placed: Tensor = tensor.detach().to(self.device)
        return self._accelerator.reduce(placed, "sum").to(tensor.device)

    def any(self, value: bool) -> bool:
        """Whether it holds for one of the processes."""
        return bool(self.summed(torch.tensor(int(value))))

    def rows(self, row: Tensor) -> Tensor:
        """The `row` `(n,)` of each process, `(n_ranks, n)`, on all of them."""
        table = torch.zeros(self.share.n_ranks, *row.shape, dtype=row.dtype)
        table[self.share.rank] = row
        return self.summed(table)

    def from_main(self, read: Callable[[], bytes | None]) -> bytes | None:
        """What `read` gives to the main process, the only one that calls it, handed to all."""
        content = read() if self.is_main else None
        if self.share.n_ranks == 1:
            return content
        size = int(self.summed(torch.tensor(-1 if content is None else len(content)) * self.is_main))
        if size < 0:
            return None
        buffer = torch.zeros(size, dtype=torch.uint8)
        if content:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return self.summed(buffer).numpy().tobytes()

    def by_main(self, work: Callable[[], _T]) -> _T:
        """What `work` gives to the main process, the only one that does it, handed to all; the others wait."""
        if self.share.n_ranks == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [work() if self.is_main else None]
        broadcast_object_list(found)
        result: _T = found[0]
        return result

    def gathered(self, rows: list[Any]) -> list[Any]:
        """What the processes have, one after the other, on all of them."""
        if self.share.n_ranks == 1:
            return rows
        from accelerate.utils import gather_object

        return gather_object(rows)

    def make_same(self, module: nn.Module, tensors: Iterable[Tensor] = ()) -> None:
        """Give every process the main one's weights and buffers, and whatever other `tensors` it has beside."""
        if self.share.n_ranks == 1:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers(), *tensors):
                tensor.copy_(broadcast(tensor.detach().to(self.device)))

    # -- steps -----------------------------------------------------------------------------------------------------

    def optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer as it is stepped: with fp16 it divides by the loss's scale and skips what overflows.

        Without a scale it is itself: the one that accelerate makes looks for a package on the disk twice a step.
        """
        if self.scaler is None:
            return optimizer
        return self._accelerator.prepare_optimizer(optimizer, device_placement=False)

    @property
    def scaler(self) -> Any:
        """What scales the loss with fp16, else None."""
        return self._accelerator.scaler

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied with before a step; 1 but for fp16."""
        return float(self.scaler.get_scale()) if self.scaler else 1.0

    def forward(self, n_own: int, n_all: int) -> AbstractContextManager[Any]:
        """Around a pass over this process's `n_own` of `n_all` samples, and its loss.

        It sets the precision; batch norm, dropout and what a loss divides by are those of the whole batch.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(self._accelerator.autocast())
        if self.share.n_ranks > 1:
            own = self.share.of(torch.arange(n_all))[:1].tolist() or [0]
            stack.enter_context(GlobalBatchNorm(self.total, n_own, n_all))
            stack.enter_context(WholeDropout(self.drawing, own[0], max(1, n_own), n_all))
            stack.enter_context(whole_batch(self.summed, n_own, n_all))
        return stack

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the loss to those that are there."""
        self._accelerator.backward(loss)

    def add_up(self, params: Sequence[nn.Parameter]) -> None:
        """Make every gradient the sum of the processes'; one that none of them has stays none, as in one process."""
        if self.share.n_ranks == 1:
            return
        gradients = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        given = torch.tensor([param.grad is not None for param in params], dtype=gradients[0].dtype, device=self.device)
        # One message for all of them, and one for any network: no rule which parameters a step has to use.
        total = self.summed(torch.cat([given, *(gradient.reshape(-1) for gradient in gradients)]))
        n_given, *parts = total.split([len(params), *(gradient.numel() for gradient in gradients)])
        for param, gradient, part, n in zip(params, gradients, parts, n_given.tolist(), strict=True):
            if n:
                param.grad = gradient.copy_(part.view(gradient.shape))

    def clip(self, params: Sequence[nn.Parameter], most: float, optimizer: Any) -> None:
        """Scale the gradients down to a norm of `most` over all of them, where it is larger."""
        if self.scaler is not None:
            self._accelerator.unscale_gradients(optimizer)
        nn.utils.clip_grad_norm_(params, most)

    # -- the end ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Where another process has gone, say so: it has told why, and PyTorch speaks of sockets."""
        try:
            yield
        except RuntimeError as error:
            if self.share.n_ranks == 1 or not any(sign in str(error).lower() for sign in _GONE):
                raise
            raise LostProcessError(
                f"expected {self.share.n_ranks} processes to the end, got one that has ended; its own message says why"
            ) from error

    def disband(self) -> None:
        """End the processes' connection, once nothing is left to add up."""
        if self.share.n_ranks > 1:
            from accelerate.state import AcceleratorState

            self._accelerator.end_training()
            AcceleratorState._reset_state(reset_partial_state=True)


class _Total(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs, as each of them has used the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.team.summed(gradient), None


def _on_gpu(settings: TrainSettings) -> bool:
    """Whether to train on a GPU; InputError where that, or the precision, cannot be."""
    if settings.precision not in _PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(_PRECISIONS)}, got {settings.precision!r}")
    if settings.device not in _DEVICES:
        raise InputError(f"device: expected one of {', '.join(_DEVICES)}, got {settings.device!r}")
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise InputError("device cuda: expected a GPU that this PyTorch can use, got none")
    on_gpu = found and settings.device != "cpu"
    if settings.precision == "fp16" and not on_gpu:
        raise InputError("precision fp16: expected a GPU to train on, got a CPU, which has bf16 and fp32")
    return on_gpu
