"""What training and scoring can be asked for, by name: one line each, its paper, what it leads to; no torch.

The command line makes its options and its listing of this, and the library checks settings against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeprune.errors import InputError
from edgeprune.lines import one_line

SHARED_WEIGHTS = "shared-weights"  # the method that makes no zeros


@dataclass(frozen=True, slots=True)
class Entry:
    """One optimizer, criterion or schedule.

    `produces` is what becomes zero, or for the other kinds what it is good for; `options` are those that belong to it,
    `defaults` what a method takes where they are left out.
    `sparse` marks an optimizer that sets weights to exact zeros, `needs_data` a criterion that looks at real samples.
    """

    kind: str
    name: str
    summary: str
    paper: str
    produces: str
    options: tuple[str, ...] = ()
    sparse: bool = False
    needs_data: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """An option that belongs to some entries: one of `choices`, a number between `low` and `high`, or a text.

    `whole` is for counts; `form` is what a text looks like.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = math.inf
    low_allowed: bool = False
    high_allowed: bool = True
    whole: bool = False
    form: str = ""

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.form:
            return self.form
        if self.high == math.inf:
            kind = "whole number" if self.whole else "number"
            return f"a {kind} {'of at least' if self.low_allowed else 'above'} {self.low:g}"
        start, end = "[" if self.low_allowed else "(", "]" if self.high_allowed else ")"
        return f"a number in {start}{self.low:g}, {self.high:g}{end}"

    def allows(self, value: Any) -> bool:
        """Whether it is such a value."""
        if self.choices:
            return value in self.choices
        if self.form:
            return isinstance(value, str)
        kinds = (int,) if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self._is_within(value)

    def _is_within(self, value: float) -> bool:
        above = value >= self.low if self.low_allowed else value > self.low
        below = value <= self.high if self.high_allowed else value < self.high
        return math.isfinite(value) and above and below


_ANY_ZEROS = "element, kernel, channel, input column or channel group zeros"

