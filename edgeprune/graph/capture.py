"""Capture: a module becomes an exported program with a dynamic batch; nothing of the user's classes is needed after."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_unflatten

from edgeprune.errors import ApplyError, CaptureError
from edgeprune.graph.apply import Applied, apply
from edgeprune.graph.argumentnames import check_argument_names, take_argument_names
from edgeprune.graph.batches import check_batches, one_batch
from edgeprune.graph.causal import masks_taken_as_given
from edgeprune.graph.containers import register_dataclasses
from edgeprune.graph.distances import DistancesBySize
from edgeprune.graph.drawn import drawn_arguments, example_values
from edgeprune.graph.examples import at_least_two, at_one, positional
from edgeprune.graph.faults import public
from edgeprune.graph.given import check_untrained, forget_given, give
from edgeprune.graph.lift import InputSizes, Unlifted, lifted
from edgeprune.graph.modulestate import State, restored
from edgeprune.graph.owninputs import own_arguments
from edgeprune.graph.recurrence import not_unrolled
from edgeprune.graph.refusals import (
    check_batch_is_first,
    check_model,
    check_program,
    error_on,
    explain,
    failure_on,
    has_other_type,
    quiet_torch,
    refused_size,
)
from edgeprune.graph.regions import flattened
from edgeprune.graph.renaming import free_names, own_name
from edgeprune.graph.sizes import (
    Asked,
    Free,
    argument_names,
    asked_dims,
    dynamic_shapes,
    first_fixed,
    free_ranges,
    input_values,
    size_hint,
)
from edgeprune.graph.ties import without_ties
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.graph.trainable import TrainableModule, let_state_train
from edgeprune.graph.unlift import direct_assignment, uncompiled
from edgeprune.graph.weights import check_answers, taken_weights
from edgeprune.usercode import UsersSettings, running_user_code

_BATCH = 2  # rows of what is drawn to compare two networks on


class Program(ExportedProgram):
    """An `ExportedProgram` whose `.module()` can be trained."""

    @classmethod
    def adopt(cls, program: ExportedProgram) -> Program:
        """The same program, as this class; nothing is copied."""
        adopted = copy.copy(program)
        adopted.__class__ = cls
        return adopted  # type: ignore[return-value]

    def module(self, check_guards: bool = False) -> fx.GraphModule:
        """A fresh module with a copy of this program's weights; starts in eval mode and follows `.train()`.

        Training it does not reach the program: `with_weights` gives one with what it has learnt.
        """
        module = self._module(check_guards, shared=False)
        let_state_train(module)
        give(self, module)
        return module

    def own_module(self) -> fx.GraphModule:
        """As `module`, for who brings the weights back and does not need to be reminded."""
        module = self.editable_module()
        let_state_train(module)
        return module

    def editable_module(self) -> fx.GraphModule:
        """A module whose graph is the program's, node by node, for who edits it."""
        return self._module(check_guards=False, shared=False)

    def frozen_module(self) -> fx.GraphModule:
        """A module that reads this program's own weights, for what runs and does not train; starts in eval mode."""
        return self._module(check_guards=False, shared=True)

    def _module(self, check_guards: bool, shared: bool) -> fx.GraphModule:
        with direct_assignment(), contextlib.nullcontext() if check_guards else uncompiled():
            unlifted = super().module(check_guards=check_guards)
        for node in list(unlifted.graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                unlifted.graph.erase_node(node)
        module = TrainableModule(unlifted, unlifted.graph)
        own_tensors(module, shared)
        return module.eval()

    @public("with_weights")
    def with_weights(self, module: nn.Module) -> Program:
        """This program with the weights and statistics of a module that its `.module()` gave, after training it.

        Args:
            module: that module or a copy of it, on any device, in either mode, also in the wrapper of torch.compile,
                DistributedDataParallel or AveragedModel; or the one that `apply_to` sliced. Left as it was.

        Returns:
            A new program; what the module learns from then on does not reach it.

        Raises:
            InputError: a tensor is missing, of another shape or type, or not finite; or the module's graph has been
                changed, so that it gives other outputs than this program with its weights.

        Example: `slim.with_weights(module).apply_to(model)`.
        """
        constants = self.constants.keys() - set(self.graph_signature.non_persistent_buffers)
        trained = self.with_tensors(taken_weights(self.frozen_module(), module, constants))
        check_answers(trained.own_module(), module, next(drawn_arguments(self, _BATCH)))
        return trained

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Program:
        """This program with other parameters, buffers and constants of the same shapes, by name; the rest stay."""
        changed = copy.copy(self)
        forget_given(changed)
        changed._state_dict = {name: tensors.get(name, tensor) for name, tensor in self.state_dict.items()}
        changed._constants = {name: tensors.get(name, value) for name, value in self.constants.items()}
        return changed

    @public("apply_to")
    @running_user_code(ApplyError)
    def apply_to(self, model: nn.Module) -> Applied:
        """Slice the module that this program was captured from, dense until now, in place, and check it.

        Its parameters and buffers become this program's, which may have been finetuned; what it says of its sizes
        (`out_channels`, `num_heads`, ...) follows. Parameters are replaced: make optimizers afterwards.

        Args:
            model: the module, or the part of one, that was captured; left as it was where an error is raised.

        Raises:
            ApplyError: the program is not this module's, or the module's forward has sizes written into it; names the
                line that fails.
            InputError: a module that `.module()` gave has been trained since; `with_weights` takes what it learnt.
        """
        check_untrained(self)
        for name in kept_vocabularies(self):
            raise ApplyError(
                f"the program numbers the ids of input {name!r} anew, which the class does not: apply "
                "edgeprune.slim_contract of it, after which the class takes the new ids"
            )
        extra = {name: self.constants[name] for name in self.graph_signature.non_persistent_buffers}
        # What export calls a buffer may be a constant of the forward; every parameter is one of the module's.
        tensors = {own_name(name): tensor for name, tensor in {**self.state_dict, **extra}.items()}
        parameters = [own_name(name) for name in self.graph_signature.parameters]
        candidates = drawn_arguments(self, _BATCH)
        return apply(tensors, parameters, self.own_module(), model, candidates)


def own_tensors(module: nn.Module, shared: bool = False) -> None:
    """Replace every parameter and buffer by a copy of its own; tied ones stay tied.

    With `shared`, a parameter's copy shows the same numbers in memory; buffers, which a graph may write to, do not.
    """
    copies: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for name, tensor in (*owner.named_parameters("", False, False), *owner.named_buffers("", False, False)):
            if id(tensor) not in copies:
                is_parameter = isinstance(tensor, nn.Parameter)
                data = tensor.detach() if shared and is_parameter else tensor.detach().clone()
                copies[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if is_parameter else data
            setattr(owner, name, copies[id(tensor)])


@public("capture")
@running_user_code(CaptureError)
@UsersSettings()
def capture(
    model: nn.Module,
    example_inputs: torch.Tensor | Sequence[Any],
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    dynamic: Mapping[str, Asked] | None = None,
) -> Program:
    """Export `model` in eval mode with a dynamic batch (the first dim of every input tensor).

    Dataclasses in its outputs are registered with PyTorch, as `torch.export.register_dataclass` does. `torch.cdist`,
    which picks one of two forms by its number of rows, keeps that of the example where this number is free.

    Args:
        model: the network; left as it was.
        example_inputs: one tensor `(batch, ...)` or the sequence of positional arguments; one tensor may stand for
            several. A batch of 1 is doubled, so that no size is mistaken for a broadcast.
        dynamic_batch: False fixes the batch at the example's, for a model that does so itself.
        dynamic_size: height and width (all dims from the third on) are free too, as in a fully convolutional network.
        dynamic: the free dims of the inputs that are named, in place of these rules; e.g. `{"tokens": (0, 1)}` for
            sequences `(batch, length, channels)`, `{"table": ()}` for an input without a batch. With bounds
            `{"tokens": {0: None, 1: (1, 64)}}`, where a table of learnt positions ends at 64.

    Raises:
        CaptureError: the model is quantised, complex, sparse or of mixed precision; it does not run on the inputs, its
            forward cannot be traced, or it fixes a size that was to be free. Names the layer and the line.
    """
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else positional(example_inputs)
    check_model(model, args)
    free = asked_dims(model, args, dynamic_batch, dynamic_size, dynamic or {})
    given = own_arguments(args)  # an export takes one tensor that is given twice for one input
    args = at_least_two(given, free)
    with restored(model):
        model.eval()
        failure = failure_on(model, args) if has_other_type(model, args) else ""
        if failure:
            raise CaptureError(failure)
        try:
            program = _export_untied(model, args, free)
        except CaptureError:
            check_batch_is_first(model, given, args)
            raise
    check_program(model, program)
    return program


def reexport(module: nn.Module, args: tuple[Any, ...], free: Free | None = None) -> Program:
    """Export an edited graph again.

    Args:
        module: as a program's `.module()` gives it.
        args: its positional arguments.
        free: the sizes that stay free, see `free_ranges`; the batch of every tensor where it is left out.

    Raises:
        CaptureError: the graph does not run, or fixes a size that was free.
    """
    free = asked_dims(module, args, True, False, {}) if free is None else free
    return _export(module, own_arguments(args), free)


def reexport_like(module: fx.GraphModule | Unlifted, program: ExportedProgram) -> Program:
    """An edited graph that was made of `program` and takes the same inputs, as a program; errors as `reexport`.

    The module's code may lag behind its graph. An `Unlifted` is used up.
    """
    return reexport_narrowed(module, program, captured_with(program), {})


def reexport_narrowed(
    module: fx.GraphModule | Unlifted, program: ExportedProgram, args: tuple[Any, ...], sizes: InputSizes
) -> Program:
    """An edited graph that was made of `program` and takes less of some inputs, as a program; errors as `reexport`.

    Args:
        module: its code may lag behind its graph.
        program: what it was made of.
        args: example arguments for the module.
        sizes: input name -> its sizes now, those that stay free as they are in the program.
    """
    made = lifted(module, program, args, sizes)
    if made is not None:
        return Program.adopt(made)
    assert isinstance(module, fx.GraphModule)
    module.recompile()
    asked = zip(free_ranges(program), tree_leaves(args), strict=True)
    # A flattened input has fewer dims.
    return reexport(module, args, [{d: of for d, of in dims.items() if d < arg.dim()} for dims, arg in asked])


def example_inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """Zeros of the shapes and dtypes that a program takes, with a batch of 2, as its positional arguments.

    Raises:
        CaptureError: the program takes keyword arguments.
    """
    flat = [_example(value) for value in input_values(program)]
    args, kwargs = tree_unflatten(flat, program.call_spec.in_spec)
    if kwargs:
        raise CaptureError(f"the program takes keyword arguments ({', '.join(kwargs)}); expected positional ones alone")
    return tuple(args)


def captured_with(program: ExportedProgram) -> tuple[Any, ...]:
    """The example that a program was captured with, which tells what its inputs are like; zeros where it has none."""
    leaves = example_values(program)
    if leaves is None:
        return example_inputs(program)
    args: tuple[Any, ...] = tree_unflatten(leaves, program.call_spec.in_spec)[0]
    return args


def _example(val: Any) -> Any:
    if not isinstance(val, torch.Tensor):
        return size_hint(val)
    return torch.zeros([size_hint(size) for size in val.shape], dtype=val.dtype)


def _export_untied(model: nn.Module, args: tuple[Any, ...], free: Free) -> Program:
    """The program of a model, whose sizes of one input are free of each other unless the model itself ties them."""
    program = _export_afresh(model, args, free)
    others = without_ties(program, args, free)
    if others is None or failure_on(model, others):
        return program
    program = _export_afresh(model, others, free)
    program._example_inputs = (args, {})
    return program


def _export_afresh(model: nn.Module, args: tuple[Any, ...], free: Free) -> Program:
    """The program of a model that may remember the batch of an earlier run, as a detector keeps its anchors.

    Such a model asks whether the batch is still that one, which fixes it. It is made to remember a batch of one, which
    no free size is taken for.
    """
    try:
        return _export(model, args, free)
    except CaptureError:
        state = State(model)
        if not any(0 in dims for dims in free) or failure_on(model, at_one(args, free)) or not state.is_changed():
            raise
        return _export(model, args, free)


def _export(model: nn.Module, args: tuple[Any, ...], free: Free) -> Program:
    try:
        program = _exported(model, args, free, strict_batch=True)
    except Exception as error:
        if _makes_outputs_known(model, args):
            return _export(model, args, free)
        return _loosened(model, args, free, error)
    return _adopted(model, args, free, program)


def _adopted(model: nn.Module, args: tuple[Any, ...], free: Free, program: ExportedProgram) -> Program:
    fixed = first_fixed(program, free)
    if fixed is not None:
        raise refused_size(model, args, fixed)
    free_names(program)
    names = argument_names(model, args)
    check_argument_names(program, names)
    take_argument_names(program, names, args)
    return Program.adopt(flattened(program))


def _makes_outputs_known(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether the outputs hold classes that PyTorch did not know, and knows from now on."""
    before, answers = len(SUPPORTED_NODES), []
    if error_on(lambda *given: answers.append(model(*given)), args) is None:
        register_dataclasses(answers)
    return len(SUPPORTED_NODES) > before


def _exported(model: nn.Module, args: tuple[Any, ...], free: Free, strict_batch: bool) -> ExportedProgram:
    shapes = dynamic_shapes(model, args, free, strict_batch)
    with torch.no_grad(), quiet_torch(), not_unrolled(), masks_taken_as_given(), DistancesBySize():
        return torch.export.export(model, args, dynamic_shapes=shapes, strict=False)


def _loosened(model: nn.Module, args: tuple[Any, ...], free: Free, error: Exception) -> Program:
    """The program by an export that lets sizes be fixed, where that fixes none of those that were to be free.

    Whether the halves of a batch are two at every batch, as of both images of a pair, PyTorch does not see.
    """
    try:
        with one_batch(model, free):
            program = _exported(model, args, free, strict_batch=False)
    except Exception:  # it fails anyhow: the first error says why
        raise CaptureError(explain(model, args, error)) from error
    adopted = _adopted(model, args, free, program)
    if any(0 in dims for dims in free):
        check_batches(model, adopted, adopted.frozen_module(), free)
    return adopted
