"""What a file records is checked in one place before anything is done with it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.commands.dense import dense_network
from edgeprune.commands.resolve import model_and_data
from edgeprune.data import specs
from edgeprune.errors import InputError
from edgeprune.formats.info import info_to_dict
from edgeprune.formats.load import load
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.formats.trust import asked_again, quoted, recorded_arch, recorded_data, recorded_file, same_arch
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import ModelInfo, Normalization
from edgeprune.requests import CompressRequest, ExportRequest
from edgeprune.settings import TrainSettings

CODE = [
    "evil.py:run",
    "/usr/lib/python3/os.py:system?command=touch x",
    "npz:evil.py:run",  # a file of that name, to open_data
    "digits:evil.py:run",
    "csv:x.py:run?target=y",
    "evil:run",
    "os:system?command=touch x",
    "pkg.module:factory",
    "torchvision.models:resnet18",
    "../evil.py:run",
    "\\\\host\\share\\evil.py:run",
    "lightning:Model",
    "",
    "?",
    ":",
]


@pytest.mark.parametrize("spec", CODE)
def test_code_on_record_is_shown_and_not_run(spec: str) -> None:
    for check, option in ((recorded_data, "--data"), (recorded_arch, "--arch")):
        with pytest.raises(InputError) as caught:
            check(spec, "m.pt", False)
        if ":" in spec.strip(":") or check is recorded_data:
            assert str(caught.value).startswith("m.pt: expected ")
            assert all(part in str(caught.value) for part in (repr(spec), option, "--trust-recorded"))
        assert check(spec, "m.pt", True) == spec


@pytest.mark.parametrize("kind", [name for name in specs._OPENERS] + ["digits"])
def test_every_built_in_kind_of_data_may_be_on_record(kind: str) -> None:
    for spec in (kind, f"{kind}:data/here", f"{kind}:/data/here?size=3&target=x"):
        assert recorded_data(spec, "m.pt", False) == spec


@pytest.mark.parametrize(
    "place", ["/", "~", "//host/share/x", r"\\host\share", "/proc/self", "/dev/shm", "/sys", "a\x00b", "smb://host/x"]
)
def test_places_that_hold_no_data_set_are_not_read_on_a_files_word(place: str) -> None:
    with pytest.raises(InputError, match="--data names what to read"):
        recorded_data(f"imagefolder:{place}", "m.pt", False)
    assert recorded_data(f"imagefolder:{place}", "m.pt", True)


def test_a_link_to_the_root_is_the_root(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to("/")
    with pytest.raises(InputError, match="--data names what to read"):
        recorded_data(f"imagefolder:{tmp_path / 'images'}", "m.pt", False)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ("torchvision:resnet18", True),
        ("torchvision:resnet18?num_classes=10", True),
        ("torchvision:resnet18?weights=None&norm=None", True),
        ("torchvision:resnet18?replace_stride_with_dilation=(False,True,True)", True),
        ("timm:vit_tiny_patch16_224.augreg?img_size=64&act_layer=gelu&drop=0.1", True),
        ("timm:resnet18?pretrained=False", True),
        ("torchvision:resnet18?weights=DEFAULT", False),
        ("torchvision:resnet18?weights=IMAGENET1K_V1", False),
        ("torchvision:fasterrcnn_resnet50_fpn?weights_backbone=DEFAULT", False),
        ("torchvision:lraspp_mobilenet_v3_large?pretrained_backbone=True", False),
        ("timm:resnet18?pretrained=True", False),
        ("timm:resnet18?pretrained=1", False),
        ("timm:resnet18?checkpoint_path=evil.pth", False),
        ("timm:resnet18?pretrained_cfg={'url':'http://host/x'}", False),
        ("timm:resnet18?pretrained_cfg_overlay={'file':'x'}", False),
        ("timm:resnet18?cache_dir=x", False),
        ("timm:resnet18?act_layer=os.system", False),
        ("timm:resnet18?act_layer=a/b", False),
        ("timm:resnet18?names=['ok','../x']", False),
        ("timm:resnet18?thing={'a':1}", False),
        ("timm:hf-hub:owner/model", False),
        ("timm:hf-hub", False),
        ("timm:owner/model", False),
        ("timm:local-dir:x", False),
    ],
)
def test_libraries_networks_with_sizes_alone(spec: str, allowed: bool) -> None:
    if allowed:
        assert recorded_arch(spec, "run.json", False) == spec
        return
    with pytest.raises(InputError, match="run.json: expected torchvision:NAME or timm:NAME without weights on record"):
        recorded_arch(spec, "run.json", False)


@pytest.mark.parametrize(
    ("data", "task", "named"),
    [
        ("digits", None, []),
        ("npz:rows.npz", "regression?unit=mm", []),
        ("npz:rows.npz", "t.py:own?q=0.9", ["--task", "t.py:own?q=0.9"]),
        ("rows.py:made?n=3", "regression", ["--data", "rows.py:made?n=3"]),
        ("rows.py:made", "t.py:own", ["--data", "rows.py:made", "--task", "t.py:own"]),
        ("imagefolder:/", None, ["--data", "imagefolder:/"]),
    ],
)
def test_what_would_be_refused_on_record_is_to_be_named_again(data: str, task: str | None, named: list[str]) -> None:
    assert asked_again(data, task) == named


def test_a_long_spec_is_shown_by_its_ends() -> None:
    spec = "evil.py:run?" + "&".join(f"k{n}={n}" for n in range(5000)) + "&command=rm"
    text = quoted(spec)
    assert len(text) < 200 and text.startswith("'evil.py:run?") and "command=rm'" in text
    assert f"({len(spec):,} characters)" in text
    assert quoted("a\x1b[2Kb\u202e") == repr("a\x1b[2Kb\u202e") and "\x1b" not in quoted("a\x1b[2K")


def test_files_on_record_are_read_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, run, other = (tmp_path / name for name in ("work", "runs/run", "other"))
    for folder in (work, run, other):
        folder.mkdir(parents=True)
        (folder / "m.pt").write_bytes(b"x")
    (work / "out").symlink_to(other)
    (work / "loop").symlink_to("loop")
    (run / "link.pt").symlink_to(other / "m.pt")
    monkeypatch.chdir(work)
    for path in ("m.pt", "./a/../m.pt", str(work / "m.pt"), str(run / "m.pt"), "none.pt", "loop"):
        assert recorded_file(path, "run.json", run, False) == Path(path)
    for path in (
        str(other / "m.pt"), "../other/m.pt", "out/m.pt", str(run / "link.pt"), "/etc/passwd", "/dev/zero",
        "//host/m.pt", r"\\host\m.pt", "a\x00b", "https://host/m.pt", f"{run}/../../other/m.pt", str(run) + "2/m.pt",
    ):  # fmt: skip
        with pytest.raises(InputError, match="run.json: expected a recorded file in the working folder, got '"):
            recorded_file(path, "run.json", run, False)
        assert recorded_file(path, "run.json", run, True) == Path(path)


def test_specs_of_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.py").symlink_to("nets.py")
    base = "nets.py:cnn?width=8&act=relu"
    for other in (
        base,
        "./nets.py:cnn?act=relu&width=8",
        f"{tmp_path}/nets.py:cnn?width=8&act=relu",
        f"link{base[4:]}",
    ):
        assert same_arch(base, other) and same_arch(other, base)
    for other in (
        "nets.py:cnn?width=9&act=relu",
        "nets.py:mlp?width=8&act=relu",
        "a/nets.py:cnn?width=8&act=relu",
        "x",
    ):
        assert not same_arch(base, other)
    assert same_arch("pkg.nets:f?a=1", "pkg.nets:f?a=1") and not same_arch("pkg.nets:f", "pkg/nets:f")


def test_built_in_data_on_record_are_opened(place: Path, program: Any) -> None:
    rng = np.random.default_rng(0)
    np.savez(place / "data.npz", x=rng.random((60, 4), dtype=np.float32), y=np.arange(60) % 3)
    for spec in ("npz:data.npz", f"npz:{place / 'data.npz'}"):
        save_checkpoint(place / "m.pt", program, ModelInfo(input_shape=(4,), data=spec))
        for request in (CompressRequest("m.pt"), ExportRequest("m.pt")):
            _, data = model_and_data(request)
            assert data is not None and len(data.classes) == 3


# -- every field of every record -----------------------------------------------------------------------------------

EVIL = """
import os, pathlib
pathlib.Path(os.path.join({place!r}, "MARKER")).touch()
def run(**options):
    pathlib.Path(os.path.join({place!r}, "MARKER")).touch()
