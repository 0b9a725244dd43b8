"""Weights in other people's checkpoints: found by what the architecture calls them, whatever they are wrapped in.

A checkpoint may hold several sets of weights (`state_dict`, `model_ema`, `generator`), nested, with a prefix before
every name (`module.`, `student.backbone.`) and other things beside them. No list of layouts is kept: a mapping and a
prefix are taken where the names that are left, and their shapes, are those of the architecture.

    {"epoch": 3, "ema": {"module.fc.weight": ..., "module.fc.bias": ..., "n_averaged": ...}}
    -> the weights `ema`, prefix `module.`; `n_averaged` lies outside of it and is left out
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.formats.reparametrization import plain_weights

_MAX_NAMED = 3
_MAX_DEPTH = 4
_MAX_MAPPINGS = 1000
_MAX_PREFIXES = 20  # of one mapping, the best ones
# Wrappers of PyTorch that stand anywhere in a name and in no network's own.
_MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGED = ("ema", "swa", "averaged")
_COUNTER = "num_batches_tracked"  # files from before PyTorch 0.4 lack it
_QUANTIZED = re.compile(r"(?:^|\.)(?:_packed_params(?:\..*)?|qweight|qzeros|SCB|weight\.(?:absmax|quant_map))$")


@dataclass(frozen=True, slots=True)
class StateChoice:
    """What the user says of a checkpoint: which of its weights, and patterns of names that are left out."""

    key: str | None = None
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FittedWeights:
    """The weights by the architecture's names, and what the user is to be told of them."""

    state: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """One mapping with one prefix taken off; `problems` are what keeps it from fitting."""

    path: str
    prefix: str
    state: dict[str, Any]
    outside: tuple[str, ...]
    n_matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def label(self) -> str:
        """As `--state-key` takes it, e.g. `ema` or `state_dict.student`."""
        return ".".join(part for part in (self.path, self.prefix.rstrip(".")) if part)

    @property
    def problems(self) -> list[str]:
        return [
            *(f"missing {name}" for name in self.missing),
            *(f"unexpected {name}" for name in self.unexpected),
            *self.wrong,
        ]


def fitted_weights(content: Mapping[str, Any], model: nn.Module, arch: str, choice: StateChoice) -> FittedWeights:
    """The weights in a checkpoint that are those of `model`.

    Averaged weights (`ema`, `swa`) are taken before the others where both fit, as who trains them deploys them; that is
    told. Weights of `torch.nn.utils.prune` are multiplied by their masks, those of weight norm are put together.

    Args:
        content: what was read, of mappings, tensors and plain values.
        model: the architecture, with any weights.
        arch: its name, for messages.
        choice: what the user says.

    Raises:
        InputError: none fits, or several do; says what is missing and what could be left out.
    """
    mappings = list(_mappings(content))
    if not mappings:
        raise _no_tensors(content)
    expected = model.state_dict(keep_vars=True)
    candidates = [one for path, entries in mappings for one in _candidates(path, entries, expected, choice.ignore)]
    _check_patterns(choice.ignore, mappings)
    candidates = _asked(candidates, choice.key)
    complete = _distinct([one for one in candidates if not one.problems])
    if not complete:
        raise _refusal(max(candidates, key=lambda one: (one.n_matched, -len(one.problems))), arch, expected)
    chosen = _chosen(complete)
    return FittedWeights(_filled(chosen.state, expected), _notes(chosen, complete))


def module_in(content: Mapping[str, Any], choice: StateChoice) -> nn.Module | None:
    """The whole network in a checkpoint of pickled objects, as YOLO's are: the averaged one, where there are two.

    Raises:
        InputError: several, of which none is the averaged one, or none of the name that was asked for.
    """
    modules = {name: value for name, value in content.items() if isinstance(value, nn.Module)}
    if not modules:
        return None
    if choice.key is not None:
        if choice.key not in modules:
            raise InputError(f"--state-key: expected one of {_some(list(modules))}, got {choice.key!r}")
        return modules[choice.key]
    preferred = [name for name in modules if _is_averaged(name)] or list(modules)
    if len(preferred) > 1:
        raise InputError(f"expected one network, got {_some(preferred)}; choose by --state-key")
    return modules[preferred[0]]


