"""The page and the tables show what the record says, and nothing in a record can break out of them."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from edgeprune import runrecord
from edgeprune.errors import InputError
from edgeprune.lines import printable
from edgeprune.records import ACCURACY, InputFeatures, Metric, Reconstruction
from edgeprune.report import formats as fmt
from edgeprune.report import plots, terminal
from edgeprune.report.html import render
from edgeprune.results import (
    EpochRecord,
    ExportedFile,
    ExportRecord,
    FeatureCount,
    FrontPoint,
    GroupRow,
    InspectRecord,
    LayerWidth,
    ProfileRecord,
    RunRecord,
    SharedWeights,
    StepRecord,
    TrainRecord,
    ValidateRecord,
)

MakeRun = Callable[..., RunRecord]
HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a onerror=b> & $\\frac{ \x1b[31m [red]"
HOSTILE += " \u202e \x9b \u200b \ud800"
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """The page's elements, attributes and text; fails on elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def printed(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def poison(value: Any) -> Any:
    """The record with every text replaced by a hostile one."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {(HOSTILE if value and key in {"torch"} else key): poison(part) for key, part in value.items()}
    if isinstance(value, list):
        return [poison(part) for part in value]
    return value


def test_the_page_shows_what_was_asked_what_came_out_and_how_to_repeat_it(make_run: MakeRun) -> None:
    run = make_run()
    page = Page(render(run))
    for expected in (
        "digits_mlp", "97.50 %", "97.00 %", "95.3 to 98.8 %", "−0.50 points", "26,432", "3,128", "110 kB", "16 kB",
        "0.0112 ms", "0.0091 ms", "0.0131 ms", "0.0108 ms", "layers.0", "graph output", "2.13.0", run.command,
        run.assumed[0], "30 of 64", "2.4e-07", "ab" * 32,
    ):  # fmt: skip
        assert expected in page.text, expected


def test_the_page_fetches_and_runs_nothing(make_run: MakeRun) -> None:
    page = Page(render(make_run()))
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, name, target)
        assert not any(name.startswith("on") for name in attributes)
    style = re.search(r"<style>.*?</style>", render(make_run()), re.DOTALL)
    assert style is not None and "url(" not in style[0] and "@import" not in style[0]


@pytest.mark.parametrize("columns", [30, 300])
def test_hostile_texts_are_escaped(make_run: MakeRun, columns: int) -> None:
    plain = runrecord.to_dict(make_run())
    hostile = {key: poison(value) for key, value in plain.items() if key != "format"}
    hostile["model"] |= {"input_shape": [columns], "feature_names": [f"{HOSTILE} {index}" for index in range(columns)]}
    hostile["features"] = {"size": columns, "keep": [0, 3], "dim": 1}
    run = runrecord.run_from_json(json.dumps({**hostile, "format": runrecord.FORMAT}))
    html = render(run)
    html.encode()
    assert printable(html) == html
    page = Page(html)
    assert "alert('x')" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "\x1b" not in printed(terminal.run(run, Path("run")))


def test_pictures_name_features_and_do_not_share_ids(make_run: MakeRun) -> None:
    names = [f"sensor {index}" for index in range(20)]
    run = make_run(
        features=InputFeatures(20, (0, 7, 19), dim=1), model={"name": "m", "input_shape": [20], "feature_names": names}
    )
    page = Page(render(run))
    assert "sensor 19" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    named = [value for value in ids if value and re.fullmatch(r"[a-z][0-9a-f]{10}", value)]
    assert len(named) == len(set(named)) > 0


@pytest.mark.parametrize(
    ("features", "shape", "caption"),
    [
        (InputFeatures(64, (0, 63)), [1, 8, 8], "8 × 8 pixels: the stronger the colour"),
        (InputFeatures(3 * 16, (1, 17, 40)), [3, 4, 4], "3 values"),
        (InputFeatures(3, (0, 2), dim=1), [3, 32, 32], "Coloured channels are kept"),
        (InputFeatures(4, (0, 2), dim=1), [4], "Coloured columns are kept"),
        (InputFeatures(6, (0, 2), dim=2), [20, 6], "Coloured sensors are kept"),
        (InputFeatures(6, (0, 2), dim=1), [6, 20], "Coloured channels are kept"),
        (InputFeatures(8, (0, 2), dim=3), [3, 8, 8], "Coloured columns are kept"),
        (InputFeatures(5, (0, 2), dim=4), [2, 3, 4, 5], "Coloured features are kept"),
        (InputFeatures(120, (0, 7), dim=None), [20, 6], "The input of 20 × 6 numbers"),
        (InputFeatures(500, tuple(range(0, 500, 3))), [500], "reading order"),
    ],
)
def test_the_kept_features_are_drawn_to_their_shape(
    make_run: MakeRun, features: InputFeatures, shape: list[int], caption: str
) -> None:
    page = Page(render(make_run(features=features, model={"name": "m", "input_shape": shape})))
    assert caption in page.text
    assert f"{len(features.keep)} of {features.size}" in page.text


def test_a_run_without_data_features_or_steps_renders(make_run: MakeRun) -> None:
    run = make_run(accuracy=None, data=None, features=None, steps=(), locked=(), widths=(), assumed=())
    page = Page(render(replace(run, dense=replace(run.dense, val_value=None, test_value=None))))
    assert "none was given" in page.text and "Accuracy over steps" not in page.text
    assert "test accuracy" not in printed(terminal.run(run, Path("run")))


def test_the_same_record_gives_the_same_page(make_run: MakeRun) -> None:
    assert render(make_run()) == render(make_run())


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.79, 0.84), "Faster: 0.81"), ((0.9, 1.1), "No significant gain in latency"), ((1.1, 1.3), "slower")],
)
def test_latency_is_judged_aloud(make_run: MakeRun, interval: tuple[float, float], said: str) -> None:
    run = make_run()
    run = replace(run, latency=replace(run.latency, ratio_interval=interval))
    assert said in Page(render(run)).text
    assert said in printed(terminal.run(run, Path("runs/demo")))


def test_a_median_that_hides_slow_runs_is_no_tick(make_run: MakeRun) -> None:
    """One inference in twenty takes ten times as long."""
    run = make_run()
    slow = replace(run.latency, slim_p95_ms=10 * run.latency.dense_p95_ms)
    run = replace(run, latency=slow)
    said = "But its slowest runs take 10.0 times as long as the dense ones: p95 0.131 ms against 0.0131 ms."
    assert said in Page(render(run)).text
    table = " ".join(printed(terminal.run(run, Path("runs/demo")), width=300).split())
    assert f"! {fmt.latency_verdict(slow)}" in table and said in table
    assert "slowest runs" not in fmt.latency_verdict(make_run().latency)


@pytest.mark.parametrize(
    ("drop", "interval", "said"),
    [
        (-0.28, (-1.49, 0.94), "the same test accuracy but for about one sample (+0.28 points), no change."),
        (0.28, (0.1, 0.5), "the same test accuracy but for about one sample (−0.28 points), no change."),
        (-0.56, (-1.69, 0.57), "test accuracy +0.56 points, no significant change (95 % interval −0.57 to +1.69)"),
        (0.5, (-0.4, 1.4), "test accuracy −0.50 points, no significant change (95 % interval −1.40 to +0.40)"),
        (0.0, (-0.5, 0.5), "the same test accuracy, no significant change (95 % interval −0.50 to +0.50)"),
        (1.5, (0.3, 2.7), "1.50 points of test accuracy lost."),
        (-1.5, (-2.7, -0.3), "1.50 points of test accuracy gained."),
    ],
)
def test_accuracy_is_lost_or_gained_where_that_is_no_chance(
    make_run: MakeRun, drop: float, interval: tuple[float, float], said: str
) -> None:
    run = make_run()
    assert run.accuracy is not None
    run = replace(run, accuracy=replace(run.accuracy, drop_points=drop, drop_interval=interval))
    text = Page(render(run)).text
    assert said in text
    assert ("lost" in text or "gained" in text) == (abs(drop) > 0.3 and (interval[0] > 0 or interval[1] < 0))


def test_percents_end_at_a_hundred(make_run: MakeRun) -> None:
    run = make_run()
    steps = [StepRecord(k, 1 - k / 10, None, accuracy, True) for k, accuracy in enumerate((1.0, 0.999, 1.0, 0.97))]
    points = [FrontPoint(f"pareto/{k}", 0.5, 1.0, 0.1, 0.5, 1000, k == 1) for k in (1, 2)]
    counts = [FeatureCount(2 ** (6 - k), 1.0 - k / 1000) for k in range(4)]
    scale = plots.Scale(ACCURACY, 1.0, 1.0)
    pictures = (
        plots.steps_svg(steps, scale),
        plots.front_svg(points, scale),
        plots.selection_svg(counts, scale),
    )
    for svg in pictures:
        assert svg is not None
        ticks = [float(text) for text in re.findall(r">(\d+\.?\d*)</text>", svg)]
        assert any(tick > 90 for tick in ticks) and max(ticks) <= 100
    assert run.steps


def test_widths_of_one_network_tell_of_the_file_that_they_share(make_run: MakeRun) -> None:
    points = tuple(FrontPoint(f"widths/{name}", 0.5, 1.0, 0.1, 0.5, 1000, name == "1") for name in ("1", "0.5"))
    shared = SharedWeights("widths/weights.bin", ("1", "0.5"), 102_000, 100_000, 2e-6)
    run = replace(make_run(), front=points, shared=shared)
    told = "one file of weights for 2 widths, widths/weights.bin: 102 kB with all graphs, 1.02 times the largest"
    assert told in Page(render(run)).text
    assert "widths of one network" in printed(terminal.run(run, Path("run")))
    assert runrecord.run_from_json(runrecord.to_json(run)) == run
    assert "shared" not in json.loads(runrecord.to_json(make_run()))


def test_files_that_were_checked_on_no_data_get_no_tick() -> None:
    files = (ExportedFile("run/slim.onnx", 5, 1e-6), ExportedFile("run/features.json", 5, None))
    text = printed(terminal.export(ExportRecord("run/slim.pt2", files, (), 0)))
    assert "✓" not in text and "! the files agree with PyTorch on drawn inputs alone" in text
    assert "run/slim.pt2 exported to run" in text and "│ slim.onnx" in text
    assert "✓ the files agree with PyTorch on 7 inputs" in printed(
        terminal.export(ExportRecord("run/slim.pt2", files, (), 7))
    )


def test_what_to_do_next_names_the_architecture() -> None:
    record = ProfileRecord("torchvision:resnet18", "d.json", "r", "c", 1, 1, 5, 1.0, (), 1.0, "torchvision:resnet18")
    assert "edgeprune compress model.pt --arch torchvision:resnet18 --device d.json" in printed(
        terminal.profile(record)
    )
    record = replace(record, model="net.pt")
    assert "edgeprune compress net.pt --arch torchvision:resnet18 --device d.json" in printed(terminal.profile(record))
    assert "edgeprune compress net.pt --device d.json" in printed(terminal.profile(replace(record, arch=None)))


def test_the_run_table_says_what_to_do_next(make_run: MakeRun) -> None:
    text = printed(terminal.run(make_run(), Path("runs/my demo")), width=60)
    assert "edgeprune export --onnx 'runs/my demo/slim.pt2'" in text
    assert "assumed criterion taylor" in text
    assert "runs/my demo/report.html" in text


def test_every_record_has_a_table(make_run: MakeRun) -> None:
    run = make_run()
    assert run.accuracy is not None
    rows = (
        GroupRow("conv1", "channels", ("conv1", "bn1"), 16, 16, 0.4, exact=True),
        GroupRow("fc", "locked", ("fc",), 10, 10, 0.1, exact=True, reason="graph output [fc]"),
    )
    tables = {
        "graph output [fc]": terminal.inspect(InspectRecord("m.pt", 10_000, 500, rows)),
        "too slow": terminal.validate(ValidateRecord(run.accuracy, 0.1, 10, 5, run.latency, ("too slow",))),
        "1.0e-06": terminal.export(ExportRecord("slim.pt2", (ExportedFile("slim.onnx", 5, 1e-6),), (), 360)),
        "edgeprune compress": terminal.train(
            TrainRecord("m.pt", "a", "digits", 9, (EpochRecord(1, 0.1, 0.9, 0.9),), 1, 0.9, 0.9, 1.0)
        ),
    }
    for expected, table in tables.items():
        assert expected in printed(table)


def test_records_survive_json(make_run: MakeRun) -> None:
    run = make_run()
    again = runrecord.run_from_json(runrecord.to_json(run))
    assert again == replace(run, locked=again.locked)
    assert runrecord.to_dict(again) == runrecord.to_dict(run)
    assert runrecord.to_dict(run)["latency"]["significant"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/9"}, "format: expected 'edgeprune-run/1', got 'other/9'"),
        ({"seconds": "soon"}, 'seconds: expected a number, got "soon"'),
        ({"dense": {"macs": 1}}, "dense: expected the fields of NetworkFigures, got missing onnx_bytes, params"),
        ({"surprise": 1}, "expected the fields of RunRecord, got unknown surprise"),
        (
            {"widths": [{"layer": "a", "before": True, "after": 1}]},
            "widths[0]: before: expected a whole number, got true",
        ),
        ({"accuracy": 3}, "accuracy: expected an object, got 3"),
    ],
)
def test_a_wrong_run_record_is_refused_with_the_place(make_run: MakeRun, change: dict[str, Any], message: str) -> None:
    text = json.dumps({**runrecord.to_dict(make_run()), **change})
    with pytest.raises(InputError, match=re.escape(message)):
        runrecord.run_from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_run_record_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="run.json: expected a JSON"):
        runrecord.run_from_json(text)


def test_what_json_cannot_hold_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="proof_error: nan"):
        runrecord.to_json(make_run(proof_error=float("nan")))
    with pytest.raises(ValueError, match="asked.when: object"):
        runrecord.to_json(make_run(asked={"when": object()}))


def test_numbers_read_well() -> None:
    assert [fmt.count(n) for n in (0, 9408, 120_000, 4_089_184_256)] == ["0", "9,408", "120 k", "4.09 G"]
    assert [fmt.size(n) for n in (12, 16_023, 97_800_000)] == ["12 bytes", "16 kB", "97.8 MB"]
    assert [fmt.points(x) for x in (-0.001, 0.5, -1.25)] == ["0.00", "+0.50", "−1.25"]
    assert fmt.seconds(200.4) == "3 min 20 s" and fmt.milliseconds(0.01234) == "0.0123 ms"
    assert fmt.share(1, 0) == fmt.NONE == fmt.percent(None)


def test_long_names_do_not_widen_the_page(make_run: MakeRun) -> None:
    run = make_run(widths=(LayerWidth("layer." * 60, 64, 8),))
    assert "layer." * 60 in Page(render(run)).text


def test_what_layers_took_over_is_told_of_the_cuts_that_were_taken(make_run: MakeRun) -> None:
    found = [Reconstruction(100, 1, 0.1, 0.5 + k / 10, 0.01 * k, 2.0, ()) for k in range(3)]
    steps = [StepRecord(k, 0.9, None, 0.9, accepted=k < 2, reconstruction=found[k]) for k in range(3)]
    run = make_run(steps=tuple(steps))
    said = fmt.reconstruction(run)
    assert said == (
        "after the last of 2 cuts the outputs were 60.00 % off, and 1.00 % once the layers were solved again "
        "(100 samples, 6.0 s)"
    )
    assert said in " ".join(render(run).split())
    assert fmt.reconstruction(make_run(steps=tuple(steps[2:]))) is None


def test_steps_say_whether_they_train(make_run: MakeRun) -> None:
    run = make_run()
    for epochs, told in ((0, "Each step prunes; a cross"), (3, "Each step prunes and finetunes; a cross")):
        assert told in render(replace(run, asked={**run.asked, "finetune_epochs": epochs}))


def test_a_name_begins_a_line_as_it_is_spelt() -> None:
    assert [fmt.title(Metric(name)) for name in ("accuracy", "mIoU", "mAP", "MAE")] == [
        "Accuracy",
        "mIoU",
        "mAP",
        "MAE",
    ]