_OPTIMIZERS = (
    Entry("optimizer", "adamw", "Adam with decoupled weight decay", "Loshchilov and Hutter, ICLR 2019", "no zeros"),
    Entry(
        "optimizer", "sgd", "stochastic gradient descent with Nesterov momentum", "Sutskever et al., ICML 2013",
        "no zeros", ("momentum",),
    ),
    Entry(
        "optimizer", "xrda", "adaptively weighted l1, averaged: late noise cannot refill zeros",
        "Siegel, Chen, Zhang and Xu, arXiv 2008.09661", _ANY_ZEROS,
        ("lam", "tau", "tau_b", "max_factor", "structure"), sparse=True,
    ),
    Entry(
        "optimizer", "rda", "l1 on the mean of all gradients, from the initial weights; iRDA with restarts",
        "Xiao, JMLR 2010; He, Jia, Xu, Zhang and Zhao, arXiv 1807.04222", _ANY_ZEROS,
        ("lam", "penalty", "head_start", "restarts", "structure"), sparse=True,
    ),
    Entry(
        "optimizer", "rmda", "regularised dual averaging with momentum: structures stay once they are found",
        "Huang and Lee, ICLR 2022", _ANY_ZEROS, ("lam", "penalty", "momentum", "structure"),
        sparse=True,
    ),
    Entry(
        "optimizer", "prox-sgd", "SGD with momentum and the penalty's prox map",
        "Parikh and Boyd, Proximal Algorithms, 2014", _ANY_ZEROS,
        ("lam", "penalty", "momentum", "structure"), sparse=True,
    ),
)  # fmt: skip
_METHODS = (
    Entry(
        "method", "gradual", "those that score lowest go, ever more of them, and stay out", "Zhu and Gupta, 2017",
        "element, kernel, input column or channel group zeros",
        ("sparsity", "criterion", "structure", "prune_schedule", "prune_every"),
        defaults={"sparsity": 0.9, "criterion": "l1", "structure": "element", "prune_schedule": "cubic"},
    ),
    Entry(
        "method", "weight-mom", "weights go whose size has been smallest over the previous steps",
        "Johnson, Tang and Samudrala, arXiv 2208.05970", "element zeros", ("sparsity", "prune_schedule", "prune_every"),
        defaults={"sparsity": 0.9, "prune_schedule": "cubic"},
    ),
    Entry(
        "method", "regrow", "sparse from the first step: some weights go, as many come back elsewhere",
        "Evci et al. (RigL), ICML 2020; Mocanu et al. (SET), 2018; Dettmers and Zettlemoyer, 2019", "element zeros",
        ("sparsity", "regrow", "prune_every"), defaults={"sparsity": 0.9, "regrow": "gradient"},
    ),
    Entry(
        "method", "n-m", "the forward pass sees the N largest of every M weights (SR-STE)", "Zhou et al., ICLR 2021",
        "N:M sparsity along the inputs", ("n_m",), defaults={"n_m": "2:4"},
    ),
    Entry(
        "method", "halo", "a learned strength of shrinkage for every group", "Seto, Wells and Zhang, SDM 2021",
        _ANY_ZEROS, ("lam", "structure"), defaults={"lam": 0.01, "structure": "element"},
    ),
    Entry(
        "method", "feature-selection", "input features that matter least go while the rest is trained",
        "Induced Feature Selection by Structured Pruning", "input feature zeros",
        ("n_features", "prune_schedule", "prune_every"),
        defaults={"prune_schedule": "cubic"},
    ),
    Entry(
        "method", "shared-budget", "input features and channels go for one budget, at what each saves",
        "Induced Feature Selection by Structured Pruning; Molchanov et al., CVPR 2019",
        "input feature and channel group zeros",
        ("keep_macs", "keep_params", "input_features", "feature_price", "align", "prune_schedule", "prune_every"),
        defaults={"input_features": "auto", "align": 1, "prune_schedule": "cubic"},
    ),
    Entry(
        "method", "gumbel-gates", "gates that learn which channels or input features stay open",
        "Herrmann, Bowen and Zabih, ECCV 2020; Jang, Gu and Poole, ICLR 2017", "channel and input feature zeros",
        ("sparsity", "gates", "prune_schedule"),
        defaults={"sparsity": 0.5, "gates": "channels", "prune_schedule": "cubic"},
    ),
    Entry(
        "method", SHARED_WEIGHTS, "layers' weights are learned mixtures of a few templates",
        "Teterwak et al., WACV 2024, arXiv 2312.01280", "a smaller ONNX file at the same speed", ("templates",),
        defaults={"templates": 8},
    ),
)  # fmt: skip
_TRANSFORMS = (
    Entry(
        "transform", "pcn", "layers, convolutions too, that first project on their inputs' principal components",
        "Waleffe and Rekatsinas, arXiv 2006.13347", "low rank",
    ),
)  # fmt: skip
_SCHEDULES = (
    Entry("schedule", "one-shot", "all at half of the training", "Han et al., NeurIPS 2015", "share of zeros"),
    Entry("schedule", "linear", "evenly from 10 to 75 % of the training", "", "share of zeros"),
    Entry("schedule", "cubic", "fast at first, from 10 to 75 %", "Zhu and Gupta, 2017", "share of zeros"),
    Entry("schedule", "one-cycle", "an S from the first step to the last", "Hubens et al., 2021", "share of zeros"),
)
_CUT_SCHEDULES = (
    Entry("cut-schedule", "one-shot", "one cut, one finetuning", "Han et al., NeurIPS 2015", "a stated cost"),
    Entry(
        "cut-schedule", "one-cycle", "one training that cuts along an S before its epochs, ten times at most",
        "Hubens et al., arXiv 2107.02086", "a stated cost",
    ),
    Entry(
        "cut-schedule", "iterative", "rounds of a fifth of what is left, each with the learning rate rewound",
        "Renda, Frankle and Carbin, ICLR 2020", "a stated cost",
    ),
)  # fmt: skip
# Where each kind is asked for.
ASKED_BY = {
    "optimizer": "edgeprune train --optimizer",
    "method": "edgeprune train --method",
    "transform": "edgeprune.methods.pcn.principal_components",
    "criterion": "edgeprune compress --criterion, edgeprune train --method gradual --criterion",
    "schedule": "edgeprune train --method ... --prune-schedule",
    "cut-schedule": "edgeprune compress --prune-schedule",
    "lr-schedule": "edgeprune train --schedule",
}
_LR_SCHEDULES = (
    Entry("lr-schedule", "cosine", "half a cosine down to 0", "Loshchilov and Hutter, ICLR 2017", "learning rates"),
    Entry("lr-schedule", "step", "halved ten times, at equal distances", "as for xRDA", "learning rates"),
    Entry("lr-schedule", "constant", "the same all the time", "", "learning rates"),
)
_CRITERIA = (
    Entry(
        "criterion", "l1", "l1 norm of a unit's weights, relative to its group", "Li et al., ICLR 2017",
        "order of channels",
    ),
    Entry(
        "criterion", "l2", "l2 norm of a unit's weights, relative to its group", "Fang et al., CVPR 2023",
        "order of channels",
    ),
    Entry(
        "criterion", "bn-scale", "size of the batch norm scales", "Liu et al., Network Slimming, ICCV 2017",
        "order of channels",
    ),
    Entry(
        "criterion", "taylor", "first-order effect on the loss; needs data", "Molchanov et al., CVPR 2019",
        "order of channels", needs_data=True,
    ),
    Entry(
        "criterion", "outgoing", "first-order effect of what reads a unit, each counted once; needs data",
        "Molchanov et al., CVPR 2019", "order of channels and input features", needs_data=True,
    ),
    Entry(
        "criterion", "lamp", "squared norm over those no smaller: comparable over layers", "Lee et al., ICLR 2021",
        "order of channels",
    ),
    Entry(
        "criterion", "fpgm", "distance from all other filters of the layer", "He et al., CVPR 2019",
        "order of channels",
    ),
    Entry(
        "criterion", "activation", "mean size of what a unit puts out; needs data", "Polyak and Wolf, 2015",
        "order of channels", needs_data=True,
    ),
    Entry("criterion", "random", "uniform random numbers, to be beaten", "", "order of channels"),
)  # fmt: skip

