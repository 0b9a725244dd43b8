"""What `inspect` tells of a network: groups with their shares, locks with what would unlock them, and drawings."""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from edgeprune.cost.macs import macs
from edgeprune.inspection.drawing import Drawing, DrawnLayer, draw
from edgeprune.inspection.table import Inspection, explained, inspect_program
from edgeprune.report import terminal
from edgeprune.report.diagram import dot, svg
from edgeprune.results import GroupRow
from tests.cases import CASES, IMAGE, TOKENS
from tests.e2e.commands import CNN, done, run
from tests.nets import Net, captured, cnn, image_mlp, mlp, n_parameters, residual

SVG = "{http://www.w3.org/2000/svg}"


def inspected(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> Inspection:
    return inspect_program(captured(module, *shapes), "net", **options)


def row_of(found: Inspection, name: str) -> GroupRow:
    return next(row for row in found.record.groups if row.name == name)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_shares_are_what_would_go_with_a_group() -> None:
    """8 -> 12 -> 10 -> 3: without the 12 units the last layer and the ten biases before it stay."""
    program = captured(mlp(), (8,))
    row = row_of(inspect_program(program, "net"), "0")
    assert macs(program) == 96 + 120 + 30 and n_parameters(program) == 108 + 130 + 33
    assert (row.kind, row.n_units, row.width, row.layers) == ("channels", 12, 12, ("0", "2"))
    assert row.macs_share == pytest.approx((96 + 120) / 246)
    assert row.params_share == pytest.approx((108 + 120) / 271)


def test_a_group_that_is_part_of_a_layer_has_a_part_of_it() -> None:
    """Two layers of 4 and 8 channels joined before a third: each has its share of the third's inputs."""
    net = Net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=nn.Linear(5, 4), b=nn.Linear(5, 8), c=nn.Linear(12, 3)
    )
    found = inspected(net, (5,))
    one, other = row_of(found, "a"), row_of(found, "b")
    assert one.macs_share == pytest.approx((20 + 12) / 96) and other.macs_share == pytest.approx((40 + 24) / 96)
    assert one.params_share == pytest.approx((24 + 12) / 111) and other.params_share == pytest.approx((48 + 24) / 111)


@pytest.mark.parametrize(
    ("case", "name", "kind", "units", "width"),
    [
        ("attention", "q", "heads", 4, 12),
        ("fused attention", "qkv", "heads", 4, 36),
        ("bmm attention", "qkv", "heads", 4, 36),
        ("grouped queries", "q", "heads", 2, 12),
        ("attention", "first", "channels", 8, 8),
    ],
)
def test_heads_are_told_from_channels(case: str, name: str, kind: str, units: int, width: int) -> None:
    row = row_of(inspected(CASES[case].build(), *CASES[case].shapes), name)
    assert (row.kind, row.n_units, row.width) == (kind, units, width)


def test_channels_of_every_head_are_channels() -> None:
    found = inspected(CASES["attention"].build(), TOKENS, attention="head-dim")
    assert {(row.name, row.kind, row.n_units) for row in found.record.groups if row.name in "qv"} == {
        ("q", "channels", 3),
        ("v", "channels", 3),
    }


def test_a_product_of_channels_is_no_attention() -> None:
    gram = Net(lambda m, x: m.head((m.a(x) @ m.a(x).transpose(-2, -1)).mean((2, 3))), a=nn.Conv2d(3, 8, 1),
               head=nn.Linear(8, 2))  # fmt: skip
    assert row_of(inspected(gram, (3, 4, 4)), "a").kind == "channels"


def test_features_come_first_and_locked_ones_last() -> None:
    found = inspected(image_mlp(), (1, 4, 4))
    kinds = [row.kind for row in found.record.groups]
    assert kinds == ["features", "channels", "locked"]
    first = found.record.groups[0]
    assert (first.n_units, first.width, first.macs_share) == (16, 16, pytest.approx(192 / 228))


def test_renormalised_groups_are_marked() -> None:
    row = row_of(inspected(CASES["layer norm"].build(), *CASES["layer norm"].shapes), "first")
    assert not row.exact


class MaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.first(x).amax(dim=1) + self.second(x).mean(dim=1)  # locks the first


def test_a_lock_tells_the_operator_the_line_and_what_would_unlock_it() -> None:
    found = inspected(MaxOverChannels(), IMAGE)
    row = row_of(found, "first")
    lines, start = python_inspect.getsourcelines(MaxOverChannels)
    line = start + next(i for i, text in enumerate(lines) if "# locks" in text)
    assert (row.kind, row.n_units, row.operator) == ("locked", 8, "amax")
    assert row.reason == "amax depends on all units of this dim"
    assert row.where == f"{__file__}:{line}"
    assert row.remedy == "reduce over a dim that holds no channels, or take a sum or a mean"
    assert explained(row) == f"{row.reason} ({row.where})"
    assert row_of(found, "second").kind == "channels"


@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.softmax(1),
        lambda x: torch.log_softmax(x, -1).double(),
        lambda x: x.topk(2, 1),
        lambda x: (x.argmax(1), x),
        lambda x: x.softmax(1).unsqueeze(2),
    ],
    ids=["softmax", "log_softmax", "topk", "argmax", "moved"],
)
def test_scores_that_the_model_returns_are_not_to_be_unlocked(last: Callable[[Tensor], Any]) -> None:
    net = Net(lambda m, x: last(m.head(m.body(x).relu())), body=nn.Linear(5, 6), head=nn.Linear(6, 4))
    (row,) = (row for row in inspected(net, (5,)).record.groups if row.kind == "locked")
    assert row.layers == ("head",) and row.remedy == "nothing: it is what the model returns"


def test_a_softmax_on_the_way_can_be_unlocked() -> None:
    net = Net(lambda m, x: m.head(m.body(x).softmax(1)), body=nn.Linear(5, 6), head=nn.Linear(6, 4))
    assert row_of(inspected(net, (5,)), "body").remedy == "normalise over a dim that holds no channels"


def test_locks_of_one_kind_and_place_share_a_row() -> None:
    net = Net(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(5, 4), b=nn.Linear(5, 3))
    (row,) = (row for row in inspected(net, (5,)).record.groups if row.kind == "locked")
    assert row.layers == ("a", "b") and row.remedy == "nothing: it is what the model returns"


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(width: int) -> None:
    found = inspected(CASES["transformer layer"].build(), TOKENS)
    console = Console(width=width, record=True, file=StringIO())
    console.print(terminal.inspect(found.record))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.replace("│", " ").split())
    assert "4 heads" in flat and "≈" in flat and "nothing unlocks them: it is what the model returns" in flat


# -- drawings ---------------------------------------------------------------------------------------------------------


def names(drawing: Drawing) -> list[str]:
    return [layer.name for layer in drawing.layers]


def test_a_drawing_has_the_layers_and_joins_in_order() -> None:
    drawing = draw(inspected(residual(), IMAGE))
    expected = ["inputs_0", "stem", "a", "norm", "b", "add", "down", "c", "add", "head", "output"]
    assert names(drawing) == expected
    arrows = {(expected[a] if a not in (5, 8) else a, expected[b] if b not in (5, 8) else b) for a, b in drawing.arrows}
    assert arrows == {
        ("inputs_0", "stem"), ("stem", "a"), ("a", "norm"), ("norm", "b"), ("b", 5), ("stem", 5), (5, "down"), (5, "c"),
        ("down", 8), ("c", 8), (8, "head"), ("head", "output"),
    }  # fmt: skip
    group = {name: layer.group for name, layer in zip(expected, drawing.layers, strict=True)}
    assert group["stem"] == group["b"] == drawing.layers[5].group
    assert group["a"] == group["norm"] != group["stem"]
    assert group["down"] == group["c"] == drawing.layers[8].group
    head = drawing.layers[expected.index("head")]
    assert head.locked and head.note == (
        "locked: output is the model's output; nothing unlocks them: it is what the model returns"
    )


def test_rows_and_drawing_speak_of_the_same_groups() -> None:
    found = inspected(cnn(), IMAGE)
    for layer in draw(found).layers:
        if layer.group is not None and layer.kind == "layer":
            assert layer.name in found.record.groups[layer.group].layers
            assert found.record.groups[layer.group].name in layer.note


