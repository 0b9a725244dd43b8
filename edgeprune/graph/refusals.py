"""Why a model cannot be captured: what is refused beforehand, and what an export that failed means to the user."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from edgeprune.errors import CaptureError
from edgeprune.graph.lines import source_line
from edgeprune.graph.owninputs import own_arguments
from edgeprune.graph.sizes import Fixed, argument_names
from edgeprune.lines import error_text, first_line
from edgeprune.usercode import causes, user_line

_QUANTIZED = ("quantized", "quantized_decomposed", "_quantized", "torchao", "quantization")
_DATA = "what runs next depends on the values in a tensor (an if, a loop or .item() on it)"
_FREE_BATCH = (
    "every command needs it free: let the forward take the batch from its input (x.shape[0], as len(x) is a number) in "
    "place of a number; in Python, edgeprune.capture(..., dynamic_batch=False) leaves it fixed"
)
_SIZES = "it does not hold for every size that was to be free, as PyTorch sees it"
_WAY_OUT = "compress the float model, and quantise what comes out"


# -- before the export ------------------------------------------------------------------------------------------------


def check_model(model: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse what edgeprune does not handle: quantised, sparse, mixed, empty and lazy tensors, complex weights.

    Raises:
        CaptureError: names the tensor or the layer.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected an nn.Module, got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"{type(model).__name__}: expected a module with its Python code, got a TorchScript module")
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__ or ".quantization" in type(module).__module__:
            raise CaptureError(
                f"layer {name!r}: expected a float layer, got a quantised one ({type(module).__name__}); {_WAY_OUT}"
            )
    for name, weight in model.named_parameters():
        _check_real(f"tensor {name!r}", weight)
    for name, buffer in model.named_buffers():
        _check_tensor(f"tensor {name!r}", buffer)
    _check_one_precision(model)
    _check_inputs(model, args)


def _check_inputs(model: nn.Module, args: tuple[Any, ...]) -> None:
    leaves = [(name, leaf) for name, leaf in named_leaves(model, args) if isinstance(leaf, Tensor)]
    if not leaves:
        raise CaptureError(f"{type(model).__name__}: expected at least one tensor among the example inputs, got none")
    for name, leaf in leaves:
        _check_real(f"input {name!r}", leaf)
        if 0 in leaf.shape:
            raise CaptureError(f"input {name!r}: expected an example with elements, got shape {_shape(leaf)}")


def named_leaves(model: nn.Module, args: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Every leaf of the arguments with the name of the argument that it is a part of."""
    named = zip(argument_names(model, args), args, strict=True)
    return [(name, leaf) for name, value in named for leaf in tree_leaves(value)]


def _check_real(what: str, tensor: Tensor) -> None:
    """As `_check_tensor`, of what is trained or comes in; a buffer may be complex, as llama's rotations are."""
    if tensor.is_complex():
        raise CaptureError(f"{what}: expected real numbers, got {_dtype(tensor)}; keep real and imaginary part apart")
    _check_tensor(what, tensor)


def _check_tensor(what: str, tensor: Tensor) -> None:
    if tensor.is_quantized:
        raise CaptureError(f"{what}: expected floats, got a quantised tensor; {_WAY_OUT}")
    if tensor.layout != torch.strided:
        raise CaptureError(f"{what}: expected a dense tensor, got {tensor.layout}; convert it with .to_dense()")
    if tensor.device.type == "meta":
        raise CaptureError(f"{what}: expected values, got a meta tensor; load the weights first")
    if tensor.device.type != "cpu":
        raise CaptureError(f"{what}: expected it on the CPU, got {tensor.device}; move it with .cpu()")
    if is_lazy(tensor):
        raise CaptureError(
            f"{what}: expected a shape, got a lazy layer, which has none yet: run the model once on an example first"
        )
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        raise CaptureError(f"{what}: expected a plain tensor, got a {type(tensor).__name__}")


def _check_one_precision(model: nn.Module) -> None:
    """All parameters are of one precision; statistics and other buffers may differ."""
    first: tuple[str, Tensor] | None = None
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point():
            continue
        first = first or (name, tensor)
        if tensor.dtype != first[1].dtype:
            raise CaptureError(
                f"tensor {name!r}: expected {_dtype(first[1])} as {first[0]!r} is, got {_dtype(tensor)}; "
                "convert the model to one precision, e.g. with model.float()"
            )