ENTRIES: tuple[Entry, ...] = (
    *_OPTIMIZERS,
    *_METHODS,
    *_TRANSFORMS,
    *_CRITERIA,
    *_SCHEDULES,
    *_CUT_SCHEDULES,
    *_LR_SCHEDULES,
)


def names(kind: str) -> tuple[str, ...]:
    """The names of all entries of a kind."""
    return tuple(entry.name for entry in ENTRIES if entry.kind == kind)


STRUCTURES = ("element", "kernel", "channel", "input-column", "channel-group")
PENALTIES = ("group-lasso", "l1", "log")

OPTIONS: Mapping[str, Option] = {
    "lam": Option("Strength of the regularisation."),
    "tau": Option("Time scale of the momentum, in units of the learning rate."),
    "tau_b": Option("Time scale of the weights' history; default: tau."),
    "max_factor": Option("How much harder small weights are pushed than the largest."),
    "momentum": Option("Momentum; of rmda the share that a step moves.", high=1.0, low_allowed=True),
    "penalty": Option("What groups are penalised with.", choices=PENALTIES),
    "head_start": Option("As how many steps the initial weights count; the more, the slower they fade."),
    "restarts": Option(
        "How often training starts anew with the zeros kept: iRDA.", low=0, low_allowed=True, whole=True
    ),
    "structure": Option(
        "What becomes zero together; channel-group: coupled channels over all their layers.", choices=STRUCTURES
    ),
    "sparsity": Option("Share of the weights, groups or gates that are zero at the end.", high=1.0, high_allowed=False),
    "keep_macs": Option("Largest share of the multiply-accumulates (MACs) that is left.", high=1.0),
    "keep_params": Option("Largest share of the parameters that is left.", high=1.0),
    "input_features": Option("Whether input features go too.", choices=("auto", "off")),
    "feature_price": Option(
        "How many times dearer an input is than its arithmetic: one number, or a file of them by feature or group.",
        form="PRICE|FILE, a number above 0 or a .csv or .json of them",
    ),
    "align": Option(
        "Widths are multiples of this where a layer is twice as wide.", low=1, low_allowed=True, whole=True
    ),
    "n_features": Option("How many input features to keep.", low=1, low_allowed=True, whole=True),
    "prune_schedule": Option("How the share of zeros grows.", choices=names("schedule")),
    "prune_every": Option(
        "Steps from one choice to the next; default: a hundredth of the training.", low=1, low_allowed=True, whole=True
    ),
    "criterion": Option("By what those that go are chosen.", choices=names("criterion")),
    "regrow": Option("By what those that come back are chosen.", choices=("gradient", "momentum", "random")),
    "n_m": Option("Of every M inputs in a row at most N are read.", form="N:M, such as 2:4"),
    "gates": Option("What has gates.", choices=("channels", "inputs", "both")),
    "templates": Option(
        "Templates that the weights of layers of one kernel are mixtures of; the fewer, the smaller the file.",
        low=1,
        low_allowed=True,
        whole=True,
    ),
}