def test_renormalised_layers_are_dashed() -> None:
    drawing = draw(inspected(CASES["layer norm"].build(), *CASES["layer norm"].shapes))
    assert any(layer.renormalised and "renormalised" in layer.note for layer in drawing.layers)
    dashed = [box for box in ElementTree.fromstring(svg(drawing)).iter(f"{SVG}rect") if box.get("stroke-dasharray")]
    assert len(dashed) == sum(layer.renormalised for layer in drawing.layers)
    assert dot(drawing).count("dashed") == len(dashed)


def test_boxes_do_not_overlap() -> None:
    drawing = draw(inspected(residual(), IMAGE))
    boxes = list(ElementTree.fromstring(svg(drawing)).iter(f"{SVG}rect"))
    corners = {(float(box.attrib["x"]), float(box.attrib["y"])) for box in boxes}
    assert len(corners) == len(boxes) == len(drawing.layers)
    for x, y in corners:
        assert not any(abs(x - a) < 210 and abs(y - b) < 40 for a, b in corners - {(x, y)})


HOSTILE = '"];\n}</title><script>alert(1)</script>&\\" \x1b[31m \u202e <!--'


def test_names_do_not_become_markup() -> None:
    layers = tuple(
        DrawnLayer(HOSTILE, kind, HOSTILE, group, group is None, False, HOSTILE)
        for kind, group in (("input", 0), ("layer", None), ("output", None))
    )
    drawing = Drawing(HOSTILE, layers, ((0, 1), (1, 2)))
    root = ElementTree.fromstring(svg(drawing))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags == {"svg", "defs", "marker", "path", "text", "g", "title", "rect"}
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not any(name.startswith("on") or "href" in name for name in attributes)
    text = dot(drawing)
    assert "\x1b" not in text and "\u202e" not in text and "\x1b" not in svg(drawing)
    assert text.count("\n") == 1 + 2 + 3 + 2 + 1  # nothing broke out of its line
    for line in text.splitlines()[1:]:
        assert line.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 0


def test_nothing_to_draw() -> None:
    assert ElementTree.fromstring(svg(Drawing("empty", (), ()))).tag == f"{SVG}svg"
    assert dot(Drawing("empty", (), ())).startswith("digraph")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_and_draws(tmp_path: Path) -> None:
    result = done(tmp_path, "inspect", CNN, "--svg", "groups.svg", "--dot", "groups.dot", "--json")
    rows = {row["name"]: row for row in result.json["groups"]}
    assert rows["3.conv1"]["params_share"] == pytest.approx(0.165, abs=1e-3)
    assert rows["11"]["remedy"].startswith("nothing") and rows["11"]["operator"] == "output"
    assert result.json["files"] == ["groups.dot", "groups.svg"]
    assert ElementTree.parse(tmp_path / "groups.svg").getroot().tag == f"{SVG}svg"
    assert (tmp_path / "groups.dot").read_text().startswith("digraph groups {")
    again = run(tmp_path, "inspect", CNN, "--svg", "groups.svg")
    assert again.code == 2 and "groups.svg: expected a new place" in again.err and "--force" in again.err


def test_an_architecture_needs_no_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))\n"
    )
    rows = done(tmp_path, "inspect", "own.py:net", "--input-shape", "6", "--json").json["groups"]
    assert [(row["kind"], row["n_units"]) for row in rows] == [("features", 6), ("channels", 4), ("locked", 2)]
    part = done(tmp_path, "inspect", "own.py:net", "--module", "1", "--input-shape", "4", "--json").json["groups"]
    assert [(row["kind"], row["n_units"]) for row in part] == [("features", 4), ("locked", 2)]
    missing = run(tmp_path, "inspect", "own.py:net")
    assert missing.code == 2 and "own.py:net: expected the shape of one input" in missing.err
    typo = run(tmp_path, "inspect", "own.py:nets", "--input-shape", "6")
    assert typo.code == 2 and "did you mean net?" in typo.err
    assert "gone.pt: expected a model file, got nothing there" in run(tmp_path, "inspect", "gone.pt").err
