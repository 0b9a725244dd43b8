"""What `inspect` and `profile` report: channel groups, memory, layers; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import TokenRow


@dataclass(frozen=True, slots=True)
class PeakActivations:
    """The most bytes that live values take at once; `at` is the operator, `tensors` are what is there then, by size.

    `is_best` says whether no order of the operators takes less; else it is the best that was found.
    """

    n_bytes: int
    at: str
    tensors: tuple[tuple[str, int], ...]
    is_best: bool


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One row of `edgeprune inspect`: units that stand or fall together.

    `kind` is `channels`, `heads` (of an attention), `features` (of the input) or `locked`; `n_units` counts what can be
    removed one by one; `width` is the number of channels of the layer that makes them; `macs_share` and `params_share`
    are the shares of the network's MACs and parameters that would go with all of them. For locked units `reason` says
    why, beginning with the operator, `where` is the source line that calls it and `remedy` what would unlock them.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    n_units: int
    width: int
    macs_share: float
    exact: bool
    reason: str | None = None
    params_share: float = 0.0
    operator: str | None = None
    where: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class InspectRecord:
    """What `edgeprune inspect` found; `files` are the drawings that it wrote.

    `peak` is the most that live activations take, for one sample, `peak_int8` so with a byte for each float.
    """

    model: str
    macs: int
    params: int
    groups: tuple[GroupRow, ...]
    files: tuple[str, ...] = ()
    tokens: tuple[TokenRow, ...] = ()
    peak: PeakActivations | None = None
    peak_int8: PeakActivations | None = None


@dataclass(frozen=True, slots=True)
class ProfiledKind:
    """What `edgeprune profile` found for one kind of layer.

    `step` is how many channels make a stair; `share` is that of the time of all layers that were measured, `macs_share`
    that of the network's MACs.
    """

    kind: str
    n_layers: int
    step: int
    ms: float
    share: float
    macs_share: float = 0.0


@dataclass(frozen=True, slots=True)
class UnmeasuredLayers:
    """Layers with MACs whose time no profile has, by their operator; `macs_share` is that of the network's MACs."""

    operator: str
    n_layers: int
    macs_share: float


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """What `edgeprune profile` measured and wrote; `ms` is what the measured layers take together, one batch.

    `unmeasured` are the others that have MACs; `is_enough` says whether the network can be planned by the profile.

    `arch` is the architecture that was named, beside a file of weights or, the same as `model`, without one; `data` and
    `task` are what the file has on record.
    """

    model: str
    out: str
    runtime: str
    cpu: str
    threads: int
    batch_size: int
    n_points: int
    ms: float
    kinds: tuple[ProfiledKind, ...]
    seconds: float
    arch: str | None = None
    data: str | None = None
    task: str | None = None
    unmeasured: tuple[UnmeasuredLayers, ...] = ()
    is_enough: bool = True
    input_shape: tuple[int, ...] | None = None

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON, which is about times."""
        return {"data": None, "task": None, "input_shape": None}