def check_program(model: nn.Module, program: ExportedProgram) -> None:
    """Refuse quantised graphs, ones that choose between branches, and networks that return no tensor.

    Raises:
        CaptureError: names the operator.
    """
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            line = source_line(node)
            told = f"{node.target.name()} runs parts of it by the data" + (f" (at {line})" if line else "")
            raise CaptureError(f"{type(model).__name__} cannot be exported as one graph: {told}{_advice(model)}")
        namespace = str(getattr(node.target, "namespace", ""))
        if node.op == "call_function" and (namespace in _QUANTIZED or namespace.startswith("torchao")):
            raise CaptureError(
                f"{type(model).__name__}: expected a float model, got a quantised one (operator {node.target}); "
                f"{_WAY_OUT}"
            )
    output = next(node for node in program.graph.nodes if node.op == "output")
    if not any(isinstance(node.meta.get("val"), Tensor) for node in output.all_input_nodes):
        raise CaptureError(f"{type(model).__name__}: expected a network that returns a tensor, got none")


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """PyTorch logs tracebacks and prints the graph of a network that cannot be exported; the error says it all."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


# -- after a failed export --------------------------------------------------------------------------------------------


def explain(model: nn.Module, args: tuple[Any, ...], error: Exception) -> str:
    """One line: whether the model itself or its export fails, why, in which layer and in which line of the user's."""
    failure = failure_on(model, args)
    if failure:
        return failure
    reason = _DATA if _depends_on_data(error) else _SIZES if _violates_constraints(error) else ""
    return f"{type(model).__name__} cannot be exported: {_told(model, error, reason)}{_advice(model)}"


def _advice(model: nn.Module) -> str:
    """To take a part: the names of those that have weights."""
    parts = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    if len(parts) < 2:
        return ""
    shown = ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
    return f"; a part can be taken alone: edgeprune compress --module NAME, with one of {shown}"


def refused_size(model: nn.Module, args: tuple[Any, ...], fixed: Fixed) -> CaptureError:
    """Which size the model fixes, and where, in one line with how to capture it all the same."""
    name, _ = named_leaves(model, args)[fixed.leaf]
    error = _failure_at(model, args, fixed.shapes)
    told = fixed.why + (f" (at {fixed.line})" if fixed.line else "")
    if error is not None:
        told = f"at shape {fixed.shapes[fixed.leaf]} it fails: {_told(model, error)}"
    what = "batch" if fixed.dim == 0 else "size"
    advice = (
        getattr(model, "free_batch_advice", _FREE_BATCH)
        if fixed.dim == 0
        else "leave it fixed: leave out dynamic_size (--dynamic-size), or its dim in dynamic (--dynamic INPUT:DIMS)"
    )
    if fixed.most is not None:
        free = f"{{{'0: None, ' if fixed.dim else ''}{fixed.dim}: (1, {fixed.most})}}"
        option = quote(f"{name}:{fixed.dim}<={fixed.most}")
        advice = f"give it that range: dynamic={{{name!r}: {free}}}, or edgeprune compress --dynamic {option}"
    return CaptureError(
        f"{type(model).__name__} fixes the {what} of input {name!r}, dim {fixed.dim}, that was to be free: {told}",
        advice,
    )


def refused_batch(model: nn.Module, batch: int, error: Exception | None = None) -> CaptureError:
    """What becomes of a model at another batch than the example's: it fails, or its export gives something else."""
    told = "its export gives other outputs" if error is None else f"it fails: {_told(model, error)}"
    return CaptureError(
        f"{type(model).__name__} fixes the batch, that was to be free: at a batch of {batch} {told}",
        getattr(model, "free_batch_advice", _FREE_BATCH),
    )


def failure_on(model: nn.Module, args: tuple[Any, ...]) -> str:
    """One line on why the model itself does not run on the inputs; nothing where it does."""
    error = error_on(model, args)
    return "" if error is None else explain_run(model, args, error)


def error_on(model: Callable[..., Any], args: tuple[Any, ...]) -> Exception | None:
    """What the model itself raises on the inputs."""
    try:
        with torch.no_grad(), quiet_torch():
            model(*own_arguments(args))
    except Exception as error:
        return error
    return None