"""
INFO = ModelInfo(
    input_shape=(4,), arch="torchvision:resnet18", classes=("a", "b", "c"), normalization=Normalization((0.0,), (1.0,)),
    data="digits", feature_names=("p", "q", "r", "s"), training=TrainSettings(options={"lam": 0.1}), module="part",
    feature_groups=(("axes", (0, 1)),), task="regression", input_feature_names=(("x", ("p", "q")),),
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL.format(place=str(tmp_path)))
    return tmp_path


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 4))


def test_every_field_is_filled_in_here() -> None:
    assert all(value not in (None, (), {}) for value in dataclasses.asdict(INFO).values())


def _places(value: Any) -> list[tuple[Any, ...]]:
    """The way to every text and number in nested dicts and lists, and to each of these as a whole."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, inner in items for rest in ((), *_places(inner))]


def _with(value: Any, way: tuple[Any, ...], put: Any) -> Any:
    if not way:
        return put
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = _with(value[way[0]], way[1:], put)
    return copy


def _told(act: Any) -> str:
    """What a refusal says; nothing where there is none."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


SPECS = ("evil.py:run", "evil:run", "npz:evil.py:run")


def test_no_field_of_a_models_info_runs_code(place: Path, program: Any) -> None:
    (place / "npz:evil.py").write_text((place / "evil.py").read_text())
    plain, told = info_to_dict(INFO), {}
    ways = _places(plain)
    assert {way[0] for way in ways} == {field.name for field in dataclasses.fields(ModelInfo)}
    save_checkpoint(place / "m.pt", program, INFO)
    checkpoint = torch.load(place / "m.pt", weights_only=True)
    texts = [(name,) for name, value in plain.items() if isinstance(value, str)]
    tries = [(way, "evil.py:run") for way in ways] + [(way, spec) for way in texts for spec in SPECS[1:]]
    for way, spec in tries:
        torch.save({**checkpoint, **_with(plain, way, spec)}, place / "m.pt")
        for request in (CompressRequest("m.pt"), ExportRequest("m.pt")):
            told[way, spec] = _told(lambda request=request: model_and_data(request))
            assert not (place / "MARKER").exists(), way
    assert all(repr(spec) in told[("data",), spec] and "--trust-recorded" in told[("data",), spec] for spec in SPECS)
    assert all(repr(spec) in told[("task",), spec] and "--trust-recorded" in told[("task",), spec] for spec in SPECS)
    torch.save({**checkpoint, "data": "evil.py:run"}, place / "m.pt")
    _told(lambda: model_and_data(CompressRequest("m.pt", trust_recorded=True)))
    assert (place / "MARKER").exists()  # so that the rest of this says something


def test_nor_does_one_of_a_program(place: Path, program: Any) -> None:
    for name in ("data", "arch", "module", "task"):
        save_program(place / "slim.pt2", program, dataclasses.replace(INFO, **{name: "evil.py:run"}))
        for request in (CompressRequest("slim.pt2"), ExportRequest("slim.pt2")):
            _told(lambda request=request: model_and_data(request))
    assert not (place / "MARKER").exists()


def _run(place: Path, program: Any, bare: bool) -> dict[str, Any]:
    """A dense model and what a run.json records of it."""
    if bare:
        torch.save(dict(program.state_dict), place / "dense.pt")
    else:
        save_checkpoint(place / "dense.pt", program, INFO)
        save_program(place / "dense.pt", program, dataclasses.replace(INFO, arch=None, module=None))
    sha256 = "0" if bare else load(place / "dense.pt").sha256
    return {**info_to_dict(INFO), "arch": None, "module": None, "name": "x", "path": "dense.pt", "sha256": sha256}


@pytest.mark.parametrize("bare", [True, False])
def test_no_field_of_a_run_runs_code(place: Path, program: Any, bare: bool) -> None:
    model = _run(place, program, bare)
    info = dataclasses.replace(INFO, module=None)
    said: list[str] = []

    class Told(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    texts = [("arch",), ("path",), ("module",)]
    tries = [(way, "evil.py:run") for way in [*_places(model), ("new",)]]
    for way, spec in tries + [(way, spec) for way in texts for spec in SPECS[1:]]:
        (place / "run.json").write_text(json.dumps({"model": _with({**model, "new": 0}, way, spec)}))
        request = ExportRequest("slim.pt2", targets=("web",) if way in texts else ())
        _told(lambda request=request: dense_network(request, place / "slim.pt2", info, Told()))
        assert not (place / "MARKER").exists(), way
    (place / "run.json").write_text(json.dumps({"model": {**model, "arch": "evil.py:run"}}))
    _told(lambda: dense_network(ExportRequest("slim.pt2"), place / "slim.pt2", info, Told()))
    assert any("run.json: expected torchvision:NAME" in text and "'evil.py:run'" in text for text in said) == bare
    (place / "run.json").write_text(json.dumps({"model": {**model, "arch": "evil.py:run"}}))
    trusting = ExportRequest("slim.pt2", trust_recorded=True)
    _told(lambda: dense_network(trusting, place / "slim.pt2", info, Told()))
    assert (place / "MARKER").exists() == bare


def test_the_dense_network_of_a_run_is_found_where_the_user_works(place: Path, program: Any) -> None:
    model, info = _run(place, program, False), dataclasses.replace(INFO, arch=None, module=None)
    request = ExportRequest("run/slim.pt2", targets=("web",))
    (place / "run").mkdir()
    slim = place / "run" / "slim.pt2"

    def write(**changed: Any) -> None:
        (place / "run" / "run.json").write_text(json.dumps({"model": {**model, **changed}}))

    write()
    found = dense_network(request, slim, info, Silent())
    assert found is not None and found.sha256 == model["sha256"]
    write(arch="nets.py:gone")  # the file carries its network
    assert dense_network(request, slim, info, Silent()) is not None
    write(path="x" * 5000)
    assert "names the dense network" in _told(lambda: dense_network(request, slim, info, Silent()))
    write(path=str(place / "dense.pt"))
    assert dense_network(request, slim, info, Silent()) is not None
    os.chdir(place / "run")
    for asked in (request, dataclasses.replace(request, targets=())):
        told = _told(lambda asked=asked: dense_network(asked, slim, info, Silent()))
        assert ("--web: expected the dense network, got none; give --dense" in told) == bool(asked.targets)
    named = dense_network(dataclasses.replace(request, dense="../dense.pt"), slim, info, Silent())
    assert named is not None
    trusted = dense_network(dataclasses.replace(request, trust_recorded=True), slim, info, Silent())
    assert trusted is not None


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "{}", '{"model": 3}', '{"model": {"path": 3}}', "\x00", "9" * 5000]
)
def test_a_run_that_is_none_names_nothing(place: Path, text: str) -> None:
    (place / "run.json").write_text(text)
    assert dense_network(ExportRequest("slim.pt2"), place / "slim.pt2", INFO, Silent()) is None
