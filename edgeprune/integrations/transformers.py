"""Pruning while a transformers Trainer trains: `Trainer(..., callbacks=[PruningCallback(keep_macs=0.5, ...)])`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune import compat  # noqa: F401  (torchvision, which transformers looks for, can be imported after it)
from edgeprune.errors import InputError
from edgeprune.files import write_atomically
from edgeprune.formats.load import unpack
from edgeprune.integrations.inplace import InPlace
from edgeprune.pruner import Pruner

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "edgeprune.integrations.transformers: expected the package transformers, got none; "
        "pip install 'edgeprune[transformers]'"
    ) from error

STATE_FILE = "edgeprune.pt"  # beside the weights of a checkpoint


class PruningCallback(TrainerCallback):
    """Shrinks the trainer's model in place at chosen epochs or optimizer steps; it stays the class that it is.

    Each step takes the weights that were learnt, cuts, proves the cut and slices the model; the optimizer goes on with
    its state cut along. Each checkpoint of the trainer has a file of the callback's; to go on from one, name it here
    too.

    Example:
        callback = PruningCallback(keep_macs=0.5, at_epochs=(1, 2), example_inputs={"input_ids": ids})
        Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
        callback.pruner.save("run/")
    """

    def __init__(
        self,
        *,
        example_inputs: Any,
        at_epochs: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        resume_from_checkpoint: str | Path | bool | None = None,
        out: str | Path | None = None,
        **choices: Any,
    ) -> None:
        """Check what can be checked before the network is known.

        Args:
            example_inputs: what the model takes, by name or in order, without labels.
            at_epochs: the epochs before which a step is made, from 0; or:
            at_steps: after how many optimizer steps.
            resume_from_checkpoint: as for `trainer.train`: the model is made as small as it was then.
            out: the run folder to write when the training ends, which must not exist.
            choices: of `Pruner`: `keep_macs`, `keep_latency`, `max_size`, `criterion`, ...

        Raises:
            InputError: an option is out of range, or two do not go together.
        """
        self._in_place = InPlace(example_inputs, at_epochs, at_steps, out, choices)
        self._resumed = resume_from_checkpoint

    @property
    def pruner(self) -> Pruner:
        """The Pruner, once a training has begun; after it with what was learnt.

        Raises:
            InputError: no training has begun.
        """
        return self._in_place.begun

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the model as small as the checkpoint's, before its weights are loaded."""
        _check_trainer(args)
        folder = _checkpoint(self._resumed, args)
        if folder is not None:
            file = folder / STATE_FILE
            if not file.is_file():
                raise InputError(
                    f"{folder}: expected a checkpoint of a training with PruningCallback, got no {STATE_FILE}"
                )
            self._in_place.restore(_model(kwargs), unpack(file.read_bytes(), str(file)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Capture the network."""
        self._in_place.begin(_model(kwargs))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the steps that are due before this epoch."""
        self._in_place.reach("epoch", round(state.epoch or 0), _model(kwargs), [_optimizer(kwargs)])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the steps that are due after so many optimizer steps."""
        self._in_place.reach("step", state.global_step, _model(kwargs), [_optimizer(kwargs)])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the gradients count."""
        if self._in_place.is_fed:
            self.pruner.observe(_model(kwargs))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the callback's file into the checkpoint."""
        folder = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            written = self.pruner.state_dict()
            write_atomically(folder / STATE_FILE, lambda file: torch.save(written, file))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take what was learnt."""
        self._in_place.finish(_model(kwargs))


def _model(kwargs: dict[str, Any]) -> nn.Module:
    model: nn.Module = kwargs["model"]
    return model


def _optimizer(kwargs: dict[str, Any]) -> torch.optim.Optimizer:
    """PyTorch's own, out of accelerate's wrapper."""
    optimizer = kwargs["optimizer"]
    own: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return own


def _checkpoint(asked: str | Path | bool | None, args: TrainingArguments) -> Path | None:
    """The checkpoint to go on from: the one named, the last one for True, or that of the arguments."""
    asked = args.resume_from_checkpoint if asked is None else asked
    if asked is not True:
        return Path(asked) if asked else None
    last = get_last_checkpoint(args.output_dir)
    if last is None:
        raise InputError(f"{args.output_dir}: expected a checkpoint to resume from, got none")
    return Path(last)


def _check_trainer(args: TrainingArguments) -> None:
    """Raise InputError for a trainer that compiles the model or shares it out: either keeps the sizes of before."""
    if args.torch_compile:
        raise InputError(
            "PruningCallback: expected a trainer that does not compile the model, got torch_compile=True; prune first, "
            "and compile what comes of it"
        )
    n_shares = max(args.world_size, args.n_gpu)
    if n_shares > 1 or args.fsdp or args.deepspeed:
        raise InputError(
            f"PruningCallback: expected a trainer on one device, got {n_shares} and fsdp {args.fsdp!r}, deepspeed "
            f"{args.deepspeed!r}; a loop of your own with edgeprune.Pruner wraps the module of each step"
        )
