"""A search that is stopped after any of its results goes on from there to the same end; see `fakes.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from edgeprune.errors import BudgetError, InputError, ParityError
from edgeprune.journal.journal import Journal
from edgeprune.journal.kept import KeptProber, KeptTrainer, kept_gauge
from edgeprune.journal.place import Place
from edgeprune.records import Evaluation
from edgeprune.search.candidate import Budgets, Found, Measured
from edgeprune.search.descent import Descent
from edgeprune.search.pareto import Front
from edgeprune.search.replay import Replay
from edgeprune.search.schedules import Iterative, OneCycle
from edgeprune.search.shrink import Shrink
from edgeprune.search.strategy import Strategy
from edgeprune.search.trainer import Round
from edgeprune.staging import sole
from edgeprune.tasks.budget import MaxDrop
from edgeprune.units import LatencyLimit
from tests.fakes import FakeTrainer, Net, Plan, Told, falls_below, searched

ASKED = {"network": "a", "seed": 0}


class Stopped(BaseException):
    """As Ctrl-C, after so many results."""


@dataclass
class Counting(FakeTrainer):
    """Counts what it is asked for, over all processes."""

    done: list[str] = field(default_factory=list)

    def finetune(self, module: nn.Module, training: Round) -> bool:
        self.done.append("finetune")
        return True

    def select(self, module: nn.Module, graph: Any, n_features: int, units: int) -> Any:
        self.done.append("select")
        return super().select(module, graph, n_features, units)

    def evaluation(self, module: nn.Module) -> Evaluation:
        self.done.append("evaluation")
        return super().evaluation(module)


def measured_by(done: list[str]) -> Callable[[Any, bool], Measured]:
    def gauge(program: Any, surely: bool) -> Measured:
        done.append("measure")
        return Measured(program.macs / 400, 1.2, 100 * program.macs, 48000)

    return gauge


def journal(folder: Path, resume: bool, asked: dict[str, Any] | None = None) -> Journal:
    return Journal(Place(folder / "run.compressing"), asked or ASKED, resume)


def run(folder: Path, strategy: Strategy, budgets: Budgets, done: list[str], resume: bool, most: int | None) -> Found:
    """One process's search, which is stopped after so many results."""
    own = journal(folder, resume)
    gauge = kept_gauge(measured_by(done), own) if budgets.is_measured else None
    search = searched(strategy, Counting(falls_below(12), done=done), budgets, gauge)
    step = search.step
    step.trainer = KeptTrainer(search.trainer, own)
    with own.held(Told()), pytest.MonkeyPatch.context() as patch:
        add, left = Place.add, [most]

        def adding(self: Place, entry: Any) -> None:
            add(self, entry)
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise Stopped

        patch.setattr(Place, "add", adding)
        return search()


def told(found: Found) -> list[Any]:
    networks = [(cast(Any, one.program).width, one.n_features, one.val_value) for one in found.networks]
    return [*networks, found.steps, found.selection]


