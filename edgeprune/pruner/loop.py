"""`edgeprune.Pruner`: a training loop of one's own gets ever smaller networks to train; the last one is the result."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgeprune.cost.device import Device
from edgeprune.cost.macs import macs
from edgeprune.cost.widths import told
from edgeprune.errors import InputError
from edgeprune.graph.apply import Applied
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.faults import public
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import count_kept, feature_counts
from edgeprune.graph.sizes import Asked as Sizes
from edgeprune.progress import Progress, Silent
from edgeprune.pruner.asked import asked
from edgeprune.pruner.course import Course
from edgeprune.pruner.lent import Lent
from edgeprune.pruner.measuring import gauge_for, with_device
from edgeprune.pruner.migration import Migrated, Parameters, migrate
from edgeprune.pruner.modules import check_origin, device_of, on_cpu, parameters_of, unwrapped
from edgeprune.pruner.network import Attempt, Cut, Network, analyzed, costs
from edgeprune.pruner.observing import Observed
from edgeprune.pruner.runfolder import Told, save_run
from edgeprune.pruner.state import networks_of, progress_of, state_of
from edgeprune.pruning.plan import PruningPlan
from edgeprune.results import StepRecord


class Pruner:
    """Hands out ever smaller networks for a training loop of one's own, within a budget.

    Each step takes the weights that the module before has learnt, chooses what goes, cuts, and proves the cut. What is
    handed out is an `nn.Module` in training mode, on the device of the one before; it takes any optimizer, autocast,
    torch.compile and DistributedDataParallel. Its parameters are new ones: make an optimizer, or `migrate` the last.

    Example:
        pruner = edgeprune.Pruner(model, images, keep_macs=0.5, steps=4)
        for module in pruner:
            train(module)
        pruner.apply_to(model)
        pruner.save("run/")
    """

    @public("Pruner")
    def __init__(  # noqa: PLR0913 - the public call: every choice has a name and a default
        self,
        model: nn.Module,
        example_inputs: Tensor | Sequence[Any],
        *,
        keep_macs: float | None = None,
        keep_latency: float | str | None = None,
        max_size: int | str | None = None,
        max_ram: int | str | None = None,
        input_features: int | float | str = "off",
        vocabularies: Mapping[str, Iterable[int]] | None = None,
        unknown_ids: Mapping[str, int] | None = None,
        steps: int | None = None,
        schedule: str | Sequence[float] = "geometric",
        criterion: str = "l2",
        device: Device | str | Path | None = None,
        align: int | None = None,
        leave: Collection[str] = (),
        layer_ratios: Mapping[str, float] | None = None,
        appliable: bool = False,
        attention: str = "heads",
        dynamic_size: bool = False,
        dynamic: Mapping[str, Sizes] | None = None,
        seed: int = 0,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Capture the network, and find out whether the budgets can be met.

        Args:
            model: the trained network; left as it was.
            example_inputs: one tensor `(batch, ...)` or the sequence of positional arguments, as for `capture`.
            keep_macs: largest share of the MACs to keep, in (0, 1].
            keep_latency: largest share of the dense network's time, or a time such as "5ms" or "0.5x", in onnxruntime.
            max_size: the most bytes that the ONNX file may have, or a text such as "500kB".
            max_ram: the most bytes that live activations may take for one sample, or a text such as "256kB".
            input_features: "off", "auto" (they compete with the channels), a count or a ratio of those to keep.
            vocabularies: by input, the ids that stay, see `used_ids`; the first step cuts the others' rows of tables.
            unknown_ids: by input, the id that stands for all that are cut, which are an error otherwise.
            steps: how many cuts lead there; 4 where neither they nor a schedule of numbers is given, 1 for ids alone.
            schedule: how what is left falls: "geometric", "linear", "cubic", "one-cycle", or the ways done, (0.5, 1).
            criterion: one of `edgeprune methods` that needs the weights alone; or "taylor", of what `observe` is shown.
            device: a device.json to plan and to foretell the latency by; for a latency, else this machine.
            align, leave, layer_ratios: as for `plan`, of what is left in the end.
            appliable: choose what the class's own forward takes, for `apply_to` and `shrink`.
            attention, dynamic_size, dynamic: as for `analyze` and `capture`.
            seed: of the criterion "random".
            threads: of onnxruntime, where it measures.
            progress: told of the stages.

        Raises:
            InputError: an option is out of range, or the network is compiled or cannot be captured.
            BudgetError: the budgets cannot be met; says what stands in the way.
        """
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._told = progress or Silent()
        choices = asked(
            {
                "keep_macs": keep_macs, "keep_latency": keep_latency, "max_size": max_size, "max_ram": max_ram,
                "input_features": input_features, "vocabularies": vocabularies, "unknown_ids": unknown_ids,
                "steps": steps, "schedule": schedule, "criterion": criterion, "device": device, "align": align,
                "leave": leave, "layer_ratios": layer_ratios, "appliable": appliable, "attention": attention,
                "seed": seed, "threads": threads,
            }
        )  # fmt: skip
        inner = unwrapped(model)
        self._name = type(inner).__name__
        self._dense = capture(*on_cpu(inner, example_inputs), dynamic_size=dynamic_size, dynamic=dynamic)
        self._asked = with_device(choices.on(self._dense), self._dense, self._told)
        self._records: list[StepRecord] = []
        self._moved: Parameters | None = None
        self._is_resumed = False
        self._dense_graph: ChannelGraph | None = None
        self._begin(Network(self._dense), device_of(inner))
        self._dense_graph = self._graph
        self._dense_costs = costs(self._dense, self._graph, self._asked.budgets, self._asked.manner.device)
        self._n_features, self._features = self._graph.n_features, feature_counts(self._graph.analysis)
        self._course = Course(self._asked, self._dense, self._graph, gauge_for(self._asked, self._dense, self._told))
        self._probe()

    def _begin(self, network: Network, device: torch.device) -> None:
        """Stand at a network that nobody has trained or observed yet."""
        self._lent = Lent(network, device)
        self._graph = analyzed(network, self._asked.manner, self._dense_graph)
        self._observed = Observed()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[nn.Module]:
        return self

    def __next__(self) -> nn.Module:
        """The network of the next step, to be trained; after `load_state_dict` first the one that was in training.

        Raises:
            InputError: the module that was handed out cannot be taken back, or nothing was observed for "taylor".
            BudgetError: this step's share cannot be met.
            ProofError: the cut is not the network with the removed channels set to zero.
        """
        resumed, self._is_resumed = self._is_resumed, False
        if not (resumed and self.step):
            if self.step == self.steps:
                raise StopIteration
            self._advance()
        return self.module

    @public("Pruner")
    def _advance(self) -> None:
        """Make the next step, from what the module before has learnt."""
        before = self._lent.parameters
        network = self._lent.taken_back()
        cut = self._next_cut(network)
        self._accept(network, cut)
        self._moved = Parameters(before, parameters_of(self.module, cut.network.program), cut.step.tensors)

    @property
    def step(self) -> int:
        """How many cuts were made."""
        return len(self._records)

    @property
    def steps(self) -> int:
        """How many cuts there are in all."""
        return len(self._asked.ways)

    @property
    def module(self) -> nn.Module:
        """The network to train now: what was handed out last, or the dense one before the first step."""
        return self._lent.module

    @property
    def program(self) -> Program:
        """The exported program as it is now, with what the module has learnt."""
        return self._lent.taken_back().program

    @property
    def plan(self) -> PruningPlan | None:
        """What is kept of the dense network; None before the first step."""
        return self._lent.network.plan

    def _next_cut(self, network: Network) -> Cut:
        """The cut of the next step."""
        number = self.step + 1
        self._told.stage(f"step {number} of {self.steps}: score, cut and prove")
        attempt = self._attempt(network, number, self._asked.is_fed)
        if number == self.steps and self._course.is_measured:
            self._course.land(attempt)
        cut = attempt.cut(self._course.shares_after(number))
        for line in told(cut.step.aligned):
            self._told.say(line)
        return cut

    def _probe(self) -> None:
        """Try the last step on the dense network: a budget that cannot be met is told before anything is trained."""
        attempt = self._attempt(self._lent.network, self.steps, is_fed=False)
        if self._course.is_measured:
            self._course.aim(attempt)
        else:
            attempt.plan(self._course.shares_after(self.steps))

    def _attempt(self, network: Network, number: int, is_fed: bool) -> Attempt:
        """What step `number` cuts; scored by the weights where nothing is fed."""
        manner = self._asked.manner
        if self._asked.is_fed and not is_fed:
            manner = replace(manner, criterion="l2")
        graph = analyzed(network, manner, self._dense_graph)
        return Attempt(
            network,
            manner,
            self._dense_costs,
            self._course.features_after(number, self._n_features),
            self._course.ratios_after(number, graph),
            self._observed.scores() if is_fed else None,
            graph,
            costs(network.program, graph, self._asked.budgets, manner.device),
        )

    def _accept(self, before: Network, cut: Cut) -> None:
        """Stand at what a cut made of the network before, which is the dense one of all plans at the first step."""
        if before.plan is None:
            self._dense = before.program
        features = cut.network.plan.inputs if cut.network.plan is not None else {}
        kept = count_kept(self._features, features) if features else self._n_features
        ratio = macs(cut.network.program) / self._dense_costs["macs"]
        self._begin(cut.network, self._lent.device)
        self._records.append(StepRecord(self.step + 1, ratio, kept, None, True))

    # -- weights come back --------------------------------------------------------------------------------------------

    @public("take")
    def take(self, module: nn.Module) -> None:
        """Take the weights of this module, in the place of the one that was handed out.

        Args:
            module: a copy of it, in a wrapper (torch.compile, AveragedModel) or not; or the class that the Pruner was
                made of, which `apply_to` or `shrink` sliced. Left as it was.

        Raises:
            InputError: it is of an earlier step or another program, of other shapes, or computes something else.
        """
        self._lent.take(module)

    @public("observe")
    def observe(self, module: nn.Module | None = None) -> bool:
        """Let the gradients that the module has now count for the criterion "taylor".

        To be called after `backward()` and before `zero_grad()`; under a gradient scaler after `unscale_`.

        Args:
            module: the class that is trained in place of what was handed out, see `shrink`.

        Returns:
            Whether they count; gradients that are not finite do not.

        Raises:
            InputError: there are no gradients.
        """
        trained = self.module if module is None else unwrapped(module)
        return self._observed.add(self._graph, parameters_of(trained, self._lent.network.program))

    def trains_before(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains parameters of the step before, so that it is to be migrated."""
        known = {id(tensor) for tensor in self._moved.before.values()} if self._moved is not None else set()
        return any(id(tensor) in known for group in optimizer.param_groups for tensor in group["params"])

    @public("migrate")
    def migrate(self, optimizer: Optimizer) -> Migrated:
        """Let an optimizer of the module before train the present one, with its state cut as the parameters are.

        Raises:
            InputError: no step was made, or the optimizer trains none of the parameters of the step before.
        """
        moved = self._moved
        if moved is None or not self.trains_before(optimizer):
            raise InputError(
                "migrate: expected an optimizer of the module before the last step, got one of others; make a new one "
                "of module.parameters()"
            )
        return migrate(optimizer, moved)

    # -- one's own class ----------------------------------------------------------------------------------------------

    @public("shrink")
    def shrink(self, model: nn.Module) -> Applied:
        """Make the next step on one's own class, in place: for a loop or a trainer that cannot do without it.

        Its weights are taken, cut and proved, and the module is sliced. Best planned with `appliable=True`.

        Args:
            model: the network that the Pruner was made of, as the last step left it.

        Raises:
            InputError: it is another network, or compiled, or all steps are made, or a vocabulary is cut.
            ApplyError: its forward has sizes written into it; the module and the Pruner are as they were.
            BudgetError, ProofError: as in the loop.
        """
        model = unwrapped(model)
        if self.step == self.steps:
            raise InputError(f"shrink: expected a step that is left, got all {self.steps} made")
        if self._asked.ids.keep:
            raise InputError(
                "shrink: expected a Pruner without vocabularies, got one whose network numbers ids anew, which the "
                "class does not; iterate over it, then apply edgeprune.slim_contract(pruner.program)"
            )
        check_origin(model, self._lent.network.program)
        trained = replace(self._lent.network, program=self._lent.network.program.with_weights(model))
        before = parameters_of(model, trained.program)
        cut = self._next_cut(trained)
        applied = cut.network.program.apply_to(model)
        self._accept(trained, cut)
        self._moved = Parameters(before, parameters_of(model, cut.network.program), cut.step.tensors)
        return applied

    @public("apply_to")
    def apply_to(self, model: nn.Module) -> Applied:
        """Slice the module that the Pruner was made of, in place, with what was learnt; as `Program.apply_to`.

        Raises:
            ApplyError: its forward has sizes written into it, or a vocabulary was cut; it is left as it was.
        """
        return self._lent.taken_back().program.apply_to(unwrapped(model))

    # -- what comes of it ---------------------------------------------------------------------------------------------

    @public("save")
    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the run folder, as `edgeprune compress` does: slim.pt2, plan.json, run.json and report.html.

        Both networks are run in onnxruntime for it. How well the network does is not measured, and not told.

        Raises:
            InputError: no step was made, the place is taken, or ONNX cannot express the network.
            BudgetError: the file misses a budget, by what was measured; nothing is written.
            ParityError: the file disagrees with PyTorch; nothing is written.
        """
        network = self._lent.taken_back()
        if network.plan is None:
            raise InputError("save: expected a network that was pruned, got none; iterate over the Pruner first")
        told = Told(self._name, self._asked, tuple(self._records), self._seconds, self._told)
        save_run(Path(folder), force, self._dense, network, told)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    @public("state_dict")
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and plain values; for `torch.save`, beside the optimizer's state.

        The weights that the module has now are in it.
        """
        network = self._lent.taken_back()
        return {
            **state_of(self._asked, self._dense, network),
            "records": [[record.macs_ratio, record.n_features] for record in self._records],
            "goals": self._course.state(),
            "observed": self._observed.state(),
            "seconds": self._seconds,
        }

    @public("load_state_dict")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was made: the loop then hands out the module that was in training, with its weights.

        The Pruner is made as it was before, of a network of the same class; the dense weights are in the state.

        Raises:
            InputError: it is no such state, or of another network or other options.
        """
        dense, network = networks_of(state, self._asked, self._dense)
        progressed = progress_of(state)
        self._dense, self._moved, self._records = dense, None, list(progressed.records)
        self._begin(network, self._lent.device)
        self._course.restore(progressed.goals)
        self._observed = progressed.observed
        self._started, self._seconds_before = time.perf_counter(), progressed.seconds
        self._is_resumed = True