# -- what is there -------------------------------------------------------------------------------------------------


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that holds a tensor, with its path; the outer ones first."""
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    n_seen = 0
    for _ in range(_MAX_DEPTH):
        inner: list[tuple[str, Mapping[Any, Any]]] = []
        for path, mapping in level:
            entries = {name: value for name, value in mapping.items() if isinstance(name, str)}
            if any(isinstance(value, Tensor) for value in entries.values()):
                yield path, entries
            inner += [
                (f"{path}.{name}" if path else name, value)
                for name, value in entries.items()
                if isinstance(value, Mapping)
            ]
        n_seen += len(level)
        level = inner[: max(0, _MAX_MAPPINGS - n_seen)]


def _no_tensors(content: Mapping[str, Any]) -> InputError:
    if not content:
        return InputError("state_dict: expected tensors by name, got none")
    name, value = next(iter(content.items()))
    return InputError(f"state_dict: expected tensors by name, got a {type(value).__name__} for {str(name)[:80]!r}")


def _candidates(
    path: str, entries: Mapping[str, Any], expected: Mapping[str, Tensor], ignore: Sequence[str]
) -> Iterator[_Candidate]:
    """The mapping with each prefix under which names of the architecture stand, the best first."""
    _check_not_quantized(entries)
    has_module = any("module" in name.split(".") for name in expected)
    named = {_unmarked(name, has_module): value for name, value in _not_ignored(entries, ignore).items()}
    values = plain_weights({name: value for name, value in named.items() if not isinstance(value, Mapping)}, expected)
    for prefix in _prefixes(values, expected):
        inside = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
        outside = tuple(name for name in values if not name.startswith(prefix))
        yield _candidate(path, prefix, _not_ignored(inside, ignore), outside, expected)


def _prefixes(values: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """What stands before names of the architecture, most often first; a fitting shape counts twice."""
    counts: Counter[str] = Counter()
    for name, value in values.items():
        for at in _starts(name):
            if name[at:] in expected:
                counts[name[:at]] += 1 + _has_shape(value, expected[name[at:]])
    return [prefix for prefix, _ in counts.most_common(_MAX_PREFIXES)] or [""]


def _candidate(
    path: str, prefix: str, inside: Mapping[str, Any], outside: tuple[str, ...], expected: Mapping[str, Tensor]
) -> _Candidate:
    common = {name: value for name, value in inside.items() if name in expected}
    wrong = tuple(
        _other_shape(name, value, expected[name])
        for name, value in common.items()
        if not _has_shape(value, expected[name])
    )
    missing = _missing(set(common), expected)
    unexpected = tuple(name for name, value in inside.items() if name not in common and isinstance(value, Tensor))
    return _Candidate(path, prefix, common, outside, len(common) - len(wrong), missing, unexpected, wrong)


def _has_shape(value: Any, expected: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == expected.shape


def _other_shape(name: str, value: Any, expected: Tensor) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} for {name!r}"
    return f"{name} {list(value.shape)} instead of {list(expected.shape)}"


def _not_ignored(values: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not any(fnmatchcase(name, one) for one in patterns)}


def _starts(name: str) -> list[int]:
    """Where a prefix may end, e.g. 0, 7 and 10 in `module.fc.weight`."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _unmarked(name: str, has_module: bool) -> str:
    """Without the marks of wrappers inside; `backbone.module.fc` is a part that was trained in parallel."""
    for mark in _MARKS:
        name = name.replace(mark, "")
    return name if has_module else re.sub(r"(?<=\.)module\.", "", name)


