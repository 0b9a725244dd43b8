"""Surgery: slice the tensors, rewrite the graph, export again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError, PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.binding import shape_of
from edgeprune.graph.capture import Program, captured_with, own_tensors, reexport, reexport_like
from edgeprune.graph.edit import Edit
from edgeprune.graph.faults import public
from edgeprune.graph.garbage import no_collection
from edgeprune.graph.given import check_untrained
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, Slot, analyze
from edgeprune.graph.inputs import feature_places
from edgeprune.graph.lift import Unlifted, unlifted
from edgeprune.graph.sizes import arguments, free_ranges
from edgeprune.graph.sources import unit_sizes
from edgeprune.graph.specs import input_specs
from edgeprune.pruning.blocks import without_blocks
from edgeprune.pruning.folding import fold
from edgeprune.pruning.lowrank import split
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.precedents import asked_by
from edgeprune.pruning.vocabulary import number_anew, with_kept_ids
from edgeprune.records import InputFeatures

_STORED = ("tensor", "input", "state")
_Masks = dict[tuple[str, str, int | None], np.ndarray]  # (kind, name, dim) -> which indices are kept


@public("cut")
@no_collection()
def cut(program: ExportedProgram, plan: PruningPlan, graph: ChannelGraph | None = None) -> Program:
    """Remove from a program what the plan does not keep, after folding its constants where the plan says so.

    Whole blocks are taken out first, then tensors are sliced; last, layers are split in two by their own weights.

    Input features are removed behind a gather: the result takes the unchanged input.

    Args:
        program: the dense program; left as it is.
        plan: made for this program.
        graph: its analysis, if it is at hand (with `inputs=True` where the plan names inputs and no blocks).

    Raises:
        PlanError: the plan was made for another model, does not fit its shapes, removes what is locked, or removes
            one half of what only goes together; the tensor is named.
        InputError: a module that the program's `.module()` gave has been trained since, see `Program.with_weights`.
    """
    check_untrained(program)
    return split(_narrowed(program, plan, graph), plan.splits)


def _narrowed(program: ExportedProgram, plan: PruningPlan, graph: ChannelGraph | None) -> Program:
    """The program cut, with all of its layers whole."""
    if plan.source_sha256 != digest(program):
        raise PlanError(
            f"the plan was made for another model: expected source_sha256 {digest(program)[:12]}..., "
            f"got {plan.source_sha256[:12]}..."
        )
    if not is_sliced_as_it_is(plan):
        program, graph = before_slices(program, plan), None
    if _slices_nothing(plan):
        return Program.adopt(program)
    if graph is None or graph.analysis.attention != plan.attention or graph.rows.vocabularies != plan.vocabularies:
        graph = analyzed_for(program, plan)
    keep = kept_units(graph, plan)
    ready = graph.analysis.program
    narrower = plan.state.keys() & plan.inputs.keys()
    module = (None if narrower else unlifted(ready)) or Program.adopt(ready).editable_module()
    _slice_tensors(module, graph, plan)
    edit = Edit(module, graph.analysis, keep)
    edit.rewrite()
    number_anew(edit, plan.vocabularies)
    _drop_unused(module)
    own_tensors(module)
    if isinstance(module, fx.GraphModule) and narrower:
        module.recompile()
        return reexport(module, _narrower(program, plan), free_ranges(program))
    return reexport_like(module, _with_kept_ids(ready, plan))


def _slices_nothing(plan: PruningPlan) -> bool:
    """Whether only blocks go and layers are split."""
    return bool(plan.blocks or plan.splits) and not (plan.tensors or plan.inputs or plan.vocabularies)


def is_sliced_as_it_is(plan: PruningPlan) -> bool:
    """Whether the plan slices the dense network itself."""
    return not plan.folded and not plan.blocks


def before_slices(program: ExportedProgram, plan: PruningPlan) -> ExportedProgram:
    """What a plan slices: the dense program with its constants folded and without the blocks that go."""
    program = fold(program) if plan.folded else program
    return _shallower(program, plan) if plan.blocks else program


def _shallower(program: ExportedProgram, plan: PruningPlan) -> Program:
    """The program without the blocks that the plan takes out."""
    if plan.state:
        raise PlanError(f"the plan's blocks: expected none beside a state that is cut, got {plan.blocks[0].name!r}")
    return without_blocks(program, plan.blocks)


def analyzed_for(program: ExportedProgram, plan: PruningPlan) -> ChannelGraph:
    """The analysis of a program that a plan is for.

    Raises:
        PlanError: it cuts a vocabulary whose rows cannot go.
    """
    try:
        return analyze(
            program,
            inputs=plan.has_features,
            attention=plan.attention,
            state=plan.state,
            vocabularies=plan.vocabularies,
            precedents=asked_by(plan),
        )
    except PlanError:
        raise
    except InputError as error:
        raise PlanError(f"the plan's {error}") from error


def _with_kept_ids(program: ExportedProgram, plan: PruningPlan) -> ExportedProgram:
    """The program with an example whose ids are all kept, so that what is cut of it takes the example too."""
    if not plan.vocabularies or program.example_inputs is None:
        return program
    changed = Program.adopt(program)
    changed._example_inputs = (with_kept_ids(program, captured_with(program), plan.vocabularies), {})
    return changed


def _narrower(program: ExportedProgram, plan: PruningPlan) -> tuple[Any, ...]:
    """Example arguments with what is kept of the state."""
    tensors = []
    for spec, tensor in zip(input_specs(program), tree_leaves(captured_with(program)), strict=True):
        kept = plan.inputs.get(spec.name) if spec.name in plan.state else None
        tensors.append(tensor if kept is None else tensor.index_select(kept.dim or 0, torch.tensor(kept.keep)))
    return arguments(program, tensors)


def kept_units(graph: ChannelGraph, plan: PruningPlan) -> np.ndarray:
    """Which units the plan keeps, bool `(n_labels,)`, after checking that it breaks no coupling."""
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    shapes = _known_shapes(graph, plan)
    _check_inputs(graph, plan)
    masks = _input_masks(graph, plan)
    for group, slot in graph.slots():
        mask = _kept_mask(slot, plan, masks)
        if mask is not None:
            keep[group.units[slot.unit[(slot.unit >= 0) & ~mask]]] = False
    for name in plan.inputs.keys() - plan.state.keys():  # features that no layer reads are in no group
        keep[_removed_features(graph, name, masks["input", name, None])] = False
    _check_rows(graph, plan, keep)
    _check_couplings(graph, plan, keep, shapes, masks)
    return keep


def _check_rows(graph: ChannelGraph, plan: PruningPlan, keep: np.ndarray) -> None:
    """Cut the rows of constants, which no plan names; those of the tensors must be the ones of the kept ids."""
    rows = graph.rows
    if dict(rows.vocabularies) != dict(plan.vocabularies):
        raise PlanError("the plan's vocabularies: expected the ids that inputs with a table in common keep together")
    named = np.unique(
        np.concatenate([np.zeros(0, np.int64), *(group.units for group in graph.groups if group.given is not None)])
    )
    wrong = np.flatnonzero((keep[rows.units] != rows.kept) & np.isin(rows.units, named))
    if len(wrong):
        name = next(iter(plan.vocabularies))
        raise PlanError(f"the plan's vocabularies[{name!r}]: expected the rows of its tensors to be those of its ids")
    keep[rows.units] &= rows.kept


def _known_shapes(graph: ChannelGraph, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    tensors = {**graph.analysis.program.constants, **graph.analysis.program.state_dict}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    for name, dims in plan.tensors.items():
        if name not in shapes:
            raise PlanError(f"the plan slices {name!r}, which the model does not have")
        for dim, kept in dims.items():
            if dim >= len(shapes[name]) or kept[-1] >= shapes[name][dim]:
                raise PlanError(
                    f"the plan keeps index {kept[-1]} of dim {dim} of {name!r}: expected it to fit shape {shapes[name]}"
                )
    return shapes


def _kept_mask(slot: Slot, plan: PruningPlan, masks: _Masks) -> np.ndarray | None:
    """Which indices of a slot the plan keeps; None for slots that follow from others."""
    if slot.kind in ("constant", "broadcast"):
        return None
    key = slot.kind, slot.name, slot.dim  # one dim may be in many groups
    if key not in masks:
        masks[key] = _new_mask(slot, plan)
    return masks[key]


def _new_mask(slot: Slot, plan: PruningPlan) -> np.ndarray:
    mask = np.ones(len(slot.unit), dtype=bool)
    if slot.kind == "input":  # those of which some go have masks
        return mask
    if slot.kind == "state":
        features = plan.inputs.get(slot.name)
        return mask if features is None or features.dim != slot.dim else _marked(features)
    assert slot.dim is not None
    kept = plan.tensors.get(slot.name, {}).get(slot.dim)
    if kept is not None:
        mask[:] = False
        mask[list(kept)] = True
    return mask


def _input_masks(graph: ChannelGraph, plan: PruningPlan) -> _Masks:
    """Which units of the inputs that lose features are kept."""
    masks: _Masks = {}
    for node in graph.analysis.program.graph.nodes:
        if node.op == "placeholder" and node.name in plan.inputs.keys() - plan.state.keys():
            features, sizes = plan.inputs[node.name], unit_sizes(node.meta["val"].shape[1:])
            mask = masks["input", node.name, None] = np.zeros(math.prod(sizes), dtype=bool)
            mask[feature_places(sizes, features.dim)[list(features.keep)]] = True
    return masks


def _marked(features: InputFeatures) -> np.ndarray:
    """Which features are kept, bool `(size,)`."""
    kept = np.zeros(features.size, dtype=bool)
    kept[list(features.keep)] = True
    return kept


def _removed_features(graph: ChannelGraph, name: str, kept: np.ndarray) -> np.ndarray:
    """What a plan does not keep of the units of an input, `kept` bool by unit."""
    labels = graph.labels("input", name, None)
    assert labels is not None
    removed = labels[~kept]
    if not removed.all():
        raise PlanError(f"the plan removes features of input {name!r} that are locked: expected it to keep them")
    return removed


def _check_inputs(graph: ChannelGraph, plan: PruningPlan) -> None:
    """The plan's inputs exist, have labels, and are counted along a dim as the model has them."""
    placeholders = {node.name: node for node in graph.analysis.program.graph.nodes if node.op == "placeholder"}
    for name, features in plan.inputs.items():
        if name in plan.state:
            source = graph.analysis.sources.get(("state", name, features.dim))
            if source is None or len(source.ids) != features.size:
                raise PlanError(
                    f"the plan cuts dim {features.dim} of state {name!r} to {len(features.keep)} of "
                    f"{features.size} units, which the model does not have"
                )
            continue
        if ("input", name, None) not in graph.analysis.sources:
            raise PlanError(f"the plan removes features of input {name!r}, of which the model has none to remove")
        shape = shape_of(placeholders[name].meta["val"])
        if _size_along(features.dim, placeholders[name].meta["val"].shape[1:]) != features.size:
            where = "the flattened input" if features.dim is None else f"dim {features.dim}"
            raise PlanError(
                f"the plan counts {features.size} features over {where} of input {name!r}: "
                f"expected them to fit its shape {('batch', *shape[1:])}"
            )


