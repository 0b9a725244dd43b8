"""Why units cannot be removed: every cause in one place, the message and what would unlock the units together.

A rule locks with one of these causes, e.g. `analysis.lock(layer, reasons.OUTPUT)`; the message of the lock is then
"OPERATOR TEXT", e.g. "output is the model's output". A rule whose case is its own may pass the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass

_GENERAL = "nothing but another way to write this line"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why units are locked: `text` completes "OPERATOR ..."; `remedy` what `advice` says of it."""

    text: str
    remedy: str = _GENERAL


def advice(remedy: str) -> str:
    """A remedy as a sentence for people, e.g. "nothing unlocks them: it is what the model returns"."""
    for_good = remedy.removeprefix("nothing: ")
    return f"nothing unlocks them: {for_good}" if for_good != remedy else f"to unlock: {remedy}"


def cause_of(told: Cause | str) -> Cause:
    """A cause as it is; a plain text as a cause without advice of its own."""
    return told if isinstance(told, Cause) else Cause(told)


# -- what stays for good ----------------------------------------------------------------------------------------------
OUTPUT = Cause("is the model's output", "nothing: it is what the model returns")
LOOKED_UP = Cause(
    "is looked up by index", "a list of the ids that are used, where the rows are looked up by an input's own ids"
)
FREE_LENGTH = Cause("takes a part of free length", "nothing: any of the rows may be asked for")
FREE_SIZE = Cause(
    "picks positions along a dim of free size",
    "pick the channels along a dim of their own, before they are laid out along the batch",
)
WHOLE_INPUT = Cause("meets the whole input", "nothing: one value for all features needs them all")

LOCKED_BEFORE = Cause("was locked in the network that this one was cut from", "what unlocks it there")
COUPLED_BEFORE = Cause("was one unit with another that is locked, before a cut", "what unlocks that one")

# -- what is not known ------------------------------------------------------------------------------------------------
NO_RULE = Cause(
    "has no rule", "replace the operator by ones that edgeprune knows, or report the operator with the model"
)
NOT_FOLLOWED = Cause(
    "mixes units in a way that is not followed",
    "keep the channels along one dim through the reshapes and permutes before this line",
)
COMPUTED_INDEX = Cause(
    "selects along this dim by an index that is computed",
    "make the index a constant (a buffer), or select along a dim that holds no channels",
)
SEVERAL_INDICES = Cause(
    "selects along this dim by several or computed indices",
    "select along one dim at a time, by a constant index",
)
INDEXED = Cause("is indexed by computed indices", "make the indices constants (buffers)")
COMPUTED_REPEATS = Cause("repeats by a computed count", "make the count a number")

# -- what works on several units together -----------------------------------------------------------------------------
LOCKED_PARTNER = Cause(
    "works on units together with ones that are locked",
    "what unlocks those; channels that meet padding or a constant stay for good",
)
UNPRUNABLE_DIM = Cause(
    "works on units together with a dim that cannot be pruned",
    "make the other operand of this line from layers with as many channels, or let it have size 1 here",
)
TWO_PATTERNS = Cause(
    "mixes units in two different patterns", "join or repeat the channels in the same order on both sides of this line"
)
WHOLE_SLICES = Cause(
    "a unit must fill whole slices along one dim", "view the channels in groups (or heads) of one size only"
)
SINGLE_UNIT = Cause("takes a single unit out of its dim", "read the dim as a whole rather than one index of it")
ONE_UNIT = Cause(
    "is one unit in all, as its elements only go together",
    "nothing: it cannot go as a whole; a convolution shares its weights over all pixels",
)
SINGLE_WRITE = Cause("writes to a single unit of its dim", "write to the dim as a whole rather than to one index of it")
ALL_POSITIONS = Cause(
    "mixes all positions of this dim",
    "nothing where these are pixels or time steps; where they are channels, work on another dim here",
)
ALL_UNITS = Cause(
    "depends on all units of this dim", "reduce over a dim that holds no channels, or take a sum or a mean"
)
NORMALISED = Cause("normalises over this dim", "normalise over a dim that holds no channels")
NOT_ZERO = Cause(
    "sums over units that do not read zero when they are removed",
    "put what makes a removed channel non-zero (a sigmoid, a softmax, an added constant) behind the sum",
)
PACKED = Cause("takes packed sequences", "pad the sequences to one length and leave pack_padded_sequence away")
DIRECTIONS = Cause(
    "holds the states of both directions along this dim", "make the initial states with the units along their last dim"
)
PARTS = Cause("takes real and imaginary parts from this dim", "nothing: a complex number has both")
WINDOWS = Cause("adds up windows", "nothing: these are pixels")
BLOCKS = Cause("takes blocks along this dim", "take the blocks along a dim that holds no channels")
SPREAD = Cause("spreads channels over positions", "nothing for the channels that become pixels; whole blocks can go")
REPEATED = Cause("repeats positions of this dim", "pad with a constant, or along a dim that holds no channels")


def whole_tensor(dim: int | None, name: str) -> Cause:
    """A unit that fills a whole dim of a tensor."""
    return Cause(f"is all there is along dim {dim} of {name}", "nothing: a cut would leave nothing of the tensor")