# What training does beside its optimizer, see `settings.Recipe`; 0 leaves a thing out.
RECIPE: Mapping[str, Option] = {
    "augment": Option(
        "How images are changed each time they are trained on: crop-flip shifts by an eighth and mirrors; trivial and "
        "rand, TrivialAugment and RandAugment, come on top of it.",
        choices=("none", "crop-flip", "trivial", "rand"),
    ),
    "mixup": Option("Mix each image with another, by shares drawn from Beta(X, X).", low_allowed=True),
    "cutmix": Option(
        "Paste a box of another image into each, its share drawn from Beta(X, X); beside mixup, one of both a batch.",
        low_allowed=True,
    ),
    "label_smoothing": Option(
        "Spread this share of each target over all classes.", high=1.0, low_allowed=True, high_allowed=False
    ),
    "warmup": Option(
        "Epochs in which the learning rate rises. Default: a twentieth of the training.", low_allowed=True
    ),
    "ema": Option(
        "Keep the moving average of the weights with this decay, such as 0.999; less in the first steps.",
        high=1.0, low_allowed=True, high_allowed=False,
    ),
    "clip_norm": Option("Scale gradients whose norm over all weights is larger down to it.", low_allowed=True),
}  # fmt: skip
# What a recipe file may say beside it.
IN_RECIPE_FILES: Mapping[str, Option] = {
    **RECIPE,
    "epochs": Option("Passes over the training set, of train.", low=1, low_allowed=True, whole=True),
    "finetune_epochs": Option("Passes over it after each cut, of compress.", low_allowed=True, whole=True),
    "batch_size": Option("Samples in a batch.", low=1, low_allowed=True, whole=True),
    "optimizer": Option("What steps.", choices=names("optimizer")),
    "lr": Option("Largest learning rate."),
    "weight_decay": Option("Weight decay.", low_allowed=True),
    "schedule": Option("How the learning rate falls.", choices=names("lr-schedule")),
    **{name: OPTIONS[name] for name in OPTIONS if any(name in entry.options for entry in _OPTIMIZERS)},
}


def find(kind: str, name: str) -> Entry:
    """The entry of a name; InputError where there is none."""
    for entry in ENTRIES:
        if (entry.kind, entry.name) == (kind, name):
            return entry
    raise InputError(f"{kind}: expected one of {', '.join(names(kind))}, got {name!r}")


def owners(option: str) -> tuple[str, ...]:
    """The names of those that an option belongs to."""
    return tuple(entry.name for entry in ENTRIES if option in entry.options)


def check_options(options: Mapping[str, Any], chosen: Sequence[Entry]) -> None:
    """Refuse options that belong to none of those that are chosen, or that are out of range.

    Raises:
        InputError: says what it belongs to, or what is expected.
    """
    allowed = [name for entry in chosen for name in entry.options]
    for name in options:
        if name not in OPTIONS:
            raise InputError(f"option {name}: expected one of {', '.join(OPTIONS)}")
        if name not in allowed:
            got = " and ".join(f"{entry.kind} {entry.name}" for entry in chosen)
            raise InputError(f"{name}: belongs to {', '.join(owners(name))}, got {got}")
    check_values(options, OPTIONS)


def check_values(values: Mapping[str, Any], known: Mapping[str, Option]) -> None:
    """Raise InputError where a value is not what its option takes."""
    for name, value in values.items():
        if not known[name].allows(value):
            raise InputError(f"{name}: expected {known[name].expected}, got {one_line(str(value), 60)}")
