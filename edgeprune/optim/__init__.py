"""Sparse optimizers: a regulariser is a *grouper* (what vanishes together) and a *prox map* (how it shrinks)."""

from edgeprune.optim.channels import ChannelGroups
from edgeprune.optim.choice import OPTIMIZERS, make
from edgeprune.optim.groupers import Element, Grouper, InputColumn, Kernel, OutputChannel, transposed_weights
from edgeprune.optim.prox import GroupLasso, Lasso, LogPenalty, Prox
from edgeprune.optim.prox_sgd import ProxSGD
from edgeprune.optim.rda import RDA
from edgeprune.optim.rmda import RMDA
from edgeprune.optim.xrda import XRDA

__all__ = [
    "OPTIMIZERS",
    "RDA",
    "RMDA",
    "XRDA",
    "ChannelGroups",
    "Element",
    "GroupLasso",
    "Grouper",
    "InputColumn",
    "Kernel",
    "Lasso",
    "LogPenalty",
    "OutputChannel",
    "Prox",
    "ProxSGD",
    "make",
    "transposed_weights",
]