def _check_patterns(patterns: Sequence[str], mappings: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise InputError for a pattern that fits no name, at whatever prefix: it is a typing error."""
    names = [_unmarked(name, has_module=True) for _, entries in mappings for name in entries]
    for pattern in patterns:
        if not any(fnmatchcase(name[at:], pattern) for name in names for at in _starts(name)):
            raise InputError(f"--ignore-keys: expected a pattern that fits a name of the file, got {pattern!r}")


def _check_not_quantized(entries: Mapping[str, Any]) -> None:
    for name, value in entries.items():
        if _QUANTIZED.search(name) or (isinstance(value, Tensor) and value.is_quantized):
            raise InputError(
                f"state_dict: expected float weights, got those of a quantised network ({name[:80]!r}); give the ones "
                "from before, and quantise what comes out: edgeprune export --int8"
            )


# -- which are taken -----------------------------------------------------------------------------------------------


def _asked(candidates: list[_Candidate], key: str | None) -> list[_Candidate]:
    if key is None:
        return candidates
    wanted = key.rstrip(".")
    fitting = [one for one in candidates if wanted in (one.label, one.path, one.prefix.rstrip("."))]
    if not fitting:
        known = dict.fromkeys(one.label for one in candidates if one.label)
        expected = f"one of {_some(list(known))}" if known else "none, as there is one set of weights"
        raise InputError(f"--state-key: expected {expected}, got {key!r}")
    return fitting


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Each set of weights once, under its first name."""
    found: list[_Candidate] = []
    for one in candidates:
        if not any(all(torch.equal(one.state[name], other.state[name]) for name in one.state) for other in found):
            found.append(one)
    return found


def _chosen(complete: Sequence[_Candidate]) -> _Candidate:
    if len(complete) == 1:
        return complete[0]
    averaged = [one for one in complete if _is_averaged(one.label)]
    plain = [one for one in complete if not _is_averaged(one.label)]
    if len(averaged) == 1 and len(plain) == 1:
        return averaged[0]
    labels = [one.label or "(the outermost)" for one in complete]
    raise InputError(f"state_dict: expected one set of weights that fits, got {_some(labels)}; choose by --state-key")


def _is_averaged(label: str) -> bool:
    parts = re.split(r"[._\-]|(?<=[a-z])(?=[A-Z])", label)
    return any(part.lower() in _AVERAGED for part in parts)


def _notes(chosen: _Candidate, complete: Sequence[_Candidate]) -> tuple[str, ...]:
    notes = []
    others = [one.label or "(the outermost)" for one in complete if one is not chosen]
    if others:
        notes.append(f"--state-key {chosen.label} (averaged weights; --state-key {others[0]} takes the plain ones)")
    if chosen.outside and chosen.prefix:
        where = f"in {chosen.path}, " if chosen.path else ""
        notes.append(f"{where}only what is called {chosen.prefix}* is taken, not {_some(chosen.outside)}")
    return tuple(notes)


# -- whether they fit ----------------------------------------------------------------------------------------------


def _missing(names: set[str], expected: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What is not there under any name: a file may hold a tied weight once, and lack the counters of batch norm."""
    pointers = {expected[name].data_ptr() for name in names}
    return tuple(
        name
        for name, tensor in expected.items()
        if not (name in names or name.endswith(_COUNTER) or (tensor.numel() and tensor.data_ptr() in pointers))
    )


def _filled(state: dict[str, Any], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under every name of the architecture."""
    by_pointer = {expected[name].data_ptr(): value for name, value in state.items() if expected[name].numel()}
    return {
        name: state[name] if name in state else by_pointer.get(tensor.data_ptr(), tensor.detach())
        for name, tensor in expected.items()
    }


def _refusal(best: _Candidate, arch: str, expected: Mapping[str, Tensor]) -> InputError:
    not_tensors = [text for text in best.wrong if text.startswith("a ")]
    if not_tensors:
        return InputError(f"state_dict: expected tensors by name, got {not_tensors[0]}")
    problems = best.problems
    more = f" and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
    where = f" {best.label}" if best.label else ""
    text = f"state_dict{where}: expected the weights of {arch}, got {', '.join(problems[:_MAX_NAMED])}{more}"
    return InputError(text + _hint(best, expected))


def _hint(best: _Candidate, expected: Mapping[str, Tensor]) -> str:
    if best.unexpected and not best.missing and not best.wrong:
        return f"; --ignore-keys {','.join(map(repr, _patterns(best.unexpected)))} leaves out what is no weight of it"
    if not best.n_matched and not best.wrong:
        return f"; the network's names are e.g. {next(iter(expected), 'none')}"
    n_outputs = _outputs(best)
    if n_outputs and not best.missing:
        return f"; the file's last layer has {n_outputs} outputs: has its factory an argument for it, ?num_classes=...?"
    return ""


def _outputs(best: _Candidate) -> int:
    """The outputs of the layer in the file that alone is of another size, else 0."""
    layers = {text.split(" ")[0].rpartition(".")[0] for text in best.wrong}
    sizes = [value.shape[0] for name, value in best.state.items() if name.rpartition(".")[0] in layers and value.dim()]
    return int(sizes[0]) if len(layers) == 1 and len(set(sizes)) == 1 else 0


def _patterns(names: Sequence[str]) -> list[str]:
    """Patterns for --ignore-keys, e.g. `loss.*` for several names below it."""
    groups: dict[str, list[str]] = {}
    for name in names:
        head, dot, _ = name.partition(".")
        start = f"{head}." if dot else f"{head.partition('_')[0]}_" if "_" in head else head
        groups.setdefault(start, []).append(name)
    return [members[0] if len(members) == 1 else f"{start}*" for start, members in groups.items()][:_MAX_NAMED]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
