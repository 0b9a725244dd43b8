"""`edgeprune certify`: what is proved of a network around samples of its data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgeprune.certify.dropped import dropped_box, removed
from edgeprune.certify.equivalence import Pair
from edgeprune.certify.intervals import Box
from edgeprune.certify.judging import METHODS, Verdict, check_method, judge, margins_of
from edgeprune.certify.network import Network
from edgeprune.certify.ranges import Range, parse_range, valid_range
from edgeprune.certify.reading import read_network
from edgeprune.commands.dense import dense_network
from edgeprune.commands.resolve import model_and_data, task_of
from edgeprune.data import read
from edgeprune.data.inputs import one_tensor
from edgeprune.errors import InputError
from edgeprune.formats.normalizing import with_normalization
from edgeprune.graph.specs import input_specs
from edgeprune.progress import Progress, Silent
from edgeprune.pruning.slim_inputs import gathered
from edgeprune.records import DataSource, InputFeatures, Model
from edgeprune.requests import CertifyRequest, ExportRequest
from edgeprune.results import CertifiedSample, CertifyRecord, SampleDifference
from edgeprune.tasks.classification import Classification
from edgeprune.usercode import running_user_code


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What is certified: raw samples `x` `(n, inputs)` with their classes `y`, and where boxes may lie."""

    request: CertifyRequest
    path: Path
    model: Model
    data: DataSource
    range: Range
    indices: np.ndarray
    x: np.ndarray
    y: np.ndarray
    assumed: tuple[str, ...]


@running_user_code()
def certify(request: CertifyRequest, progress: Progress | None = None) -> CertifyRecord:
    """Prove of samples that nothing near them is answered otherwise, and attack what could not be proved.

    Raises:
        InputError: an option, the model or the data are wrong, or the network has an operator that no bound covers.
    """
    told = progress or Silent()
    _check(request)
    told.stage("load")
    work = _prepared(request, told)
    started = time.monotonic()
    record = _OF[request.of](work, told)
    return _judged(replace(record, seconds=time.monotonic() - started), request)


def _check(request: CertifyRequest) -> None:
    """Raise InputError where what is asked has no meaning."""
    if request.method not in METHODS:
        raise InputError(f"--method: expected one of {', '.join(METHODS)}, got {request.method}")
    if request.samples < 1:
        raise InputError(f"--samples: expected a number of at least 1, got {request.samples}")
    if request.valid_range is not None:
        parse_range(request.valid_range)
    _check_eps(request)
    if request.max_difference is not None and request.of != "equivalence":
        raise InputError("--max-difference: expected --equivalence beside it")
    if request.min_verified is not None and request.of == "equivalence":
        raise InputError("--min-verified: expected no --equivalence, which has no share; --max-difference goes with it")


def _check_eps(request: CertifyRequest) -> None:
    if request.of == "dropped-inputs":
        if request.eps is not None:
            raise InputError("--dropped-inputs: expected no --eps, as removed inputs lie anywhere in their range")
        return
    if request.eps is None:
        raise InputError("--eps: expected how far inputs may move, in the units of the data, such as 0.1; got none")
    if not (math.isfinite(request.eps) and request.eps >= 0):
        raise InputError(f"--eps: expected a number of at least 0, got {request.eps:g}")


def _prepared(request: CertifyRequest, told: Progress) -> _Work:
    path = Path(request.model)
    path = path / "slim.pt2" if path.is_dir() else path
    asked = _as_export(request, path)
    assumed: list[str] = []
    model, data = model_and_data(asked)
    if data is None:
        raise InputError(f"{path}: expected data to take samples of, got none; give --data")
    has_classes = isinstance(task_of(asked, model, data), Classification)
    _check_fits(request, model, data, has_classes)
    model = with_normalization(model, data, request.normalize, assumed.append)
    for note in (*model.notes, *data.notes, *assumed):
        told.say(f"assumed: {note}")
    indices = _drawn(request, data, told)
    ((inputs, targets),) = read(data.test, [torch.from_numpy(indices)])
    x = one_tensor(inputs, "certify").flatten(1).double().numpy()
    y = np.asarray(targets).reshape(len(x), -1)[:, 0] if has_classes else np.zeros(len(x))
    limits = None if request.valid_range is None else parse_range(request.valid_range)
    return _Work(request, path, model, data, valid_range(data, limits), indices, x, y, tuple(assumed))


