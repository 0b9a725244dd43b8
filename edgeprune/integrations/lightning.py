"""Pruning while Lightning trains: `Trainer(callbacks=[PruningCallback(keep_macs=0.5, at_epochs=(2, 4))])`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from edgeprune import compat  # noqa: F401  (torchvision, which Lightning looks for, can be imported after it)
from edgeprune.errors import InputError
from edgeprune.integrations.inplace import InPlace
from edgeprune.pruner import Pruner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
except ImportError as error:
    raise ImportError(
        "edgeprune.integrations.lightning: expected the package lightning, got none; pip install 'edgeprune[lightning]'"
    ) from error


class PruningCallback(Callback):
    """Shrinks the LightningModule, or a part of it, in place at chosen epochs or optimizer steps.

    Each step takes the weights that were learnt, cuts, proves the cut and slices the module; the optimizers go on with
    their state cut along. The checkpoints of the trainer hold all that `fit(..., ckpt_path=...)` needs to go on.

    Example:
        callback = PruningCallback(keep_macs=0.5, at_epochs=(2, 4, 6), module="net", example_inputs=images)
        Trainer(max_epochs=10, callbacks=[callback]).fit(model, loader)
        callback.pruner.save("run/")
    """

    def __init__(
        self,
        *,
        at_epochs: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        module: str = "",
        example_inputs: Any = None,
        out: str | Path | None = None,
        **choices: Any,
    ) -> None:
        """Check what can be checked before the network is known.

        Args:
            at_epochs: the epochs before which a step is made, as the trainer counts them, from 0; or:
            at_steps: after how many optimizer steps.
            module: the part that is pruned, by its dotted name; all of it where none is given.
            example_inputs: of that part, as for `Pruner`; by default the module's `example_input_array`.
            out: the run folder to write when the training ends, which must not exist.
            choices: of `Pruner`: `keep_macs`, `keep_latency`, `max_size`, `criterion`, ...

        Raises:
            InputError: an option is out of range, or two do not go together.
        """
        self._module = module
        self._in_place = InPlace(example_inputs, at_epochs, at_steps, out, choices)

    @property
    def state_key(self) -> str:
        """Several callbacks of one trainer prune other parts."""
        return self._generate_state_key(module=self._module)

    @property
    def pruner(self) -> Pruner:
        """The Pruner, once a training has begun; after it with what was learnt.

        Raises:
            InputError: no training has begun.
        """
        return self._in_place.begun

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Capture the network; let a checkpoint find it as small as it was when that was written."""
        _check_trainer(trainer, pl_module)
        if self._in_place.example_inputs is None:
            self._in_place.example_inputs = pl_module.example_input_array
        self._in_place.begin(self._part(pl_module))
        theirs = pl_module.on_load_checkpoint

        def restoring(checkpoint: dict[str, Any]) -> None:
            state = checkpoint.get("callbacks", {}).get(self.state_key)
            if state:
                self._in_place.restore(self._part(pl_module), state)
            theirs(checkpoint)

        # The callbacks' own hooks come after the weights are loaded, which fit the smaller network alone.
        pl_module.__dict__["on_load_checkpoint"] = restoring

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module without the hook that `setup` gave it."""
        pl_module.__dict__.pop("on_load_checkpoint", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the steps that are due before this epoch."""
        self._in_place.reach("epoch", trainer.current_epoch, self._part(pl_module), trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make the steps that are due after so many optimizer steps."""
        self._in_place.reach("step", trainer.global_step, self._part(pl_module), trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the gradients count, which are no longer scaled here."""
        if self._in_place.is_fed:
            self.pruner.observe(self._part(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what was learnt."""
        self._in_place.finish(self._part(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """For the trainer's checkpoint."""
        return {} if self._in_place.pruner is None else self._in_place.pruner.state_dict()

    def _part(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise InputError(
                f"PruningCallback: module: expected the name of a part of {type(pl_module).__name__}, "
                f"got {self._module!r}"
            ) from error


def _check_trainer(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise InputError for a trainer that compiled the module or shares it out: either keeps the sizes of before."""
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        raise InputError(
            f"PruningCallback: expected a {type(pl_module).__name__} that is not compiled, got a compiled one; prune "
            "it first, and compile what comes of it"
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise InputError(
            f"PruningCallback: expected a trainer on one device, got {type(trainer.strategy).__name__}; a loop of your "
            "own with edgeprune.Pruner wraps the module of each step"
        )
