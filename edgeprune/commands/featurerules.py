"""What a compress request says of input features: which always stay, which only go together, what each costs."""

from __future__ import annotations

from edgeprune.errors import InputError
from edgeprune.pruning.feature_prices import priced
from edgeprune.pruning.feature_rules import feature_rules, qualified, ruled_grids
from edgeprune.records import DataSource, Model
from edgeprune.requests import CompressRequest
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
    sizes = {name: len(grid) for name, grid in ruled_grids(model.program, asked).items()}
    by_input = dict(model.info.input_feature_names or (data.input_feature_names if data else ()))
    if len(sizes) > 1:
        rules = feature_rules(request.always_keep, request.feature_groups, qualified(sizes, by_input), 0)
        return priced(request.feature_price, rules, model.program)
    [(name, n_features)] = sizes.items()
    names = by_input.get(name) or model.info.feature_names or (data.feature_names if data else ())
    fitting = names if len(names) == n_features else ()
    rules = feature_rules(request.always_keep, request.feature_groups, fitting, n_features)
    return priced(request.feature_price, rules, model.program, fitting)


def _check_choice(request: CompressRequest, asked: str) -> None:
    """Raise InputError where no input features are chosen."""
    for option, got in (("--plan", request.plan), ("--module", request.module)):
        if got is not None:
            raise InputError(f"{asked}: expected a choice of features, got {option} {got}")
    if request.input_features == "off":
        raise InputError(f"{asked}: expected --input-features auto, a count or a ratio, got off")