SEARCHES = {
    "shrink": (Shrink(), Budgets(keep_macs=0.2, max_drop=MaxDrop(1.0))),
    "iterative": (Shrink(Iterative()), Budgets(keep_macs=0.4)),
    "one-cycle": (Shrink(OneCycle(3)), Budgets(keep_macs=0.4)),
    "measured": (Shrink(), Budgets(max_latency=LatencyLimit(ratio=0.5))),
    "descent": (Descent(), Budgets(max_drop=MaxDrop(1.0), prune_features=True)),
    "features": (Shrink(), Budgets(keep_macs=0.4, n_features=3)),
    "front": (Front(3, 0.3), Budgets()),
    "replay": (Replay(cast(Any, Plan(16, 12))), Budgets()),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_stopped_after_any_result_comes_to_the_same_and_trains_nothing_twice(
    tmp_path: Path, name: str
) -> None:
    strategy, budgets = SEARCHES[name]
    whole: list[str] = []
    try:
        found = told(run(tmp_path / "whole", strategy, budgets, whole, False, None))
    except BudgetError as error:
        found = [str(error)]
    assert not (tmp_path / "whole" / "run.compressing").exists()
    n_results = len(whole)
    assert n_results > 0
    for most in sorted({1, 2, 3, max(1, n_results - 1)}):
        place, done = tmp_path / str(most), []
        resume = False
        while True:  # stopped again and again
            try:
                came = told(run(place, strategy, budgets, done, resume, most))
            except Stopped:
                assert (place / "run.compressing").is_dir()
                resume = True
                continue
            except BudgetError as error:
                came = [str(error)]
            break
        assert (came, done) == (found, whole)
        assert not (place / "run.compressing").exists()


def test_what_is_judged_by_samples_is_judged_again(tmp_path: Path) -> None:
    """Outcomes are of any kind, and a trained network comes to the same."""
    looked: list[int] = []

    class BySamples(FakeTrainer):
        def evaluation(self, module: nn.Module) -> Evaluation:
            looked.append(1)
            return Evaluation((True, False), 0.5, 0.1)

    for resume in (False, True):
        own = journal(tmp_path, resume)
        with pytest.raises(Stopped), own.held(Told()):
            trainer = KeptTrainer(BySamples(falls_below(1)), own)
            assert trainer.finetune(Net(), Round()) is False
            evaluation = trainer.evaluation(Net())
            assert evaluation is not None and evaluation.outcomes == (True, False)
            raise Stopped
    assert len(looked) == 2
    assert len((tmp_path / "run.compressing" / "results.jsonl").read_text().splitlines()) == 1


class Probing:
    """Losses that are no numbers, too."""

    def __init__(self) -> None:
        self.left = [0.1 + 0.2, float("nan"), float("inf")]

    def probed(self, module: nn.Module, settled: bool) -> float:
        return self.left.pop(0)


def test_losses_come_back_to_the_last_bit(tmp_path: Path) -> None:
    def losses(resume: bool) -> str:
        own, prober = journal(tmp_path, resume), Probing()
        with pytest.raises(Stopped), own.held(Told()):
            kept = KeptProber(prober, own)
            found = repr([kept.probed(Net(), True) for _ in range(3)])
            assert (len(prober.left) == 3) is resume
            raise Stopped
        return found

    assert losses(False) == losses(True) == "[0.30000000000000004, nan, inf]"


def test_the_time_of_earlier_processes_counts(tmp_path: Path) -> None:
    for resume in (False, True):
        own = journal(tmp_path, resume)
        with pytest.raises(Stopped), own.held(Told()):
            if not resume:
                own._before = 500.0  # so long was it underway
            own.kept("probe", "a", lambda: 1)
            assert 500 < own.clock() < 560
            raise Stopped


# -- what is there is not taken for what it is not


def left(folder: Path) -> Path:
    """The state of a run that trained once."""
    own = journal(folder, False)
    with pytest.raises(Stopped), own.held(Told()):
        own.kept("finetune", "digest", lambda: True, nn.Linear(2, 2))
        raise Stopped
    return folder / "run.compressing"


def resumed(folder: Path, asked: dict[str, Any] | None = None, module: nn.Module | None = None) -> None:
    own = journal(folder, True, asked)
    with own.held(Told()):
        own.kept("finetune", "digest", lambda: True, module or nn.Linear(2, 2))


def test_the_weights_are_put_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, module = left(tmp_path), nn.Linear(2, 2)
    kept = torch.load(path / "000000.pt", weights_only=True)
    assert not torch.equal(module.weight, kept["weight"])
    resumed(tmp_path, module=module)
    assert torch.equal(module.weight, kept["weight"]) and torch.equal(module.bias, kept["bias"])
    assert not path.exists()


def test_a_run_of_another_request_is_refused(tmp_path: Path) -> None:
    path = left(tmp_path)
    with pytest.raises(InputError, match="this is the state of another run; seed: expected 1, got 0; --force starts"):
        resumed(tmp_path, {**ASKED, "seed": 1})
    assert (path / "000000.pt").exists()


def test_a_search_that_goes_another_way_is_refused(tmp_path: Path) -> None:
    left(tmp_path)
    own = journal(tmp_path, True)
    with pytest.raises(InputError, match="result 1: expected that of the finetune .* on this machine it goes another"):
        with own.held(Told()):
            own.kept("finetune", "other", lambda: True)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda path: (path / "000000.pt").write_bytes(b"PK"), "expected the weights that the search wrote"),
    "no weights": (lambda path: (path / "000000.pt").unlink(), "000000.pt: expected the state of a training, got"),
    "a line": (lambda path: (path / "results.jsonl").write_text('["finetune"]\n'), "line 1: expected a result of a"),
    "no JSON": (lambda path: (path / "results.jsonl").write_text("{\n"), "line 1: expected a result, got no JSON"),
    "the beginning": (lambda path: (path / "asked.json").write_text("[]"), "expected the beginning of a run"),
    "a link": (lambda path: path.rename(path.with_name("x")) and path.symlink_to("x"), "got something else"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = left(tmp_path)
    damage, expected = DAMAGES[name]
    damage(path)
    with pytest.raises(InputError, match=expected) as raised:
        resumed(tmp_path)
    assert "\n" not in str(raised.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    left(tmp_path)
    with pytest.raises(InputError, match="expected weights of this network, got others"):
        resumed(tmp_path, module=nn.Linear(3, 2))


def test_a_line_that_a_kill_cut_off_goes(tmp_path: Path) -> None:
    path = left(tmp_path)
    results = path / "results.jsonl"
    whole = results.read_bytes()
    for torn in (whole + whole[:20], whole[:20]):
        results.write_bytes(torn)
        entries = Place(path).entries()
        assert len(entries) == torn.count(b"\n")
        assert results.read_bytes() == whole[: torn.rfind(b"\n") + 1]


def test_what_another_process_works_on_is_not_taken(tmp_path: Path) -> None:
    path = left(tmp_path)
    with sole(path) as is_sole:
        assert is_sole
        for resume in (True, False):
            with pytest.raises(InputError, match="got one that another process works on"):
                journal(tmp_path, resume)
    resumed(tmp_path)


def test_what_is_no_journal_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "run.compressing"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="expected the folder of an unfinished run, got one that holds thesis.tex"):
        with journal(tmp_path, False).held(Told()):
            raise AssertionError
    assert (path / "thesis.tex").read_text() == "years of work"


def ends_with(folder: Path, error: BaseException) -> list[str]:
    own, progress = journal(folder, False), Told()
    with pytest.raises(type(error)), own.held(progress):
        own.kept("probe", "a", lambda: 1)
        raise error
    return progress.lines


def disk_full() -> InputError:
    error = InputError("full")
    error.__cause__ = OSError(28, "full")
    return error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), disk_full()], ids=lambda error: type(error).__name__
)
def test_what_stops_it_from_outside_leaves_the_state(tmp_path: Path, error: BaseException) -> None:
    [line] = ends_with(tmp_path, error)
    path = tmp_path / "run.compressing"
    assert line == f"{path} holds what the search has come to; --resume goes on with it"
    assert json.loads((path / "asked.json").read_text())["asked"] == ASKED


