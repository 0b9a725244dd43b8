"""The channel groups that a training works on: those of the network as it is, with what is said of its inputs."""

from __future__ import annotations

import copy

from torch import nn

from edgeprune.data.capturing import captured
from edgeprune.data.featuredims import check_counts
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.graph.inputs import feature_grids
from edgeprune.methods import NEED_GROUPS
from edgeprune.pruning.feature_prices import priced
from edgeprune.pruning.feature_rules import ruled_features
from edgeprune.records import DataSource
from edgeprune.settings import FeatureRules, TrainSettings
from edgeprune.training.placement import device_of, one_float_type


def channel_graph(module: nn.Module, data: DataSource, settings: TrainSettings) -> ChannelGraph | None:
    """The channel groups of the network as it is, which may lie on a GPU; None where nothing asks for them.

    Raises:
        InputError: prices of features that the network has not, or that stay; a count of features that lie along
            another dim than those of the data.
    """
    needed = settings.method in NEED_GROUPS
    if not needed and settings.options.get("structure") != "channel-group":
        return None
    there = module if device_of(module).type == "cpu" else copy.deepcopy(module).to("cpu")
    program = captured(there, data, one_float_type(module))
    graph = analyze(program, inputs=needed, rules=_rules(program, data, settings))
    if needed and "n_features" in settings.options:
        check_counts(data, feature_grids(graph.analysis), f"n_features={settings.options['n_features']}")
    return graph


def _rules(program: Program, data: DataSource, settings: TrainSettings) -> FeatureRules | None:
    text = settings.options.get("feature_price")
    if text is None:
        return None
    if settings.options.get("input_features") == "off":
        raise InputError("--feature-price: expected input features that may go, got --input-features off")
    features = ruled_features(program, "--feature-price", dict(data.input_feature_names), data.feature_names)
    return priced(text, FeatureRules(), features)