def _size_along(dim: int | None, sizes: Sequence[Any]) -> int | None:
    """How many features an input of these sizes, None or symbolic where free, has along a dim; None where no units."""
    units = unit_sizes(sizes)
    if dim is None:
        return math.prod(units) if all(isinstance(size, int) for size in sizes) else None
    return units[dim - 1] if dim <= len(units) and isinstance(sizes[dim - 1], int) else None


def _check_couplings(
    graph: ChannelGraph, plan: PruningPlan, keep: np.ndarray, shapes: dict[str, tuple[int, ...]], masks: _Masks
) -> None:
    removed: set[tuple[str, int | None, int]] = set()
    for group, slot in graph.slots():
        mask = _kept_mask(slot, plan, masks)
        if mask is None:
            continue
        wrong = np.flatnonzero((slot.unit >= 0) & mask & ~keep[group.units[slot.unit]])
        if len(wrong):
            raise PlanError(_broken(group, slot, int(wrong[0])))
        names = graph.analysis.tensors.aliases(slot.name)
        gone = np.flatnonzero((slot.unit >= 0) & ~mask).tolist()
        removed.update((name, slot.dim, index) for name in names for index in gone)
    for name, dims in plan.tensors.items():
        for dim, kept in dims.items():
            for index in np.setdiff1d(np.arange(shapes[name][dim]), kept).tolist():
                if (name, dim, index) not in removed:
                    raise PlanError(f"the plan removes index {index} of dim {dim} of {name!r}, which is locked")
    _check_none_is_empty(graph, keep)