@pytest.mark.parametrize(
    "error", [BudgetError("too large"), InputError("no such class")], ids=lambda e: type(e).__name__
)
def test_what_would_come_to_the_same_again_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    assert ends_with(tmp_path / "new", error) == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "error", [BudgetError("slow today"), InputError("no such operator"), ParityError("far off")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_what_fails_once_the_search_is_over_leaves_the_state(tmp_path: Path, error: BaseException) -> None:
    for resume in (False, True):
        own, progress = journal(tmp_path, resume), Told()
        with pytest.raises(type(error)), own.held(progress):
            assert own.kept("probe", "a", lambda: 1) == 1
            own.found()
            raise error
        path = tmp_path / "run.compressing"
        assert progress.lines[-1] == f"{path} holds what the search has come to; --resume goes on with it"
        assert len((path / "results.jsonl").read_text().splitlines()) == 1


def test_outside_of_a_run_nothing_is_kept(tmp_path: Path) -> None:
    own = journal(tmp_path, False)
    assert own.kept("probe", "a", lambda: 3) == 3
    assert own.running() is None
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_is_kept_says_what_the_trainer_says() -> None:
    fake = FakeTrainer(falls_below(1), error=0.25)
    own = journal(Path("nowhere"), False)
    kept = KeptTrainer(replace(fake), own)
    assert (kept.trains, kept.selects, kept.metric) == (True, True, fake.metric)
    value = Evaluation((), 0.5, 0.0)
    assert kept.standard_error(value, value) == 0.25