def _check_fits(request: CertifyRequest, model: Model, data: DataSource, has_classes: bool) -> None:
    specs = input_specs(model.program)
    if len(specs) != 1 or data.inputs:
        got = ", ".join(f"{spec.name} ({str(spec.dtype).removeprefix('torch.')})" for spec in specs)
        raise InputError(f"certify: {request.model}: expected a network with one input of floats, got {got}")
    if request.of != "equivalence" and not has_classes:
        raise InputError(f"certify: data {data.name}: expected a classification, whose decisions are proved")


def _drawn(request: CertifyRequest, data: DataSource, told: Progress) -> np.ndarray:
    """Which samples of the test split are taken, ascending."""
    size = len(data.test)  # type: ignore[arg-type]
    if request.samples > size:
        told.say(f"--samples {request.samples}: the test split has {size:,}, which are taken")
    drawn: np.ndarray = np.sort(np.random.default_rng(request.seed).permutation(size)[: request.samples])
    return drawn


def _as_export(request: CertifyRequest, path: Path) -> ExportRequest:
    """The parts of the request that say which files are read, and how."""
    return ExportRequest(
        str(path),
        data=request.data,
        arch=request.arch,
        input_shape=request.input_shape,
        dense=request.dense,
        unsafe_pickle=request.unsafe_pickle,
        trust_recorded=request.trust_recorded,
    )


def _network(model: Model) -> Network:
    return read_network(model.program, model.info.normalization)


# -- what is proved -----------------------------------------------------------------------------------------------


def _robustness(work: _Work, told: Progress) -> CertifyRecord:
    """No input within eps of a sample that is answered rightly is answered wrongly."""
    eps, network = _eps(work), _network(work.model)
    decisions = network(work.x.T).argmax(axis=0)
    wrong = decisions != work.y
    samples = _verdicts(work, network, decisions, wrong, lambda x: work.range.box(x, eps), told)
    return _with_shares(work, samples, float(1 - wrong.mean()))


def _dropped(work: _Work, told: Progress) -> CertifyRecord:
    """The removed inputs, anywhere in their range, do not change what the dense network decides."""
    features = _removed_features(work)
    network = _network(_dense(work, told))
    gone = removed(features, work.data.input_shape)
    decisions = network(work.x.T).argmax(axis=0)
    nothing_wrong = np.zeros(len(decisions), dtype=bool)
    samples = _verdicts(work, network, decisions, nothing_wrong, lambda x: dropped_box(x, gone, work.range), told)
    record = _with_shares(work, samples, float((decisions == work.y).mean()))
    return replace(record, n_removed=int(gone.sum()), n_inputs=len(gone))


def _equivalence(work: _Work, told: Progress) -> CertifyRecord:
    """How far the outputs of slim and dense are apart anywhere within eps of a sample."""
    eps = _eps(work)
    pair = Pair(_network(_dense(work, told)), _network(work.model))
    check_method(pair.both, work.request.method)
    told.stage(f"bound the difference, {work.request.method}")
    found = []
    for i, x in enumerate(work.x):
        one = pair.difference(x, work.range.box(x, eps), work.request.method, work.request.seed + i)
        found.append(SampleDifference(int(work.indices[i]), one.bound, one.found, one.here))
        told.advance(i + 1, len(work.x), f"at most {max(d.bound for d in found):.4g}")
    return replace(_record(work), differences=tuple(found))