def check_batch_is_first(model: nn.Module, given: tuple[Any, ...], doubled: tuple[Any, ...]) -> None:
    """Raise CaptureError where the model runs on what was given, and only what was doubled as a batch is in its way."""
    pairs = [pair for pair in zip(tree_leaves(given), tree_leaves(doubled), strict=True) if isinstance(pair[0], Tensor)]
    others = [one for one, two in pairs if one.shape != two.shape]
    if others and error_on(model, given) is None and error_on(model, doubled) is not None:
        shapes = " and ".join(dict.fromkeys(str(tuple(one.shape)) for one in others))
        raise CaptureError(
            f"example inputs: expected the batch as the first size of every input, got {shapes}, whose 1 was "
            f"doubled as such, and {type(model).__name__} does not run then; a state (layers, batch, ...) is to be "
            "taken as (batch, layers, ...) and turned inside forward"
        )


def explain_run(model: nn.Module, args: tuple[Any, ...], error: Exception) -> str:
    """One line on why the model does not run on the inputs."""
    told = f"{type(model).__name__} does not run on the example inputs ({_described(model, args)})"
    return f"{told}: {_told(model, error)}{_other_type(model, args)}"


def has_other_type(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether an input is of another type than the parameters; an export does not notice if that is wrong."""
    return bool(_other_type(model, args))


def _other_type(model: nn.Module, args: tuple[Any, ...]) -> str:
    types = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()]
    inputs = [leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if not types or all(dtype == types[0] for dtype in inputs):
        return ""
    return f"; the model's parameters are {str(types[0]).removeprefix('torch.')}"


def _failure_at(model: nn.Module, args: tuple[Any, ...], shapes: Sequence[tuple[int, ...] | None]) -> Exception | None:
    """What the model raises on inputs of other shapes; nothing is computed."""
    leaves, tree = tree_flatten(args)
    with quiet_torch(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = [
            leaf if shape is None else torch.empty(shape, dtype=leaf.dtype)
            for leaf, shape in zip(leaves, shapes, strict=True)
        ]
        try:
            model(*tree_unflatten(fakes, tree))
        except Exception as error:
            return error
    return None


def _depends_on_data(error: BaseException) -> bool:
    return any("DataDependent" in type(e).__name__ or "data-dependent" in error_text(e) for e in causes(error))


def _violates_constraints(error: BaseException) -> bool:
    """Whether PyTorch found that sizes cannot be free; what it says is for those who debug its tracer."""
    said = ("Constraints violated", "Specializations unexpectedly required")
    return any(error_text(e).startswith(said) for e in causes(error))


def _told(model: nn.Module, error: BaseException, reason: str = "") -> str:
    """The error's first line (or `reason`), with the layer and the user's line that it comes from."""
    first = first_line(error)
    told = reason or (f"{type(error).__name__}: {first}" if not isinstance(error, RuntimeError) else first)
    layer, line = _layer(model, error), user_line(error)
    return (f"layer {layer}: " if layer else "") + told.rstrip(".") + (f" (at {line})" if line else "")


def _layer(model: nn.Module, error: BaseException) -> str:
    """The innermost layer on the way to an error, e.g. "'fc', Linear(in_features=8, out_features=3, bias=True)"."""
    name, found = failing_layer(model, error)
    if found is None:
        return ""
    details = f"({found.extra_repr()})" if not list(found.children()) else ""
    return f"{name!r}, {type(found).__name__}{details}"


def failing_layer(model: nn.Module, error: BaseException) -> tuple[str, nn.Module | None]:
    """The innermost layer on the way to an error, and its name; ("", None) for none."""
    names = {id(module): name for name, module in model.named_modules()}
    found: nn.Module | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            found = module
    return ("", None) if found is None else (names[id(found)], found)


def _described(model: nn.Module, args: tuple[Any, ...]) -> str:
    """The inputs as names, shapes and types, e.g. "x: (2, 3) float32"."""
    return ", ".join(
        f"{name}: {_shape(leaf)} {_dtype(leaf)}" if isinstance(leaf, Tensor) else f"{name}: {leaf!r}"
        for name, leaf in named_leaves(model, args)
    )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
