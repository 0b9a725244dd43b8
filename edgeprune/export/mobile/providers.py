"""What NNAPI and CoreML would take of an ONNX file by onnxruntime, in words.

onnxruntime hands NNAPI (Android) and CoreML (iOS) the parts of a graph that they know; every border between such a
part and the CPU costs a copy. This is the estimate of `python -m onnxruntime.tools.check_onnx_model_mobile_usability`,
which goes by the operators' names and the shapes (CoreML would take free sizes too, slowly; they are not counted);
the phone itself is not asked. NNAPI is legacy: deprecated since Android 15
(https://developer.android.com/ndk/guides/neuralnetworks/migration-guide).
https://onnxruntime.ai/docs/tutorials/mobile/helpers/model-usability-checker.html
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import optimize_model

from edgeprune.errors import InputError
from edgeprune.export.fixed import is_batch_free, with_fixed_batch
from edgeprune.export.mobile.places import named, onnx_operators, places
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import error_reason

_LEGACY = ("NNAPI",)
Verdict = Literal["yes", "maybe", "no"]


@dataclass(frozen=True, slots=True)
class ProviderCheck:
    """What one accelerator would take of a network, by onnxruntime's own estimate.

    `partitions` holds the number of nodes of each part that it takes. `unsupported` counts the nodes whose operator it
    does not know, e.g. `(("Gelu", 3),)`, and `where` has each of these nodes with its layer; `n_free` nodes are left
    out because a size is free, `n_rank` because of too many dims. `caveats` are limits of operators it does take that
    the estimate did not look into. `fixed` is the same check with the batch fixed at 1, where it is free.
    """

    provider: str
    n_nodes: int
    partitions: tuple[int, ...]
    unsupported: tuple[tuple[str, int], ...]
    n_free: int
    n_rank: int
    verdict: Verdict
    caveats: tuple[str, ...]
    where: tuple[tuple[str, str], ...] = ()
    fixed: ProviderCheck | None = None

    @property
    def n_taken(self) -> int:
        """Nodes that the accelerator takes."""
        return sum(self.partitions)

    @property
    def share(self) -> float:
        """Fraction of the nodes that it takes, in [0, 1]."""
        return self.n_taken / self.n_nodes

    @property
    def words(self) -> str:
        """E.g. `CoreML takes 46 of 47 nodes in 2 partitions; Gelu (1: after fc) stays on the CPU: it may work well`."""
        name = f"{self.provider} (legacy: deprecated since Android 15)" if self.provider in _LEGACY else self.provider
        if self.fixed is None:
            return f"{name} takes {_taken(self)}: {_advice(self)}"
        return f"{name} wants a fixed batch; with --batch 1 it takes {_taken(self.fixed)}: {_advice(self.fixed)}"


def check_mobile(path: Path) -> tuple[ProviderCheck, ...]:
    """What NNAPI and CoreML (in both of its formats) would take of an ONNX file.

    Raises:
        InputError: the file cannot be read or optimised by onnxruntime.

    Example: `for check in check_mobile(Path("slim.onnx")): print(check.words)`.
    """
    proto = read_onnx(path)
    checks = _checked(proto, path)
    if not is_batch_free(proto):
        return checks
    fixed = _checked(with_fixed_batch(proto, 1), path)
    return tuple(replace(free, fixed=at_one) for free, at_one in zip(checks, fixed, strict=True))


def _checked(proto: onnx.ModelProto, path: Path) -> tuple[ProviderCheck, ...]:
    ready = _as_the_phone_sees_it(proto, path)
    kinds = [node.op_type for node in ready.graph.node]
    where = list(zip(kinds, places(onnx_operators(ready.graph)), strict=True))
    return tuple(_summary(name, partitions(ready), where) for name, partitions in _PROVIDERS.items())


def as_the_phone_sees_it(path: Path) -> onnx.ModelProto:
    """The network of an ONNX file after onnxruntime's basic optimisations, with a batch of 1 where it is free.

    Raises:
        InputError: as `check_mobile`.
    """
    proto = read_onnx(path)
    return _as_the_phone_sees_it(with_fixed_batch(proto, 1) if is_batch_free(proto) else proto, path)


def _coreml(supported: str) -> Callable[[onnx.ModelProto], Any]:
    return lambda proto: usability_checker.check_coreml_partitions(proto, True, supported)


_PROVIDERS: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "NNAPI": lambda proto: usability_checker.check_nnapi_partitions(proto, True),
    "CoreML (NeuralNetwork)": _coreml("coreml_supported_neuralnetwork_ops.md"),
    "CoreML (MLProgram)": _coreml("coreml_supported_mlprogram_ops.md"),
}


def _as_the_phone_sees_it(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph after onnxruntime's basic optimisations, with every shape that is known."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        given, optimized = Path(folder) / "given.onnx", Path(folder) / "optimized.onnx"
        given.write_bytes(proto.SerializeToString())
        try:
            optimize_model(given, optimized)
        except Exception as error:  # onnxruntime's errors share no base class
            reason = error_reason(error)
            raise InputError(f"{path}: onnxruntime cannot load it: {reason.replace(str(given), path.name)}") from error
        ready = onnx.shape_inference.infer_shapes(onnx.load(optimized, load_external_data=False))
    if not ready.graph.node:
        raise InputError(f"{path}: expected a network, got a graph whose outputs are constants")
    # An optional input that is left out has an empty name; the checker would take it for one of unknown shape.
    ready.graph.value_info.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, ()))
    return ready


def _summary(provider: str, found: Any, where: Sequence[tuple[str, str]]) -> ProviderCheck:
    """The checker's result as a record; `where` has every node's operator and layer."""
    counts = Counter(kind for kind, _ in where)
    names = sorted(name.removeprefix("ai.onnx:") for name in found.unsupported_ops)
    return ProviderCheck(
        provider=provider,
        n_nodes=found.num_nodes,
        partitions=tuple(len(group) for group in found.supported_groups),
        unsupported=tuple((name, counts[name.rsplit(":", 1)[-1]]) for name in names),
        where=tuple(one for one in where if one[0] in {name.rsplit(":", 1)[-1] for name in names}),
        n_free=found.nodes_unsupported_due_to_dynamic_input,
        n_rank=found.num_unsupported_nodes_due_to_rank,
        verdict=_VERDICTS[found.suitability().name],
        caveats=tuple(text.removeprefix("ai.onnx:") for text in found.supported_ops_checker.get_caveats()),
    )


_VERDICTS: dict[str, Verdict] = {"YES": "yes", "MAYBE": "maybe", "NO": "no"}


# --- in words


def _taken(check: ProviderCheck) -> str:
    n_parts = len(check.partitions)
    if not n_parts:
        taken = f"none of {_nodes(check.n_nodes)}"
    else:
        number = "all" if check.n_taken == check.n_nodes else f"{check.n_taken} of"
        taken = f"{number} {_nodes(check.n_nodes)} in {n_parts} partition{'s' * (n_parts > 1)}"
    return "; ".join([taken, *_reasons(check)])


def _reasons(check: ProviderCheck) -> list[str]:
    """What stays on the CPU, and why."""
    stay = "stays" if len(check.unsupported) == 1 else "stay"
    reasons = [f"{named(check.where)} {stay} on the CPU"] if check.where else []
    for number, why in ((check.n_free, "a free size"), (check.n_rank, "too many dims")):
        if number:
            reasons.append(f"{_nodes(number)} with {why} {'stays' if number == 1 else 'stay'} there")
    return reasons


def _advice(check: ProviderCheck) -> str:
    """The verdict as onnxruntime's checker gives it: one part that is large is good, more than two are bad."""
    if check.verdict == "yes":
        return "it should work well there"
    if check.verdict == "maybe":
        return "it may work well there, which only a measurement on the phone tells"
    if len(check.partitions) > 2:
        return "so many copies between it and the CPU cost more than it saves: stay on the CPU"
    return "that is too little to be worth the copies: stay on the CPU"


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