_OF: dict[str, Callable[[_Work, Progress], CertifyRecord]] = {
    "robustness": _robustness,
    "dropped-inputs": _dropped,
    "equivalence": _equivalence,
}


def _eps(work: _Work) -> float:
    assert work.request.eps is not None  # as _check saw to
    return work.request.eps


def _removed_features(work: _Work) -> InputFeatures:
    """The input features that the slim network keeps."""
    features = gathered(work.model.program)
    if features is None or len(features.keep) == features.size:
        raise InputError(
            f"--dropped-inputs: {work.path}: expected a compressed network that removes inputs, got one that reads all"
        )
    return features


def _dense(work: _Work, told: Progress) -> Model:
    """The dense network, with the normalisation that its file, else the slim one, says."""
    asked = _as_export(work.request, work.path)
    notes: list[str] = []

    class _Notes(Silent):
        def say(self, message: str) -> None:
            notes.append(message)

    dense = dense_network(asked, work.path, work.model.info, _Notes())
    if dense is None:
        why = f" ({notes[0]})" if notes else ""
        raise InputError(f"--{work.request.of}: expected the dense network of {work.path}, got none; give --dense{why}")
    own = dense.info.normalization or work.model.info.normalization
    return replace(dense, info=replace(dense.info, normalization=own))


def _verdicts(
    work: _Work,
    network: Network,
    decisions: np.ndarray,
    wrong: np.ndarray,
    box_of: Callable[[np.ndarray], Box],
    told: Progress,
) -> tuple[CertifiedSample, ...]:
    method, seed = work.request.method, work.request.seed
    if network.n_outputs < 2:
        raise InputError(f"{work.path}: expected the scores of at least 2 classes, got {network.n_outputs}")
    check_method(network, method)
    told.stage(f"certify, {method}")
    found: list[CertifiedSample] = []
    n_verified = 0
    for i, x in enumerate(work.x):
        index = int(work.indices[i])
        if wrong[i]:
            found.append(CertifiedSample(index, "wrong"))
        else:
            verdict = judge(network, margins_of(network, int(decisions[i])), box_of(x), method, seed + i)
            found.append(_sample(index, verdict))
        n_verified += found[-1].outcome == "verified"
        told.advance(i + 1, len(work.x), f"{n_verified} verified")
    return tuple(found)


def _sample(index: int, verdict: Verdict) -> CertifiedSample:
    outcome = "verified" if verdict.is_verified else "attacked" if verdict.is_attacked else "open"
    return CertifiedSample(index, outcome, verdict.lower, verdict.found)  # type: ignore[arg-type]


def _record(work: _Work) -> CertifyRecord:
    request = work.request
    return CertifyRecord(
        model=str(work.path),
        of=request.of,
        data=work.data.name,
        method=request.method,
        n_samples=len(work.x),
        valid_range=work.range.words,
        seconds=0.0,
        seed=request.seed,
        eps=request.eps,
        assumed=work.assumed,
    )


def _with_shares(work: _Work, samples: tuple[CertifiedSample, ...], clean: float) -> CertifyRecord:
    n = len(samples)
    verified = sum(sample.outcome == "verified" for sample in samples) / n
    at_most = sum(sample.outcome in {"verified", "open"} for sample in samples) / n
    return replace(_record(work), samples=samples, clean=clean, attacked_at_most=at_most, verified=verified)


def _judged(record: CertifyRecord, request: CertifyRequest) -> CertifyRecord:
    """The record with a sentence for each demand that was missed."""
    failures = []
    if request.min_verified is not None and record.verified is not None and record.verified < request.min_verified:
        failures.append(f"verified: at least {request.min_verified:.1%} asked, got {record.verified:.1%}")
    bound = record.largest_bound
    if request.max_difference is not None and bound is not None and bound > request.max_difference:
        failures.append(f"difference: at most {request.max_difference:g} asked, got a bound of {bound:.4g}")
    return replace(record, failures=tuple(failures))
