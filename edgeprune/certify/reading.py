"""From a program to the network that bounds are computed of: an interpreter over affine forms."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.certify import operators as ops
from edgeprune.certify.forms import Form, MixesSamplesError, RowCount, mapped, variable
from edgeprune.certify.network import Layer, Network
from edgeprune.data.inputs import normalize
from edgeprune.errors import InputError, InternalError
from edgeprune.graph.call import operator_name
from edgeprune.graph.capture import Program
from edgeprune.graph.lines import source_line
from edgeprune.graph.precision import in_float64
from edgeprune.graph.prepare import prepared
from edgeprune.graph.specs import input_specs
from edgeprune.records import IDENTITY, Normalization

MOST_VALUES = 8192  # of one layer: matrices of 0.5 GB
_AGREEMENT = 1e-9
_COVERED = (
    "linear layers, convolutions, ReLU, pooling, batch norm, sums, products with constants, reshapes and picks of "
    "elements"
)


def read_network(program: ExportedProgram, normalization: Normalization | None = None) -> Network:
    """The program as a network of raw inputs, flat; its operators' arithmetic is done in float64.

    Raises:
        InputError: several inputs or outputs, an input of whole numbers or with free sizes, an operator that no bound
            covers, or a layer of too many values; names it.
    """
    shape = _input_shape(program)
    ready = prepared(program)
    module = in_float64((ready if isinstance(ready, Program) else Program.adopt(ready)).own_module())
    assert isinstance(module, fx.GraphModule)
    reader = _Reader(module, shape, normalization or IDENTITY)
    network = reader.read()
    _check_same(network, module, shape, normalization or IDENTITY)
    return network


def _input_shape(program: ExportedProgram) -> tuple[int, ...]:
    specs = input_specs(program)
    if len(specs) != 1:
        raise InputError(
            f"certify: expected a network with one input, got {len(specs)}: {', '.join(s.name for s in specs)}"
        )
    (spec,) = specs
    if not spec.dtype.is_floating_point:
        raise InputError(f"certify: input {spec.name}: expected floats, got {str(spec.dtype).removeprefix('torch.')}")
    sizes = spec.shape[1:]
    if not spec.batched or any(size is None for size in sizes):
        raise InputError(f"certify: input {spec.name}: expected a free batch and fixed sizes, got {spec.shape}")
    shape = tuple(int(size) for size in sizes if size is not None)
    _check_size(spec.name, int(torch.Size(shape).numel()))
    return shape


def _check_size(name: str, n: int) -> None:
    if n > MOST_VALUES:
        raise InputError(f"certify: {name}: expected at most {MOST_VALUES:,} values of a sample, got {n:,}")


class _Reader:
    """Runs the graph once; `layers` are those that were met so far."""

    def __init__(self, module: fx.GraphModule, shape: tuple[int, ...], normalization: Normalization) -> None:
        self._module, self._shape, self._normalization = module, shape, normalization
        self._layers: list[Layer] = []
        self._env: dict[fx.Node, Any] = {}

    def read(self) -> Network:
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._input()
            elif node.op == "get_attr":
                self._env[node] = ops.as_float64(_attribute(self._module, str(node.target)))
            elif node.op == "call_function" and node.users:
                self._env[node] = self._called(node)
            elif node.op == "output":
                return self._network(tree_leaves(tree_map(self._looked_up, node.args)))
        raise InternalError("certify: the graph has no output")

    def _input(self) -> Form:
        """The input as the network takes it, of raw values: `(x - mean) / std`."""
        raw = variable(0, self._shape)
        return mapped(lambda given: normalize(given[0], self._normalization), [raw]) if self._shape else raw

    def _network(self, outputs: list[Any]) -> Network:
        if len(outputs) != 1 or not isinstance(outputs[0], Form):
            raise InputError(f"certify: expected one output that depends on the input, got {len(outputs)} outputs")
        n_inputs = int(torch.Size(self._shape).numel())
        return Network(n_inputs, tuple(self._layers), outputs[0].affine())

    def _looked_up(self, value: Any) -> Any:
        return self._env[value] if isinstance(value, fx.Node) else value

    def _called(self, node: fx.Node) -> Any:
        args, kwargs = tree_map(self._looked_up, (tuple(node.args), dict(node.kwargs)))
        found = [value for value in tree_leaves((args, kwargs)) if isinstance(value, (Form, RowCount))]
        packet = ops.packet_of(node.target)
        if not found:
            return ops.as_float64(node.target(*args, **kwargs))  # type: ignore[operator]
        if packet is torch.ops.aten.sym_size and isinstance(args[0], Form):
            return RowCount() if args[1] == 0 else args[0].shape[args[1] - 1]
        if not any(isinstance(value, Form) for value in found):
            return self._of_sizes(node, packet)
        return self._of_values(node, packet, args, kwargs)

    def _of_sizes(self, node: fx.Node, packet: Any) -> Any:
        """What only checks the number of samples is left out."""
        if packet in {torch.ops.aten._assert_scalar, torch.ops.aten.sym_constrain_range_for_size} or packet in {
            operator.ge, operator.le, operator.gt, operator.lt, operator.eq, torch._check
        }:  # fmt: skip
            return RowCount()
        raise _refusal(node, "computes with the number of samples")

    def _of_values(self, node: fx.Node, packet: Any, args: Any, kwargs: Any) -> Form:
        if packet in ops.RELU:
            return self._relu(node, args[0])
        if packet is torch.ops.aten._assert_tensor_metadata:
            return args[0]
        if packet is operator.getitem and isinstance(args[0], Form) and args[1] == 0:
            return args[0]  # the values of a max pooling, which gives the places too
        pooled = ops.windows_of(node.target, args[1:], args[0].shape) if isinstance(args[0], Form) else None
        if pooled is not None:
            return self._new_value(node, args[0], *pooled)
        if ops.in_training(node.target, args):
            raise _refusal(node, "works as in training")
        if packet in ops.SAME:
            return args[0]
        return self._affine(node, packet, args, kwargs)

    def _affine(self, node: fx.Node, packet: Any, args: Any, kwargs: Any) -> Form:
        forms = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Form)]
        place = _place(packet)
        is_first = len(forms) == 1 and len(args) > place and isinstance(args[place], Form)
        if not ops.is_affine(packet, len(forms), is_first):
            raise _refusal(node, "no bound covers it")

        def call(tensors: Any) -> Any:
            left, rows = list(tensors), len(tensors[0])
            given = tree_map(lambda v: left.pop(0) if isinstance(v, Form) else v, (args, kwargs))
            given = tree_map(lambda v: rows if isinstance(v, RowCount) else v, given)
            return node.target(*given[0], **given[1])  # type: ignore[operator]

        try:
            return mapped(call, forms)
        except MixesSamplesError:
            raise _refusal(node, "does not keep the samples of a batch apart") from None

    def _relu(self, node: fx.Node, form: Form) -> Form:
        return self._new_value(node, form, None, form.shape)

    def _new_value(self, node: fx.Node, form: Form, windows: np.ndarray | None, shape: tuple[int, ...]) -> Form:
        name = _label(node)
        _check_size(name, int(form.bias.numel()))
        self._layers.append(Layer(form.affine(), windows, name))
        return variable(len(self._layers), shape)


def _place(packet: Any) -> int:
    """Which argument the values come in by."""
    return 1 if packet is torch.ops.aten.addmm else 0


def _attribute(module: fx.GraphModule, target: str) -> Any:
    *path, name = target.split(".")
    return getattr(module.get_submodule(".".join(path)), name)


def _label(node: fx.Node) -> str:
    return f"{operator_name(node.target)} ({node.name})"


def _refusal(node: fx.Node, why: str) -> InputError:
    where = source_line(node)
    return InputError(f"certify: operator {_label(node)}{f' at {where}' if where else ''}: {why}: expected {_COVERED}")


def _check_same(network: Network, module: fx.GraphModule, shape: tuple[int, ...], how: Normalization) -> None:
    """Raise InternalError unless the network computes what the program does, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, *shape, generator=generator, dtype=torch.float64) * 2 - 0.5
    with torch.no_grad():
        (want,) = (leaf for leaf in tree_leaves(module(normalize(x, how))) if isinstance(leaf, Tensor))
    got = network(x.flatten(1).T.numpy()).T
    wanted = want.flatten(1).numpy()
    error = float(np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max()))
    if not error <= _AGREEMENT:
        raise InternalError(f"certify: the network differs from its program by {error:.3g}: expected {_AGREEMENT:g}")
