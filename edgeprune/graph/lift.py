"""An edited graph as an exported program again, without tracing it anew.

An export runs every operator through PyTorch's tracer, which takes several times as long as computing the sizes alone.
An edited graph is made of the same operators already: it only needs its parameters, buffers and constants as inputs,
as an exported program has them, and the sizes of its values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode, disable_fake_tensor_cache
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from edgeprune.graph.copies import copied_graph

_PREFIX = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_", InputKind.CONSTANT_TENSOR: "c_"}
InputSizes = Mapping[str, Sequence[int | torch.SymInt]]
_PLAIN_INPUTS = {InputKind.USER_INPUT, *_PREFIX}


class Unlifted(nn.Module):
    """A graph that reads its tensors by name, and the tensors. It cannot run: no code is made of the graph.

    That is all that surgery and `lifted` need, in a fraction of the time of a program's `.module()`. The tensors are
    the program's: they are to be replaced, and not written to.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.graph = copied_graph(program.graph)
        tensors = {**program.constants, **program.state_dict}
        placeholders = self.graph.find_nodes(op="placeholder")
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.target is None:
                continue
            self._put(spec, tensors[spec.target])
            with self.graph.inserting_before(node):
                read = self.graph.get_attr(spec.target)
            read.meta = node.meta
            node.replace_all_uses_with(read)
            self.graph.erase_node(node)

    def _put(self, spec: InputSpec, tensor: Tensor) -> None:
        *owners, name = str(spec.target).split(".")
        owner: nn.Module = self
        for step in owners:
            if step not in owner._modules:
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        if spec.kind is InputKind.PARAMETER:
            owner.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False))
        elif spec.kind is InputKind.BUFFER:
            owner.register_buffer(name, tensor, persistent=spec.persistent is not False)
        else:
            setattr(owner, name, tensor)


def unlifted(program: ExportedProgram) -> Unlifted | None:
    """The program as surgery edits it; None where the result could not be lifted again."""
    is_whole = not program.graph.find_nodes(op="get_attr")
    return Unlifted(program) if is_whole and _fake_mode(program) and _is_plain(program) else None


def lifted(
    module: fx.GraphModule | Unlifted, program: ExportedProgram, args: tuple[Any, ...], sizes: InputSizes | None = None
) -> ExportedProgram | None:
    """The program that `module` is, which was made of `program` and edited; None where only an export can tell.

    Its inputs and the structure of its outputs are the program's, but for the sizes of inputs that are named. Sizes
    that depend on data, writes to buffers and graphs within the graph take an export.

    Args:
        module: its graph reads every parameter, buffer and constant by name; an `Unlifted` is used up.
        program: what it was made of; left as it was.
        args: example arguments.
        sizes: input name -> its own sizes, those that stay free as they are in the program.
    """
    mode = _fake_mode(program)
    if mode is None or not (_is_plain(program) and _reads_tensors_alone(module)):
        return None
    graph = _own_graph(module)
    specs = [*_tensor_specs(module, program), *_user_specs(program)]
    tensors = {name: _tensor(module, name) for name in (str(spec.target) for spec in specs if spec.target)}
    _make_inputs(graph, specs)
    _know_sizes(graph, mode, _fake_inputs(program, specs, tensors, mode, sizes or {}))
    kept = {spec.target for spec in specs if spec.kind is InputKind.PARAMETER or spec.persistent}
    state = {name: tensor for name, tensor in tensors.items() if name in kept}
    made = ExportedProgram(
        root={},
        graph=graph,
        graph_signature=ExportGraphSignature(specs, _output_specs(graph, program)),
        state_dict=state,
        range_constraints=_ranges(program, graph),
        module_call_graph=_calls(program),
        example_inputs=(args, {}),
        constants={name: tensor.detach() for name, tensor in tensors.items() if name not in state},
        verifiers=program.verifiers,
    )
    made.graph_module.meta.update(program.graph_module.meta)
    return made


