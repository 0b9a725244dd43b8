"""ExecuTorch: a .pte file through the XNNPACK partitioner, run in ExecuTorch's own runtime before it is kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.attention_steps import write_out_attention
from edgeprune.export.executorch_runtime import MAX_BYTES, Method, check_installed, executorch_runner, kernels
from edgeprune.export.feeds import arrays_of
from edgeprune.export.fixedsizes import with_fixed_sizes
from edgeprune.export.parity import PARITY_TOLERANCE, Reference, Sample, error_on, quiet
from edgeprune.export.refusals import cannot_express, check_weights, refusal, told_by
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.files import check_new, write_atomically
from edgeprune.graph.drawn import drawn_tensors
from edgeprune.graph.sizes import input_values
from edgeprune.graph.specs import batches_of_one_size, fitted, input_specs
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile
from edgeprune.tasks.task import Task

_N_DRAWN = 7
_RANK_OF_IMAGES = 4


@dataclass(frozen=True, slots=True)
class ExecutorchRuntime:
    """ExecuTorch's own runtime."""

    name: str = "ExecuTorch"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A .pte file for one batch."""
        return Path(write_executorch(program, folder / "draft.pte", batch=batch).path)

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner:
        """See `executorch_runner`."""
        return executorch_runner(file, arrays_of(inputs.program), threads)


@dataclass(frozen=True, slots=True)
class Executorch:
    """ExecuTorch as a target."""

    name: str = "executorch"
    runtime: Runtime | None = ExecutorchRuntime()
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """The one file."""
        return (f"{model}.pte",)

    def check_installed(self) -> None:
        """Raise InputError where ExecuTorch is missing or broken."""
        check_installed()

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "ExecuTorch")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write the file, and say how much of it XNNPACK runs; errors as `write_executorch`."""
        told.stage("write for ExecuTorch and run it")
        inputs = None if material.real is None else material.real.program
        out = material.folder / f"{material.name}.pte"
        made = write_executorch(material.program, out, inputs, batch=material.batch or 1, task=material.answering)
        told.say(made.words)
        return (ExportedFile(made.path, made.size_bytes, made.parity),)


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
    task: Task | None = None,
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
        task: as for `export_onnx`.

    Raises:
        InputError: ExecuTorch is not installed, cannot express the program (names the operator) or cannot run it.
        ParityError: what it computes differs from PyTorch; nothing is written.

    Example: `write_executorch(slim, Path("slim.pte"), images).words`.
    """
    check_installed()
    if out.suffix != ".pte":
        raise InputError(f"{out}: expected a name that ends in .pte")
    check_new(out, force=True, kind="file")
    check_weights(program, "one .pte file", MAX_BYTES, "XNNPACK does not run")
    check_stateless(program, "ExecuTorch")
    samples = Reference(program, task).first(_batches(program, inputs, batch))
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


def _batches(program: ExportedProgram, inputs: Any, batch: int) -> Iterator[Iterator[tuple[torch.Tensor, ...]]]:
    """All rows of the inputs in batches of one size, as they are where no batch is free; several such, best first."""
    specs = input_specs(program)
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    if inputs is not None:
        yield batches_of_one_size(fitted(specs, inputs, "inputs to check the export on"), specs, batch)
        return
    for drawn in drawn_tensors(program, _N_DRAWN):
        yield batches_of_one_size(drawn, specs, batch)


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
    """The program traced again at the sizes of one batch, its attention written out."""
    fixed = with_fixed_sizes(program, batch)
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
        raise InputError(cannot_express("ExecuTorch", [_shown(name) for name in missing]))


def _explain(error: BaseException) -> str:
    """One line that names the operators which ExecuTorch refused."""
    text = "\n".join(told_by(error))
    found = re.findall(r"torch\._ops\.(aten\.[\w.]+) is not in Core ATen", text)
    for name, types in re.findall(r"Operator: <EdgeOpOverload: (aten\.[\w.]+)>.*? with args: {(.*?)}", text):
        found.append(f"{name} on {', '.join(sorted(set(re.findall('torch[.]([a-z0-9]+)', types))))}")
    found += re.findall(r"aten::[\w.]+", text) if "out variant" in text else []
    return refusal(error, "ExecuTorch", sorted({_shown(name) for name in found}))


def _shown(name: str) -> str:
    return name.replace("::", ".")


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
