"""The proof of a cut: the dense network with the removed channels set to zero gives what the slim network gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.data import Inputs
from edgeprune.errors import InputError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.graph.comparison import TOLERANCE, output_types, outputs, relative_error, relative_errors
from edgeprune.graph.decisions import Following, Recording, has_choices
from edgeprune.graph.drawn import drawn_arguments
from edgeprune.graph.faults import public
from edgeprune.graph.precision import arguments_in_float64, float64_by_default, in_float64
from edgeprune.graph.randomness import share_draws
from edgeprune.graph.sizes import arguments, grown_shapes
from edgeprune.graph.specs import fitted, input_specs, output_names
from edgeprune.graph.state import N_STEPS, FromStart, fed_leaves, state_buffers
from edgeprune.graph.tokens import only_kept
from edgeprune.lines import error_reason
from edgeprune.pruning.blocks import gated, without_blocks
from edgeprune.pruning.folding import fold
from edgeprune.pruning.gains import amplified, gains
from edgeprune.pruning.lowrank import joined, product, with_products
from edgeprune.pruning.masked import divisions, masked
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.reach import Reach
from edgeprune.pruning.vocabulary import with_kept_ids

Arguments = tuple[Any, ...]

_BATCH = 3  # another than the example has
_MANY = 32  # rows, where few of them do not reach every part of the network
_CROWD, _CROWD_ELEMENTS = 1024, 2**20  # rows where many do not either, while they hold no more numbers than this
_EXACT = TOLERANCE[torch.float64]


@public("prove")
def prove(program: ExportedProgram, slim: ExportedProgram, plan: PruningPlan, inputs: Any = None) -> float:
    """Check that slim = masked dense, and return the largest relative error over all outputs.

    Where the plan folds constants, the folded network is checked against the dense one too; where it takes out blocks,
    the network without them against the dense one whose blocks give zeros. Where it splits layers in two, the network
    is checked against itself with the product of both layers put in their place, in float64; that one is the masked
    dense network with these products for weights. A network with a state is run over several steps. One that draws
    random numbers as it runs draws the same ones in both, and along units that are cut one number for all of them.
    Inputs that show nothing of the cut are no proof: the outputs must depend on them, and must move with the weights
    that were sliced; where they do not, both networks are compared with larger weights, which let through what an
    untrained network's swallow. Where a vocabulary is cut, it is run on ids that are kept, and the dense network has
    the whole of its tables.

    Args:
        program: the dense program that was cut.
        slim: what `cut` made of it, before any finetuning.
        plan: what was kept.
        inputs: a batch `(batch, ...)` for the first input, a sequence with one for each input, or a dict by their
            names. Others are drawn: random normal numbers, whole numbers over all that the network accepts. A program
            with a free height and width is run at other sizes too.

    Raises:
        InputError: the inputs are not the program's, or hold ids that the plan cuts.
        ProofError: an output differs by more than rounding explains: 1e-5 of its largest number for one that is
            computed in float32, 1e-10 in float64. A difference that float64 does not confirm is rounding, and so is
            the other choice between two equal numbers. Or nothing that the network was run on shows anything, or the
            networks draw random numbers that cannot be the same.
    """
    origin = "drawn; give real ones by prove(..., inputs=...)" if inputs is None else "given"
    candidates = _drawn(program, slim, plan) if inputs is None else _given(program, slim, plan, inputs)
    if inputs is not None:
        _check_kept(program, plan, inputs)
    return _proved(program, slim, plan, candidates, origin)


def prove_on_data(program: ExportedProgram, slim: ExportedProgram, plan: PruningPlan, inputs: Inputs) -> float:
    """`prove` on real inputs `(batch, ...)`, and on drawn ones where those show nothing of the cut."""
    candidates = itertools.chain(_given(program, slim, plan, inputs), _drawn(program, slim, plan))
    return _proved(program, slim, plan, candidates, "the data's")


def _proved(
    program: ExportedProgram,
    slim: ExportedProgram,
    plan: PruningPlan,
    candidates: Iterable[list[Arguments]],
    origin: str,
) -> float:
    origins = []
    if plan.folded:
        origins.append(_Origin.of_folding(program, folded := fold(program)))
        program, plan = folded, replace(plan, folded=False)
    if plan.blocks:
        origins.append(_Origin.of_blocks(program, shallow := without_blocks(program, plan.blocks), plan))
        program, plan = shallow, replace(plan, blocks=())
    if plan.splits:
        origins.append(_Origin.of_splits(slim, whole := joined(slim, plan.splits), plan))
        program, slim, plan = with_products(program, whole, plan), whole, replace(plan, splits=())
    tried: list[list[Arguments]] = []

    def samples() -> Iterator[list[Arguments]]:
        for found in candidates:
            tried.append([with_kept_ids(program, args, plan.vocabularies) for args in found])
            yield tried[-1]

    error, doubts = _shown(_Pair.of(program, slim, plan), samples(), origins)
    if error is None and (by := gains(program, slim)):
        error, _ = _shown(_Pair.of(amplified(program, by), amplified(slim, by), plan), tried, [])
    if error is None:
        raise ProofError(f"no proof: {doubts[0]}; these were {origin}")
    return error


def _shown(
    pair: _Pair, candidates: Iterable[Sequence[Arguments]], origins: Sequence[_Origin]
) -> tuple[float | None, list[str]]:
    """The error on the first samples that show something, and why those before show nothing; None where all do."""
    doubts: list[str] = []
    for samples in candidates:
        try:
            return pair.error(samples, origins), doubts
        except _ShowsNothing as doubt:
            doubts.append(str(doubt))
    return None, doubts


class _ShowsNothing(Exception):
    """The samples are no proof; others may be."""


# -- what both are run on ---------------------------------------------------------------------------------------------


def _taken_by(program: ExportedProgram, slim: ExportedProgram, plan: PruningPlan) -> ExportedProgram:
    """The program whose inputs both networks take: the slim one's, where a state is narrower."""
    return slim if plan.state else program