def _own_graph(module: fx.GraphModule | Unlifted) -> fx.Graph:
    """The module's graph, to be changed: a copy where the module is used on."""
    graph = module.graph if isinstance(module, Unlifted) else copied_graph(module.graph)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta.pop("follows_train", None)  # a module's own note
    return graph


def _calls(program: ExportedProgram) -> list[ModuleCallEntry]:
    """The modules that the program was made of, and how the whole is called, as an export has them.

    The whole names no values of the graph: those of its outputs are in the graph's signature, and PyTorch renames
    them there alone. What a part took and gave may be gone.
    """
    root, *parts = program.module_call_graph
    signature = replace(root.signature, inputs=[], outputs=[]) if root.signature else None
    return [replace(root, signature=signature), *(replace(part, signature=None) for part in parts)]


def _fake_mode(program: ExportedProgram) -> FakeTensorMode | None:
    """The mode that the program's sizes belong to."""
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    return next((mode for mode in (getattr(value, "fake_mode", None) for value in values) if mode is not None), None)


def _is_plain(program: ExportedProgram) -> bool:
    """Whether the program only computes outputs from its inputs, with sizes that depend on its inputs' sizes alone."""
    signature = program.graph_signature
    return (
        all(spec.kind in _PLAIN_INPUTS for spec in signature.input_specs)
        and all(spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs)
        and not any(node.meta.get("unbacked_bindings") for node in program.graph.nodes)
        and all(size.node.hint is not None for size in _free_sizes(program))
    )


def _free_sizes(program: ExportedProgram) -> list[Any]:
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    sizes: Iterator[Any] = (size for value in values if isinstance(value, Tensor) for size in value.shape)
    return [size for size in sizes if isinstance(size, torch.SymInt)]


def _reads_tensors_alone(module: fx.GraphModule | Unlifted) -> bool:
    """Whether everything that the graph reads by name is a tensor, and every call is an operator's."""
    ops = {node.op for node in module.graph.nodes}
    read = [node for node in module.graph.nodes if node.op == "get_attr"]
    return "call_module" not in ops and all(isinstance(_found(module, str(node.target)), Tensor) for node in read)


def _found(module: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner) if owner else module, attribute)


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = _found(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _tensor_specs(module: fx.GraphModule | Unlifted, program: ExportedProgram) -> list[InputSpec]:
    """What goes in beside the user's inputs: the module's parameters and buffers, and the constants that are read.

    What `program` has already keeps its order, its kind and the name of its input.
    """
    known = {spec.target: spec for spec in program.graph_signature.input_specs if spec.target}
    taken = {spec.arg.name for spec in program.graph_signature.input_specs}
    kinds = _kinds(module)
    specs = [spec for name, spec in known.items() if name in kinds]
    for name, kind in kinds.items():
        if name not in known:
            argument = TensorArgument(_free_name(_PREFIX[kind] + name.replace(".", "_"), taken))
            specs.append(InputSpec(kind, argument, name, True if kind is InputKind.BUFFER else None))
    order = list(_PREFIX)
    return sorted(specs, key=lambda spec: order.index(spec.kind))


def _kinds(module: fx.GraphModule | Unlifted) -> dict[str, InputKind]:
    """What each tensor is that the module holds, or that its graph reads by name."""
    kinds = {name: InputKind.PARAMETER for name, _ in module.named_parameters(remove_duplicate=False)}
    kinds |= {name: InputKind.BUFFER for name, _ in module.named_buffers(remove_duplicate=False)}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            kinds.setdefault(str(node.target), InputKind.CONSTANT_TENSOR)
    return kinds


def _free_name(wanted: str, taken: set[str]) -> str:
    """A name that no other input has; it is taken from then on."""
    names = (wanted if number == 0 else f"{wanted}_{number}" for number in range(len(taken) + 1))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _user_specs(program: ExportedProgram) -> list[InputSpec]:
    return [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]


def _make_inputs(graph: fx.Graph, specs: Sequence[InputSpec]) -> None:
    """Let the graph take every tensor that it reads by name as an input, in the order of `specs`, the user's last."""
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).append(node)
    user_inputs = iter([node for node in graph.nodes if node.op == "placeholder"])
    before = next(iter(graph.nodes))
    replaced: list[fx.Node] = []
    for spec in specs:
        with graph.inserting_before(before):
            made = graph.placeholder(spec.arg.name)
        for node in [next(user_inputs)] if spec.target is None else readers.get(spec.target, []):
            node.replace_all_uses_with(made)
            replaced.append(node)
    for node in replaced:
        graph.erase_node(node)
    for made, spec in zip(graph.find_nodes(op="placeholder"), specs, strict=True):
        made.name = made.target = spec.arg.name  # free only now where it was that of a node that is gone


