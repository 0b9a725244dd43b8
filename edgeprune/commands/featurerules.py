"""What a compress request says of input features: which always stay, which only go together, what each costs.

And along which dim they are counted, where it says how many stay.
"""

from __future__ import annotations

from edgeprune.data.featuredims import check_counts, differs, said_of_counts
from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import feature_grids
from edgeprune.pruning.feature_prices import priced
from edgeprune.pruning.feature_rules import feature_rules, ruled_features
from edgeprune.records import DataSource, Model
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets
from edgeprune.settings import FeatureRules


def asked_rules(request: CompressRequest, model: Model, data: DataSource | None) -> FeatureRules | None:
    """Which input features always stay, which only go together and what each costs; None where nothing was said.

    Raises:
        InputError: no such features, or nothing where they are chosen.
    """
    options = ("--always-keep", request.always_keep), ("--feature-groups", request.feature_groups)
    asked = " and ".join(option for option, value in (*options, ("--feature-price", request.feature_price)) if value)
    if not asked:
        return None
    _check_choice(request, asked)
    by_input = dict(model.info.input_feature_names or (data.input_feature_names if data else ()))
    alone = model.info.feature_names or (data.feature_names if data else ())
    features = ruled_features(model.program, asked, by_input, alone)
    rules = feature_rules(request.always_keep, request.feature_groups, features.names, features.n_numbered)
    return priced(request.feature_price, rules, features)


def counted_along(
    request: CompressRequest, budgets: Budgets, graph: ChannelGraph, data: DataSource | None
) -> tuple[str, ...]:
    """Along which dim input features go, for the user to be told, where that could be another than is meant.

    Raises:
        InputError: so many are asked for, and the data say that they lie along another dim.
    """
    if data is None or not budgets.features or request.plan is not None:
        return ()
    grids, option = feature_grids(graph.analysis), f"--input-features {request.input_features}"
    if budgets.prune_features:  # no number that could be of something else
        return said_of_counts(data, grids, option) if differs(data, grids) else ()
    check_counts(data, grids, option)
    return said_of_counts(data, grids, option)


def _check_choice(request: CompressRequest, asked: str) -> None:
    """Raise InputError where no input features are chosen."""
    for option, got in (("--plan", request.plan), ("--module", request.module)):
        if got is not None:
            raise InputError(f"{asked}: expected a choice of features, got {option} {got}")
    if request.input_features == "off":
        raise InputError(f"{asked}: expected --input-features auto, a count or a ratio, got off")
