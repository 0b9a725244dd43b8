"""Training and evaluation of a classifier, in one process or in several, with batch norm over all of them."""

from edgeprune.training.evaluation import answers, evaluate, layer_zeros, predict
from edgeprune.training.loop import fit
from edgeprune.training.placement import float_type, threads_set
from edgeprune.training.recalibration import recalibrate
from edgeprune.training.state import StateFile
from edgeprune.training.team import Team

__all__ = [
    "StateFile",
    "Team",
    "answers",
    "evaluate",
    "fit",
    "float_type",
    "layer_zeros",
    "predict",
    "recalibrate",
    "threads_set",
]