def _fake_inputs(
    program: ExportedProgram,
    specs: Sequence[InputSpec],
    tensors: Mapping[str, Tensor],
    mode: FakeTensorMode,
    sizes: InputSizes,
) -> list[Any]:
    """What the graph knows of each of its inputs."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    with mode:
        values |= {name: torch.empty(tuple(own), dtype=values[name].dtype) for name, own in sizes.items()}
    return [
        values[spec.arg.name] if spec.target is None else mode.from_tensor(tensors[spec.target], static_shapes=True)
        for spec in specs
    ]


def _know_sizes(graph: fx.Graph, mode: FakeTensorMode, values: Sequence[Any]) -> None:
    """Compute what is known of every value of the graph; conditions on free sizes are those of the traced program."""
    graph._codegen = fx.graph.CodeGen()
    assert mode.shape_env is not None
    owner: Any = nn.Module()  # every tensor is an input: nothing is read by name, and no code is needed
    owner.graph = graph
    # Hardly two calls of a cut graph are alike, and remembering one takes as long as the call.
    with torch.no_grad(), enable_python_dispatcher(), mode.shape_env.suppress_guards(), disable_fake_tensor_cache(mode):
        _SizesOf(owner, mode).propagate_dont_convert_inputs(*values)
    for node, value in zip(graph.find_nodes(op="placeholder"), values, strict=True):
        node.meta["val"] = value  # an argument that is None among them
    graph.output_node().meta.pop("val", None)
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["tensor_meta"] = _extract_tensor_metadata(node.meta["val"])


def _ranges(program: ExportedProgram, graph: fx.Graph) -> dict[Any, Any]:
    """What is known of the free sizes that the graph's inputs still have."""
    values = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    tensors = [value for value in values if isinstance(value, Tensor)]
    left = {symbol for tensor in tensors for size in tensor.shape for symbol in _symbols(size)}
    return {symbol: known for symbol, known in program.range_constraints.items() if symbol in left}


def _symbols(size: int | torch.SymInt) -> set[Any]:
    return set() if isinstance(size, int) else set(size.node.expr.free_symbols)


@contextlib.contextmanager
def suppressing_guards(program: ExportedProgram) -> Iterator[None]:
    """Within it a question about free sizes makes no condition on them."""
    mode = _fake_mode(program)
    env = mode.shape_env if mode is not None else None
    with contextlib.nullcontext() if env is None else env.suppress_guards():
        yield


class _SizesOf(FakeTensorProp):
    """Runs a graph on tensors without contents."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A batch norm's result is as its input: PyTorch would take it apart into twenty operators to find out."""
        if target is torch.ops.aten.batch_norm.default:
            return torch.empty_like(args[0])
        return super().call_function(target, args, kwargs)


def _output_specs(graph: fx.Graph, program: ExportedProgram) -> list[OutputSpec]:
    """The program's outputs under the names that they have in the graph."""
    results = list(graph.output_node().args[0])  # type: ignore[arg-type]
    return [
        replace(spec, arg=replace(spec.arg, name=node.name)) if isinstance(node, fx.Node) else spec
        for spec, node in zip(program.graph_signature.output_specs, results, strict=True)
    ]