def _check_none_is_empty(graph: ChannelGraph, keep: np.ndarray) -> None:
    for group in graph.groups:
        if not keep[group.units].any() and not (group.is_input and graph.features()[0]):
            raise PlanError(
                f"the plan leaves group {group.name!r} empty: expected at least one of {group.n_units} units"
            )


def _broken(group: ChannelGroup, slot: Slot, index: int) -> str:
    others = sorted({_place(other) for other in group.slots if other is not slot and other.kind in _STORED})
    return (
        f"the plan keeps index {index} of {_place(slot)} but removes it elsewhere in group {group.name!r}: "
        f"it goes together with {', '.join(others[:4])}"
    )


def _place(slot: Slot) -> str:
    if slot.kind == "state":
        return f"dim {slot.dim} of state {slot.name!r}"
    return f"input {slot.name!r}" if slot.dim is None else f"dim {slot.dim} of {slot.name!r}"


def _slice_tensors(module: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
    """Replace every sliced parameter and buffer, under its own name; tied ones stay tied."""
    done: set[str] = set()
    for name, dims in plan.tensors.items():
        if name in done:
            continue
        aliases = graph.analysis.tensors.aliases(name) or [name]
        sliced = _sliced(module, name, dims)
        for alias in {name, *aliases}:
            owner, _, attribute = alias.rpartition(".")
            target = module.get_submodule(owner) if owner else module
            setattr(target, attribute, sliced)
            done.add(alias)


def _sliced(module: nn.Module, name: str, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner) if owner else module, attribute)
    data = tensor.detach()
    for dim, kept in dims.items():
        data = data.index_select(dim, torch.tensor(kept))
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _drop_unused(module: fx.GraphModule | Unlifted) -> None:
    """Delete parameters that the graph does not read, e.g. of heads that only training uses; other names stay."""
    names = dict(module.named_parameters(remove_duplicate=False))
    read = {id(names[node.target]) for node in module.graph.nodes if node.op == "get_attr" and node.target in names}
    for name, parameter in names.items():
        if id(parameter) not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def kept_state(graph: ChannelGraph, keep: np.ndarray) -> dict[str, InputFeatures]:
    """What units `keep` (bool by label) leave of every state that they make narrower.

    Raises:
        PlanError: a state would lose indices of several dims.
    """
    kept: dict[str, InputFeatures] = {}
    for (kind, name, dim), source in graph.analysis.sources.items():
        mask = keep[graph.analysis.solver.canonical[source.ids]]
        if kind != "state" or mask.all():
            continue
        if name in kept:
            raise PlanError(f"state {name!r}: expected a cut along one dim, got one along {kept[name].dim} and {dim}")
        kept[name] = InputFeatures(len(mask), tuple(np.flatnonzero(mask).tolist()), dim)
    return kept
