"""What a batch that several processes share comes to is what one process makes of it: dropout, losses, judging."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_ranks import together
from torch import Tensor, nn

from edgeprune.data import Share
from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.graph.capture import capture
from edgeprune.records import DataSource
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.wholebatch import whole_batch
from edgeprune.training import Judge, evaluation, judging
from edgeprune.training.dropout import Drawing, WholeDropout, drawn_apart
from edgeprune.training.features import Features, Tap
from edgeprune.training.placement import seeded

CPU = torch.device("cpu")
DROPPING: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Dropout(0.3),
    "channels": nn.Dropout2d(0.4),
    "in place": lambda x: nn.Dropout(0.3, inplace=True)(x.clone()),
    "operator": lambda x: torch.ops.aten.dropout.default(x, 0.3, True),
    "half": lambda x: torch.dropout(x.bfloat16(), 0.3, True),
    "tokens": lambda x: nn.Dropout(0.3)(x.flatten(0, 1)),
    "transposed": lambda x: nn.Dropout(0.3)(x.transpose(1, 3)),
    "out": nn.Dropout(0.3).eval(),
}


@pytest.mark.parametrize("dropping", DROPPING.values(), ids=DROPPING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_process_drops_what_one_process_would(
    dropping: Callable[[Tensor], Tensor], layout: torch.memory_format
) -> None:
    x = torch.randn(7, 6, 4, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    with seeded(3, 0, CPU):
        alone = [dropping(x), dropping(x)]
    parts: list[list[Tensor]] = []
    for rank in range(3):
        own = Share(rank, 3).of(torch.arange(7))
        with seeded(3, rank, CPU), WholeDropout(Drawing(3, CPU), int(own[0]), len(own), 7):
            parts.append([dropping(x[own].contiguous(memory_format=layout)) for _ in range(2)])
    for whole, own_parts in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(own_parts), whole)


def test_what_has_no_rows_of_samples_is_drawn_by_each_process() -> None:
    x = torch.ones(5, 64)
    with seeded(0, 0, CPU):
        with WholeDropout(Drawing(0, CPU), 0, 3, 7):
            got = nn.Dropout(0.5)(x)
        torch.manual_seed(0)
        assert torch.equal(got, nn.Dropout(0.5)(x))


def test_what_is_drawn_otherwise_is_told() -> None:
    def drawn(*layers: nn.Module) -> tuple[str, ...]:
        module = nn.Sequential(nn.Linear(6, 8), *layers).eval()
        return drawn_apart(capture(module, torch.zeros(2, 3, 6)).frozen_module().graph)

    assert drawn(nn.Dropout(0.1), nn.Dropout1d(0.1), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1)) == ()
    assert drawn(nn.LSTM(8, 4, 2)) == () and drawn(nn.LSTM(8, 4, 2, dropout=0.1)) == ("lstm",)
    assert drawn(nn.AlphaDropout(0.1), nn.RReLU(), nn.RReLU()) == ("alpha_dropout", "rrelu")


def masks() -> tuple[Tensor, Tensor]:
    """Scores of eight samples, and masks of which the first four know few pixels, and one of them none."""
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randint(0, 3, (8, 4, 4), generator=draw)
    wanted[:4, :3], wanted[1] = 255, 255
    return torch.randn(8, 3, 4, 4, generator=draw), wanted


LOSSES: dict[str, tuple[Any, Callable[[], tuple[Tensor, Tensor]]]] = {
    "segmentation": (Segmentation(), masks),
    "match": (Match(), lambda: (torch.randn(8, 5), torch.randn(8, 5) * torch.arange(1, 9)[:, None])),
}


@pytest.mark.parametrize(("task", "made"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("n", [2, 5, 9])
def test_losses_add_up_to_that_of_the_batch(task: Any, made: Callable[[], tuple[Tensor, Tensor]], n: int) -> None:
    """Though one process has less that counts than another, or (of nine) none but a sample that stands in."""
    outputs, targets = made()

    def part(ranks: Ranks) -> float:
        own = ranks.share.of(torch.arange(8))
        index = own if len(own) else torch.arange(1)
        with whole_batch(ranks.summed, len(own), 8):
            return float(task.loss(outputs[index], targets[index])) * len(own) / 8

    assert sum(together(n, part)) == pytest.approx(float(task.loss(outputs, targets)), rel=1e-6)


def test_distances_of_features_add_up_to_that_of_the_batch() -> None:
    """They are relative to the spread of the whole batch, which no process has."""
    torch.manual_seed(0)
    slim, dense = (capture(nn.Linear(4, 6).eval(), torch.zeros(2, 4)).own_module() for _ in range(2))
    x = torch.randn(7, 4) * torch.arange(1, 8)[:, None]
    nodes = [next(node for node in module.graph.nodes if "linear" in str(node.target)) for module in (slim, dense)]
    features = Features(slim, dense, [Tap(nodes[0], nodes[1], 1)])

    def part(ranks: Ranks) -> float:
        own = ranks.share.of(torch.arange(7))
        with features.watched(), whole_batch(ranks.summed, len(own), 7), torch.no_grad():
            slim(x[own]), dense(x[own])
            return float(features.distance()) * len(own) / 7

    with features.watched(), torch.no_grad():
        slim(x), dense(x)
        alone = float(features.distance())
    assert sum(together(3, part)) == pytest.approx(alone, rel=1e-6)


def test_judging_is_that_of_one_process_to_the_last_bit(digits: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are fewer batches than processes."""
    torch.manual_seed(0)
    judge = Judge(CLASSIFICATION, digits.normalization)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    for batch in (100, 512):
        monkeypatch.setattr(judging, "_BATCH", batch)

        def judged(ranks: Any) -> tuple[list[bool], float, float]:
            outcomes, loss = judge.outcomes(module, digits.val, team=ranks)
            return list(outcomes), loss, judge.loss(module, digits.val, 250, ranks)

        alone = judged(ALONE)
        assert together(3, judged) == [alone] * 3
    assert evaluation.evaluate(module, digits.val, digits.normalization).loss == alone[1]


def test_a_state_has_the_numbers_that_all_draw_from() -> None:
    drawing = Drawing(5, CPU)
    before = torch.get_rng_state()
    with drawing.used():
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    kept = SimpleNamespace(state=drawing.state.clone())
    with drawing.used():
        second = torch.rand(4)
    drawing.state = kept.state
    with drawing.used():
        assert torch.equal(torch.rand(4), second)
    with seeded(5, 0, CPU):
        assert torch.equal(torch.cat([first, second]), torch.rand(8))
