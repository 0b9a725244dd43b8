"""What the sparse optimizers share: options, gradients, the binding of groupers, and their state on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph.precision import HALF
from edgeprune.optim.checks import Range, check_options
from edgeprune.optim.groupers import Grouper, Groups, grouper

Params = Iterable[Any]  # tensors, (name, tensor) pairs, or dicts of param groups, as torch.optim takes them
_FLOATS = (*HALF, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One parameter in one step.

    `work` is what is computed on, the parameter itself or, where that is of half precision or not laid out densely, a
    float32 or contiguous copy, which `write_back` then stores. `grad` has its layout and type. `state` is the
    optimizer's.
    """

    param: Tensor
    name: str | None
    work: Tensor
    grad: Tensor
    state: dict[str, Any]
    options: dict[str, Any]

    def tensor(self, key: str, start: Tensor | None = None) -> Tensor:
        """A state tensor shaped and laid out as `work`; zero, or a copy of `start`, at first."""
        value = self.state.get(key)
        if value is None:
            value = torch.zeros_like(self.work) if start is None else start.clone()
        elif value.stride() != self.work.stride():  # the parameter's memory format has been changed
            value = torch.empty_like(self.work).copy_(value)
        self.state[key] = value
        return value

    @property
    def is_rounded(self) -> bool:
        """Whether storing the result rounds it."""
        return self.work.dtype != self.param.dtype

    def write_back(self) -> None:
        """Store the result where it was computed on a copy."""
        if self.work is not self.param:
            self.param.copy_(self.work)


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The jobs whose groups are seen together, and those groups; None for a parameter in no group."""

    jobs: tuple[Job, ...]
    groups: Groups | None
    options: dict[str, Any]


class SparseOptimizer(torch.optim.Optimizer):
    """Checks every option at each step, refuses gradients it cannot use, and saves only plain data.

    A subclass says in `ranges` what its options may be (in `optional` which may be None), in `shaped` which state
    tensors have their parameter's shape (the first of them is there for every parameter), and does its step in
    `_update`.
    """

    ranges: ClassVar[Mapping[str, Range]]
    optional: ClassVar[tuple[str, ...]] = ()
    shaped: ClassVar[tuple[str, ...]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim; options left out are the constructor's.

        Raises:
            InputError: an option out of range, or a parameter that is not of a real floating-point type.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except InputError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Called for each new param group; a subclass adds what it has to know of it."""
        check_options(group, self.ranges, self.optional)
        group["structure"] = grouper(group["structure"])
        for name, param in _named(group):
            if param.dtype not in _FLOATS:
                where = f"parameter {name}" if name else "parameters"
                raise InputError(f"{where}: expected float64, float32, bfloat16 or float16, got {param.dtype}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; with a closure, call it first for the gradients and return its loss.

        Raises:
            InputError: an option was set out of range, or a gradient is sparse. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                check_options(group, self.ranges, self.optional)
            jobs = [[self._job(group, name, param) for name, param in _with_gradient(group)] for group in self._ready()]
            self._update(jobs)
        return loss

    def _ready(self) -> list[dict[str, Any]]:
        """The param groups, when everything about this step has been checked."""
        for group in self.param_groups:
            for name, param in _with_gradient(group):
                grad = param.grad
                assert grad is not None
                if grad.layout is not torch.strided:
                    where = name or f"a parameter {tuple(param.shape)}"
                    raise InputError(f"{where}: expected a dense gradient, got {grad.layout}")
        return self.param_groups

    def _job(self, group: dict[str, Any], name: str | None, param: Tensor) -> Job:
        work = param.detach()
        if param.dtype in HALF or not _dense(param):
            work = param.detach().to(torch.float32 if param.dtype in HALF else param.dtype).contiguous()
            if work.data_ptr() == param.data_ptr():
                work = work.clone()
        grad = param.grad
        assert grad is not None
        if grad.dtype != work.dtype or grad.stride() != work.stride():
            grad = torch.empty_like(work).copy_(grad)
        return Job(param, name, work, grad, self.state[param], group)

    def _update(self, jobs: list[list[Job]]) -> None:
        """Do the step for the jobs of each param group."""
        raise NotImplementedError

    # --- groups

    def _families(self, jobs: Iterable[Job], shared: tuple[str, ...]) -> list[Family]:
        """All jobs, those together whose groups run over several tensors.

        Such a grouper sees the tensors of all param groups at once, which then have to agree in the options `shared`.
        Called before anything moves.
        """
        families: list[Family] = []
        together: dict[int, list[Job]] = {}
        for job in jobs:
            structure = job.options["structure"]
            members = together.setdefault(id(structure), []) if structure.across else [job]
            if not structure.covers(job.name, job.param):
                families.append(Family((job,), None, job.options))
            elif structure.across:
                members.append(job)
            else:
                families.append(Family((job,), self._bind(structure, members), job.options))
        for members in together.values():
            if not members:
                names = [job.name for family in families for job in family.jobs]
                raise InputError(
                    f"structure: expected parameters of the channel graph, got only others, e.g. {names[0]}"
                )
            _check_agree([job.options for job in members], shared)
            options = members[0].options
            families.append(Family(tuple(members), self._bind(options["structure"], members), options))
        return families

    def _bind(self, structure: Grouper, jobs: list[Job]) -> Groups:
        """The groups of these parameters, looked up again only when there are others."""
        cache: dict[tuple[int, ...], tuple[Grouper, Groups]] = self.__dict__.setdefault("_groups_of", {})
        key = (id(structure), *(id(job.param) for job in jobs))
        if key not in cache:
            if len(cache) > 2 * len(self.state):  # other parameters have gradients at every step
                cache.clear()
            cache[key] = (structure, structure.bind([job.name for job in jobs], [job.param for job in jobs]))
        return cache[key][1]

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim; groupers and functions stand there by name, so that it loads with `weights_only=True`."""
        state = super().state_dict()
        groups = [{key: _plain(value) for key, value in group.items()} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of the same optimizer over the same parameters; what follows is the same bit for bit.

        Raises:
            InputError: it is the state of another optimizer, structure or network. Nothing has changed then.
        """
        own = self.param_groups
        saved = _saved_groups(state_dict, own)
        for mine, other in zip(own, saved, strict=True):
            self._check_saved_group(mine, other)
        values = [(param, state) for _, param, state in self._check_saved_state(saved, state_dict["state"])]
        super().load_state_dict(state_dict)
        for mine, loaded in zip(own, self.param_groups, strict=True):
            loaded.update(_objects(mine))
        for param, state in values:  # torch has cast the states of half-precision parameters
            self.state[param] = {
                key: value.to(param.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in state.items()
            }

    def _check_saved_group(self, mine: dict[str, Any], other: dict[str, Any]) -> None:
        missing = sorted(set(mine) - set(other) - {"initial_lr", "param_names"})
        if missing:
            raise InputError(f"optimizer state: expected that of {type(self).__name__}, got one without {missing[0]}")
        for key, value in _objects(mine).items():
            if _plain(value) != other[key]:
                raise InputError(f"optimizer state: expected {key} {_plain(value)}, got {other[key]}")
        check_options(other, self.ranges, self.optional)

    def _check_saved_state(
        self, saved: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]]
    ) -> list[tuple[str, Tensor, dict[str, Any]]]:
        """Name, parameter and state of every parameter that has one."""
        found = []
        for mine, other in zip(self.param_groups, saved, strict=True):
            for (name, param), index in zip(_named(mine), other["params"], strict=True):
                state = states.get(index)
                if not state:  # it never had a gradient
                    continue
                where = name or f"parameter {index}"
                for key in (key for key in self.shaped if key in state or key == self.shaped[0]):
                    _check_shape(where, key, state.get(key), param)
                found.append((where, param, state))
        return found


