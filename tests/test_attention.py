"""What an attention loses: whole heads by default, or the same channels of every head; plans replay either way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune import compat  # noqa: F401  (torchvision can be imported after it)
from edgeprune.errors import InputError, PlanError
from edgeprune.formats.save import save_program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.compose import compose
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.records import ModelInfo
from tests.cases import CASES, few_heads, heads, tokens
from tests.e2e.commands import done, run
from tests.nets import captured, cut_randomly, n_units, parameter, random_keep


def window_attention() -> nn.Module:
    """A block of Swin: 2 heads of 4 channels in shifted windows, with a table of relative positions."""
    from torchvision.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(8, 2, window_size=[2, 2], shift_size=[1, 1], mlp_ratio=1.5)
    return nn.Sequential(nn.Linear(8, 8), block, nn.Linear(8, 3))


def one_key_head() -> nn.Module:
    return tokens(lambda m, x: grouped(m, x, 1), q=nn.Linear(8, 12), k=nn.Linear(8, 3), v=nn.Linear(8, 3),
                  out=nn.Linear(12, 8))  # fmt: skip


def masked_queries() -> nn.Module:
    """A learned number for each head and pair of tokens."""
    return tokens(lambda m, x: grouped(m, x, 2, m.table), table=parameter(4, 6, 6), **few_heads())


def grouped(m: Any, x: Tensor, n: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), n), heads(m.v(x), n)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return m.out(attended.transpose(1, 2).flatten(2))


TOKENS = ((6, 5),)
# (units, indices that one unit spans in the projection) of the groups of the attention alone
NETS: dict[str, tuple[Callable[[], nn.Module], Any, str, list[tuple[int, int]], list[tuple[int, int]]]] = {
    "separate projections": (CASES["attention"].build, TOKENS, "q v", [(4, 3)], [(3, 4), (3, 4)]),
    "fused projection": (CASES["fused attention"].build, TOKENS, "qkv", [(4, 9)], [(3, 12)]),
    "grouped queries": (CASES["grouped queries"].build, TOKENS, "q v", [(2, 6)], [(3, 4), (3, 2)]),
    "grouped queries with a mask": (masked_queries, TOKENS, "q v t", [(2, 6)], [(3, 4), (3, 2)]),
    "one key for all queries": (one_key_head, TOKENS, "q v", [(3, 4), (3, 1)], [(3, 4), (3, 1)]),
    "windows": (window_attention, ((4, 4, 8),), "1.attn.qkv", [(2, 12)], [(4, 6)]),
}


def spans(graph: ChannelGraph, names: str) -> list[tuple[int, int]]:
    """Units and the indices that each spans in the projection, of the groups that have a slot in one of `names`."""
    found: list[tuple[int, int]] = []
    for group in graph.groups:
        slots = {slot.name: slot for slot in group.slots if slot.dim == 0}
        slot = next((slots[f"{name}.weight"] for name in names.split() if f"{name}.weight" in slots), None)
        if slot is not None:
            found.append((group.n_units, int((slot.unit >= 0).sum()) // group.n_units))
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("attention", ["heads", "head-dim"])
def test_units_of_an_attention(name: str, attention: str) -> None:
    build, shapes, names, whole, channels = NETS[name]
    program = captured(build(), *shapes)
    graph = edgeprune.analyze(program, attention=attention)
    assert spans(graph, names) == (whole if attention == "heads" else channels)
    cut = cut_randomly(program, graph)
    assert cut.error <= 1e-10
    replayed = PruningPlan.from_json(cut.plan.to_json())
    assert replayed == cut.plan and replayed.attention == attention
    slim = edgeprune.cut(program, replayed)  # without the graph that it was made with
    assert edgeprune.prove(program, slim, replayed) <= 1e-10
    assert edgeprune.prove(program, edgeprune.cut(program, replayed, edgeprune.analyze(program)), replayed) <= 1e-10


def test_the_scale_of_the_whole_head_stays() -> None:
    """Half of the channels of every head: twice, composed to one plan."""
    program = captured(CASES["fused attention"].build(), *TOKENS)
    first = cut_randomly(program, edgeprune.analyze(program, attention="head-dim"), share=0.7)
    graph = edgeprune.analyze(first.slim, attention="head-dim")
    second = make_plan(first.slim, graph, random_keep(graph, 0.5, 1))
    both = compose(first.plan, second)
    assert both.attention == "head-dim"
    slim = edgeprune.cut(program, both)
    assert edgeprune.prove(program, slim, both) <= 1e-10
    assert n_units(edgeprune.analyze(slim, attention="head-dim")) < n_units(graph)


def test_a_plan_says_which_way_only_where_it_is_not_the_usual_one() -> None:
    program = captured(CASES["attention"].build(), *TOKENS)
    for attention, written in (("heads", None), ("head-dim", "head-dim")):
        plan = edgeprune.plan(program, edgeprune.analyze(program, attention=attention), keep_macs=0.8, align=1)
        assert json.loads(plan.to_json()).get("attention") == written


def test_other_words_are_refused() -> None:
    program = captured(CASES["attention"].build(), *TOKENS)
    with pytest.raises(InputError, match="attention: expected heads or head-dim, got 'channels'"):
        edgeprune.analyze(program, attention="channels")
    plan = json.loads(edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.8, align=1).to_json())
    with pytest.raises(PlanError, match="the plan's attention: expected heads or head-dim, got 'channels'"):
        PruningPlan.from_json(json.dumps({**plan, "attention": "channels"}))


def test_the_commands_take_it_and_a_plan_brings_its_own(tmp_path: Path) -> None:
    net = tokens(lambda m, x: m.l(x).mean(1), l=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    program = captured(net, (6, 5), dtype=torch.float32)
    save_program(tmp_path / "net.pt2", program, ModelInfo(input_shape=(6, 5)))
    rows = done(tmp_path, "inspect", "net.pt2", "--attention", "head-dim", "--json").json["groups"]
    assert {row["name"]: row["n_units"] for row in rows}["l.self_attn"] == 4
    plan = edgeprune.plan(program, edgeprune.analyze(program, attention="head-dim"), keep_macs=0.6, align=1)
    (tmp_path / "plan.json").write_text(plan.to_json())
    done(tmp_path, "compress", "net.pt2", "--plan", "plan.json", "--threads", "1", "--out", "run")
    assert PruningPlan.from_json((tmp_path / "run" / "plan.json").read_text()) == plan
    refused = run(tmp_path, "compress", "net.pt2", "--attention", "some")
    assert refused.code == 2 and "'heads', 'head-dim'" in refused.err
