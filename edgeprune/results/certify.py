"""What `edgeprune certify` reports; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["wrong", "attacked", "open", "verified"]


@dataclass(frozen=True, slots=True)
class CertifiedSample:
    """One sample of the test split: by `index`, and what came of it.

    `lower` is what its margin is at least anywhere in the box, `found` the least that the attack met, None where what
    was proved left nothing to attack. A sample that is answered wrongly has neither.
    """

    index: int
    outcome: Outcome
    lower: float | None = None
    found: float | None = None


@dataclass(frozen=True, slots=True)
class SampleDifference:
    """How far both networks are apart around one sample: `bound` at most, `found` in the box, `here` at the sample."""

    index: int
    bound: float
    found: float
    here: float


@dataclass(frozen=True, slots=True)
class CertifyRecord:
    """What was proved of samples; shares are of `n_samples`.

    `clean` is the accuracy, `attacked_at_most` the share that no attack broke (an upper bound on what is robust),
    `verified` the share that is proved (a lower bound). Of removed inputs both count decisions of the dense network,
    right or wrong. `valid_range` says what boxes were clipped to; `n_removed` counts the removed inputs. Of an
    equivalence there are `differences` in the outputs' units, and no shares.
    """

    model: str
    of: str
    data: str
    method: str
    n_samples: int
    valid_range: str
    seconds: float
    seed: int
    eps: float | None = None
    clean: float | None = None
    attacked_at_most: float | None = None
    verified: float | None = None
    samples: tuple[CertifiedSample, ...] = ()
    differences: tuple[SampleDifference, ...] = ()
    n_removed: int | None = None
    n_inputs: int | None = None
    assumed: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def largest_bound(self) -> float | None:
        """The largest difference that is possible around any of the samples."""
        return max((one.bound for one in self.differences), default=None)