def _drawn(dense: ExportedProgram, slim: ExportedProgram, plan: PruningPlan) -> Iterator[list[Arguments]]:
    """What to run both networks on, one after the other; several such lists, best first."""
    program = _taken_by(dense, slim, plan)
    n_steps = _n_steps(program, plan)
    for batch in (_BATCH, _MANY, *_crowd(program)):
        steps = [drawn_arguments(program, batch, seed=step) for step in range(n_steps)]
        for *args, grown in zip(*steps, _grown(program, batch), strict=True):
            yield [*args, *grown]


def _crowd(program: ExportedProgram) -> Iterator[int]:
    """How many rows are drawn in the end: of small inputs only, as a wide network's are seen to be told by few."""
    row = max((math.prod(spec.example[1:]) for spec in input_specs(program) if spec.batched), default=_CROWD_ELEMENTS)
    rows = min(_CROWD, _CROWD_ELEMENTS // max(1, row))
    if rows > _MANY:
        yield rows


def _n_steps(program: ExportedProgram, plan: PruningPlan) -> int:
    return N_STEPS if plan.state or state_buffers(program) else 1


def _grown(program: ExportedProgram, batch: int) -> Iterator[list[Arguments]]:
    """For each way of drawing the inputs at other sizes, none where these are fixed."""
    shapes = grown_shapes(program)
    for args in drawn_arguments(program, batch, shapes):
        yield [] if shapes is None else [args]


def _given(dense: ExportedProgram, slim: ExportedProgram, plan: PruningPlan, inputs: Any) -> Iterator[list[Arguments]]:
    """The caller's inputs as arguments, with drawn ones where the first was given alone."""
    program = _taken_by(dense, slim, plan)
    n_steps = _n_steps(program, plan)
    specs, what = input_specs(program), "inputs of the proof"
    alone = isinstance(inputs, Tensor) and len(specs) > 1
    tensors = fitted(specs[:1] if alone else specs, inputs, what)
    batch = next((len(tensor) for tensor, spec in zip(tensors, specs, strict=False) if spec.batched), _BATCH)
    if not alone:
        yield [arguments(program, tensors)] * n_steps + next(_grown(program, batch))
        return
    for args, grown in zip(drawn_arguments(program, batch), _grown(program, batch), strict=True):
        leaves = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        yield [arguments(program, [*tensors, *leaves[1:]])] * n_steps + grown


def _check_kept(program: ExportedProgram, plan: PruningPlan, inputs: Any) -> None:
    """Raise InputError where inputs hold ids that the plan cuts: what the networks make of those differs."""
    specs = input_specs(program)
    alone = isinstance(inputs, Tensor) and len(specs) > 1
    specs = specs[:1] if alone else specs
    for tensor, spec in zip(fitted(specs, inputs, "inputs of the proof"), specs, strict=True):
        one = plan.vocabularies.get(spec.name)
        if one is not None and not torch.equal(only_kept(tensor, one), tensor):
            cut = int(tensor[only_kept(tensor, one) != tensor][0])
            raise InputError(f"inputs of the proof: {spec.name}: expected ids that the plan keeps, got {cut}")


# -- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """The masked dense network and the slim one, and how far each output may be off."""

    program: ExportedProgram
    reference: FromStart
    slim: FromStart
    reach: Reach
    names: Sequence[str]
    types: Sequence[torch.dtype]

    @classmethod
    def of(cls, program: ExportedProgram, slim: ExportedProgram, plan: PruningPlan) -> _Pair:
        """The pair for a cut of a program whose constants are folded already."""
        state = state_buffers(program)
        network = Program.adopt(slim).frozen_module()
        dense = masked(program, plan)
        share_draws(dense, network)
        reach = Reach(program, slim, plan, network)
        fed = fed_leaves(program, plan.state)
        reference = FromStart(dense, state, fed)
        return cls(
            program,
            reference,
            FromStart(network, state, fed),
            reach,
            output_names(program),
            output_types(program.graph),
        )

    def error(self, samples: Sequence[Arguments], origins: Sequence[_Origin]) -> float:
        """The largest relative error of any output over the samples.

        Args:
            samples: what to run both on, one after the other.
            origins: what the program was made of before anything was sliced, which is compared too.

        Raises:
            _ShowsNothing: the dense network fails on them, or they show nothing of the cut.
            ProofError: an error is larger than rounding explains.
        """
        wanted = self._wanted(samples)
        for origin in origins:
            origin.check(samples, self.types)
        got = self.slim.run(samples)
        errors = [relative_errors(a, b) for a, b in zip(wanted, got, strict=True)]
        if not self._is_rounding(errors):
            errors = self._told_from_rounding(samples, errors)
        if not self._is_rounding(errors):
            raise ProofError(self._not_a_number(got) or self._difference(errors))
        doubt = self.reach.doubt(self.slim, samples, got)
        if doubt:
            raise _ShowsNothing(f"on the inputs {doubt}")
        return max((error for of_sample in errors for error in of_sample), default=0.0)

    def _wanted(self, samples: Sequence[Arguments]) -> list[list[Tensor]]:
        """The masked dense network's outputs."""
        try:
            wanted = self.reference.run(samples)
        except Exception as error:  # whatever a network raises on inputs that it does not take
            reason = error_reason(error)
            raise _ShowsNothing(f"the dense network fails on the inputs ({reason})") from error
        if any(bool(torch.isnan(result).any()) for results in wanted for result in results):
            raise _ShowsNothing("the dense network gives NaN on the inputs")
        return wanted

    def _tolerance(self, place: int) -> float:
        """Half precision rounds so much that a wrong cut could hide in it: it is always told by float64."""
        return min(TOLERANCE[self.types[place]], TOLERANCE[torch.float32])

    def _is_rounding(self, errors: Sequence[Sequence[float]]) -> bool:
        return all(error <= self._tolerance(place) for each in errors for place, error in enumerate(each))

    def _not_a_number(self, got: Sequence[Sequence[Tensor]]) -> str | None:
        """What is said where the slim network gives NaN and the reference does not, to which 0 / 0 is 0."""
        places = [place for results in got for place, result in enumerate(results) if bool(result.isnan().any())]
        if not places or not divisions(self.program.graph):
            return None
        where = f" in output {self.names[places[0]]}" if len(self.names) > 1 else ""
        return (
            f"the slim network gives NaN{where} where the dense one does not: it has a division, a root or a logarithm "
            "whose kept units can all be 0, as x / x.norm() after a ReLU; add an epsilon to it, or keep more of the "
            "layers before it"
        )

    def _difference(self, errors: Sequence[Sequence[float]]) -> str:
        pairs = [(error / self._tolerance(place), error, place) for each in errors for place, error in enumerate(each)]
        _, error, place = max(pairs)
        where = f" in output {self.names[place]}" if len(self.names) > 1 else ""
        return (
            f"the slim network is not the masked dense network{where}: expected a relative error of at most "
            f"{self._tolerance(place):g}, got {error:.3g}; this is a defect in the cut, please report it with the model"
        )

    def _told_from_rounding(self, samples: Sequence[Arguments], errors: Sequence[Sequence[float]]) -> list[list[float]]:
        """The errors in float64 where they are small enough for rounding, else the larger of both.

        The slim network chooses as the dense one does where two choices are equally good.
        """
        pair = replace(self, reference=self.reference.in_float64(), slim=self.slim.in_float64())
        told: list[list[float]] = []
        before: tuple[list[Tensor], list[Tensor]] = ([], [])
        for args, coarse in zip(samples, errors, strict=True):
            with float64_by_default():
                before = pair._same_choices(arguments_in_float64(args), *before)
                exact = relative_errors(*before)
            told.append([e if e <= _EXACT else max(c, e) for c, e in zip(coarse, exact, strict=True)])
        return told

    def _same_choices(
        self, args: Arguments, wanted: list[Tensor], got: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of both for one step, after a step that gave others."""
        dense, slim = self.reference.network, self.slim.network
        dense_args, slim_args = self.reference.next_step(args, wanted), self.slim.next_step(args, got)
        if not has_choices(dense):
            return outputs(dense, dense_args), outputs(slim, slim_args)
        recording = Recording(dense)
        wanted = outputs(recording, dense_args)
        return wanted, outputs(Following(slim, list(recording.choices.values()), _EXACT), slim_args)


@dataclass(frozen=True, slots=True, eq=False)
class _Origin:
    """A network and what was made of it that computes the same; `made` and `fault` say what that is, in a refusal.

    Where it `is_exact`, both are in float64.
    """

    before: FromStart
    after: FromStart
    made: str
    fault: str
    is_exact: bool = False

    @classmethod
    def of_folding(cls, program: ExportedProgram, folded: ExportedProgram) -> _Origin:
        """Before and after constants are folded."""
        state = state_buffers(program)
        networks = [Program.adopt(one).frozen_module() for one in (program, folded)]
        share_draws(*networks)
        before, after = (FromStart(network, state) for network in networks)
        return cls(before, after, "with its constants folded is not the dense network", "the folding")

    @classmethod
    def of_blocks(cls, program: ExportedProgram, shallow: ExportedProgram, plan: PruningPlan) -> _Origin:
        """With the gates of blocks closed, and without the blocks."""
        state, fed = state_buffers(program), fed_leaves(program, plan.state)
        networks = gated(program, plan.blocks), Program.adopt(shallow).frozen_module()
        share_draws(*networks)
        before, after = (FromStart(network, state, fed) for network in networks)
        return cls(before, after, "without its blocks is not the dense network with their gates closed", "the cut")

    @classmethod
    def of_splits(cls, slim: ExportedProgram, whole: ExportedProgram, plan: PruningPlan) -> _Origin:
        """With layers in two, and with their products."""
        state, fed = state_buffers(slim), fed_leaves(slim, plan.state)
        networks = [Program.adopt(one).frozen_module() for one in (slim, whole)]
        share_draws(*networks)
        for network in networks:
            in_float64(network)
        for one in plan.splits:
            networks[1].get_parameter(one.weight).data = product(
                slim.state_dict, one
            )  # not rounded to the weights' type
        before, after = (FromStart(network, state, fed) for network in networks)
        return cls(before, after, "with its layers split is not the one with their products", "the split", True)

    def check(self, samples: Sequence[Arguments], types: Sequence[torch.dtype]) -> None:
        """Raise ProofError where they differ by more than rounding."""
        with float64_by_default() if self.is_exact else nullcontext():
            given = [arguments_in_float64(args) for args in samples] if self.is_exact else samples
            pairs = zip(self.before.run(given), self.after.run(given), strict=True)
            error = max(relative_error(*pair) for pair in pairs)
        tolerance = max(_EXACT if self.is_exact else TOLERANCE[dtype] for dtype in types)
        if error > tolerance:
            raise ProofError(
                f"the network {self.made}: expected a relative error of at most {tolerance:g}, got {error:.3g}; this "
                f"is a defect in {self.fault}, please report it with the model"
            )