def _check_shape(where: str, key: str, got: Any, param: Tensor) -> None:
    if not isinstance(got, Tensor) or got.shape != param.shape:
        what = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else "none"
        raise InputError(f"optimizer state of {where}: expected {key} with shape {tuple(param.shape)}, got {what}")


def _saved_groups(state_dict: dict[str, Any], own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The param groups of a state dict, each with as many parameters as the optimizer's own."""
    saved = state_dict.get("param_groups")
    if not isinstance(saved, list) or "state" not in state_dict:
        raise InputError("optimizer state: expected a state dict with state and param_groups")
    counts = [[len(group["params"]) for group in groups] for groups in (own, saved)]
    if counts[0] != counts[1]:
        raise InputError(f"optimizer state: expected param groups of {counts[0]} parameters, got {counts[1]}")
    return saved


def _named(group: dict[str, Any]) -> list[tuple[str | None, Tensor]]:
    names = group.get("param_names") or [None] * len(group["params"])
    return list(zip(names, group["params"], strict=True))


def _with_gradient(group: dict[str, Any]) -> list[tuple[str | None, Tensor]]:
    return [(name, param) for name, param in _named(group) if param.grad is not None and param.numel() > 0]


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in the usual order or with channels last."""
    if tensor.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])


def _plain(value: Any) -> Any:
    """An option as a state dict holds it."""
    if isinstance(value, Grouper):
        return value.name
    return "function" if callable(value) else value


def _objects(group: dict[str, Any]) -> dict[str, Any]:
    """The options that a state dict cannot hold."""
    return {key: value for key, value in group.items() if isinstance(value, Grouper) or callable(value)}


def _check_agree(options: list[dict[str, Any]], shared: tuple[str, ...]) -> None:
    for key in shared:
        for other in options:
            if other[key] != options[0][key]:
                raise InputError(
                    f"{key}: expected one value in all param groups that share a channel grouper, "
                    f"got {options[0][key]} and {other[key]}"
                )


def group_state(family: Family, key: str, norms: list[Tensor]) -> list[Tensor]:
    """The state tensor of each block of a family, zero at first, kept with the weight that owns the block."""
    assert family.groups is not None
    found = []
    for block, owner, norm in zip(family.groups.blocks, family.groups.owners, norms, strict=True):
        state, name = family.jobs[owner].state, f"{key} {block}".rstrip()
        if name not in state:
            state[name] = torch.zeros_like(norm)
        found.append(state[name])
    return found
