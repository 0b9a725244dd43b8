"""ExecuTorch: a .pte file through the XNNPACK partitioner, run in ExecuTorch's own runtime before it is kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.attention_steps import write_out_attention
from edgeprune.export.executorch_runtime import MAX_BYTES, Method, check_installed, kernels
from edgeprune.export.parity import PARITY_TOLERANCE, Reference, Sample, error_on, quiet
from edgeprune.export.state import check_stateless
from edgeprune.files import check_new, write_atomically
from edgeprune.graph.capture import reexport
from edgeprune.graph.drawn import drawn_leaves
from edgeprune.graph.sizes import arguments, input_values
from edgeprune.graph.specs import fitted, input_specs

_N_DRAWN = 7
_RANK_OF_IMAGES = 4


@dataclass(frozen=True, slots=True)
class ExecutorchFile:
    """A written .pte file that was run.

    `parity` is the largest absolute error against PyTorch; `batch` is the only batch that the file takes. `delegated`
    and `portable` count the operators that XNNPACK runs, in `n_partitions` parts, and those that are left to
    ExecuTorch's portable kernels, e.g. `(("linear", 3),)`.
    """

    path: str
    size_bytes: int
    parity: float
    batch: int
    n_partitions: int
    delegated: tuple[tuple[str, int], ...]
    portable: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Fraction of the operators that XNNPACK runs, in [0, 1]."""
        n_delegated, n_portable = (sum(number for _, number in part) for part in (self.delegated, self.portable))
        return n_delegated / max(1, n_delegated + n_portable)

    @property
    def words(self) -> str:
        """E.g. `XNNPACK runs 8 of 9 operators in 1 partition; embedding (1) stays portable; batch fixed at 1`."""
        n_delegated, n_portable = (sum(number for _, number in part) for part in (self.delegated, self.portable))
        total = n_delegated + n_portable
        number = f"{n_delegated or 'none'} of" if n_portable or total == 1 else "all"
        said = f"XNNPACK runs {number} {total} operator{'s' * (total != 1)}"
        if n_delegated:
            said += f" in {self.n_partitions} partition{'s' * (self.n_partitions > 1)}"
        if n_portable:
            named = ", ".join(f"{name} ({count})" for name, count in self.portable)
            said += f"; {named} {'stays' if len(self.portable) == 1 else 'stay'} portable, which is slower"
        return f"{said}; batch fixed at {self.batch}"


def write_executorch(
    program: ExportedProgram,
    out: Path,
    inputs: Any = None,
    *,
    batch: int = 1,
    tolerance: float = PARITY_TOLERANCE,
) -> ExecutorchFile:
    """Write `program` as a .pte file for ExecuTorch, after running it there beside PyTorch.

    XNNPACK wants fixed sizes, so the file takes one batch; other free sizes are those of `inputs`, or of the capture.

    Args:
        program: takes float or integer tensors.
        out: `NAME.pte`; it appears whole or not at all.
        inputs: real inputs `(n, ...)` to check on, array or tensor (a sequence of them for several inputs); all are
            used, the last batch filled with rows from the start. None draws seeded ones.
        batch: the size of every batch, where it is free in `program`.
        tolerance: largest error allowed on any output, times the larger of 1 and the largest output.

    Raises:
        InputError: ExecuTorch is not installed, cannot express the program (names the operator) or cannot run it.
        ParityError: what it computes differs from PyTorch; nothing is written.

    Example: `write_executorch(slim, Path("slim.pte"), images).words`.
    """
    check_installed()
    if out.suffix != ".pte":
        raise InputError(f"{out}: expected a name that ends in .pte")
    check_new(out, force=True, kind="file")
    _check_weights(program)
    check_stateless(program, "ExecuTorch")
    samples = Reference(program).first(_batches(program, inputs, batch))
    lowered = _lowered(_with_fixed_sizes(program, samples[0].inputs))
    parity = _parity(program, lowered.content, samples, out.name, tolerance)
    write_atomically(out, lowered.content)
    return ExecutorchFile(
        str(out),
        len(lowered.content),
        parity,
        _batch_size(program, samples[0].inputs),
        lowered.n_partitions,
        lowered.delegated,
        lowered.portable,
    )


# --- inputs


def _check_weights(program: ExportedProgram) -> None:
    tensors = [*program.state_dict.values(), *(v for v in program.constants.values() if isinstance(v, torch.Tensor))]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > MAX_BYTES:
        raise InputError(f"the weights take {size / 1e9:.2f} GB: one .pte file holds at most {MAX_BYTES / 1e9:.2f} GB")
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors):
        raise InputError("the weights are bfloat16, which XNNPACK does not run: convert with model.float()")


def _batches(program: ExportedProgram, inputs: Any, batch: int) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """All rows of the inputs in batches of one size, as they are where no batch is free; several such, best first."""
    specs = input_specs(program)
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    if inputs is not None:
        candidates: Iterable[Sequence[torch.Tensor]] = [fitted(specs, inputs, "inputs to check the export on")]
    else:
        drawn = drawn_leaves(program, _N_DRAWN)
        candidates = ([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] for leaves in drawn)
    for given in candidates:
        n_rows = max((len(tensor) for tensor, spec in zip(given, specs, strict=True) if spec.batched), default=0)
        if not n_rows:
            yield [tuple(given)]
            continue
        rows = [torch.arange(start, start + batch) % n_rows for start in range(0, n_rows, batch)]
        yield [
            tuple(tensor[chunk] if spec.batched else tensor for tensor, spec in zip(given, specs, strict=True))
            for chunk in rows
        ]


