"""Training and evaluation of a network for its task, in one process or in several, with batch norm over all of them."""

from edgeprune.training.evaluation import evaluate, layer_zeros, predict
from edgeprune.training.judging import Judge, outputs_of
from edgeprune.training.loop import fit
from edgeprune.training.placement import float_type, one_float_type, threads_set, weight_type
from edgeprune.training.recalibration import recalibrate
from edgeprune.training.state import StateFile
from edgeprune.training.team import Team

__all__ = [
    "Judge",
    "StateFile",
    "Team",
    "evaluate",
    "fit",
    "float_type",
    "one_float_type",
    "layer_zeros",
    "outputs_of",
    "predict",
    "recalibrate",
    "threads_set",
    "weight_type",
]