def _batch_size(program: ExportedProgram, batch: Sequence[np.ndarray]) -> int:
    """The first size of the first input with a free batch, or of the first that has any."""
    by_need = sorted(zip(input_specs(program), batch, strict=True), key=lambda pair: not pair[0].batched)
    return next((len(array) for _, array in by_need if array.ndim), 1)


# --- lower


@dataclass(frozen=True, slots=True)
class _Lowered:
    content: bytes
    n_partitions: int
    delegated: tuple[tuple[str, int], ...]
    portable: tuple[tuple[str, int], ...]


def _with_fixed_sizes(program: ExportedProgram, batch: Sequence[np.ndarray]) -> ExportedProgram:
    """The program traced again at the sizes of one batch."""
    args = arguments(program, [torch.from_numpy(array) for array in batch])
    with quiet():
        fixed = reexport(program.module(), args, tuple({} for _ in input_values(program)))
    write_out_attention(fixed)
    return fixed


def _lowered(program: ExportedProgram) -> _Lowered:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    try:
        with quiet(), torch.no_grad():
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner(_operators_for(program))])
            graph_module = edge.exported_program().graph_module
            parts = [part.original_module.graph_module for _, part, _ in get_lowered_submodules(graph_module)]
            delegated, portable = (_counted(graphs) for graphs in (parts, [graph_module]))
            final = edge.to_executorch()
    except Exception as error:  # its passes raise types of their own
        raise InputError(_explain(error)) from error
    _check_kernels(final.exported_program())
    return _Lowered(final.buffer, len(parts), delegated, portable)


def _operators_for(program: ExportedProgram) -> list[Any]:
    """What XNNPACK is offered: all that it says it takes, but for PReLU off images, on which its passes fail (1.5)."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS

    prelus = program.graph.find_nodes(op="call_function", target=torch.ops.aten.prelu.default)
    if all(node.meta["val"].dim() == _RANK_OF_IMAGES for node in prelus):
        return list(ALL_PARTITIONER_CONFIGS)
    return [config for config in ALL_PARTITIONER_CONFIGS if config.target_name != "prelu.default"]


def _counted(graph_modules: Sequence[torch.fx.GraphModule]) -> tuple[tuple[str, int], ...]:
    """Operators by name, the most frequent first; what only hands values on is none."""
    counts = Counter(
        _operator_name(node.target)
        for graph_module in graph_modules
        for node in graph_module.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema")
    )
    del counts["sym_size"]
    return tuple(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _operator_name(target: Any) -> str:
    """E.g. `native_layer_norm` for `aten::native_layer_norm`, `clone` for `dim_order_ops::_clone_dim_order`."""
    name = str(target._schema.name).split("::")[-1].strip("_")
    return name.removesuffix("_copy").removesuffix("_dim_order")


def _check_kernels(program: ExportedProgram) -> None:
    """Refuse a program that calls what the runtime does not have."""
    schemas = [node.target._schema for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    called = {f"{schema.name}.{schema.overload_name}".rstrip(".") for schema in schemas}
    missing = sorted(name for name in called - kernels() if name.startswith("aten::"))
    if missing:
        raise InputError(_cannot(missing))


def _explain(error: BaseException) -> str:
    """One line that names the operators which ExecuTorch refused."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(chain)
    found = re.findall(r"torch\._ops\.(aten\.[\w.]+) is not in Core ATen", text)
    for name, types in re.findall(r"Operator: <EdgeOpOverload: (aten\.[\w.]+)>.*? with args: {(.*?)}", text):
        found.append(f"{name} on {', '.join(sorted(set(re.findall('torch[.]([a-z0-9]+)', types))))}")
    found += re.findall(r"aten::[\w.]+", text) if "out variant" in text else []
    if found:
        return _cannot(sorted({name.replace("aten::", "aten.") for name in found}))
    last = chain[-1].strip().splitlines()
    return f"the program cannot be exported to ExecuTorch: {last[0] if last else type(error).__name__}"


def _cannot(names: Sequence[str]) -> str:
    shown = ", ".join(name.replace("::", ".") for name in names)
    return f"ExecuTorch cannot express {shown}; replace it in the model, or export the part of the model before it"


# --- run


def _parity(program: ExportedProgram, content: bytes, samples: Sequence[Sample], name: str, tolerance: float) -> float:
    """The largest absolute error of the .pte file against PyTorch over all samples."""
    method = Method(content, name)
    flat = input_values(program)
    worst = 0.0
    for sample in samples:
        tensors = iter(torch.from_numpy(np.array(array, order="C")) for array in sample.inputs)
        got = method.run([next(tensors) if isinstance(value, torch.Tensor) else value for value in flat])
        worst = max(worst, error_on(sample, got, f"{name} in ExecuTorch", tolerance))
    return worst
