"""Weights that are mixtures of templates: trained, kept in a checkpoint, folded by onnxruntime from a small file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeprune.cli.app import main
from edgeprune.data import open_data
from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.onnx import export_onnx
from edgeprune.export.sharing import check_folded, operators, with_templates
from edgeprune.formats.load import load
from edgeprune.graph.capture import capture
from edgeprune.graph.templates import Family, Mixture, Tiling, families
from edgeprune.methods import Method, Subject, make_method
from edgeprune.methods.shared_weights import SharedTemplates
from edgeprune.progress import Silent
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training import StateFile, fit

NET = """
from torch import nn

def cnn():
    layers = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    for width, further in ((8, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(width, further, 3, padding=1, bias=False), nn.BatchNorm2d(further), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    return nn.Sequential(*layers)
"""
SETTINGS = TrainSettings(epochs=3, batch_size=128, method="shared-weights", options={"templates": 2}, threads=1)


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return open_data("digits")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    own: dict[str, Any] = {}
    exec(NET, own)  # noqa: S102 - the source above, which the command line reads from a file
    made: nn.Module = own["cnn"]()
    return made


def method_of(module: nn.Module, n_templates: int) -> SharedTemplates:
    found = make_method("shared-weights", Subject(module, None, 10, {"templates": n_templates}))
    assert isinstance(found, SharedTemplates)
    return found


# -- tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "tile"), [((6, 4), (3, 2)), ((4, 6, 3, 3), (4, 2, 3, 3)), ((8, 2, 5), (2, 2, 5))])
def test_tiles_are_cut_row_by_row_and_joined_again(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    tiling = Tiling(shape, tile)
    weight = torch.randn(shape)
    tiles = tiling.cut(weight)
    assert tiling.fits and tiles.shape == (tiling.n_tiles, np.prod(tile))
    assert torch.equal(tiling.joined(tiles), weight)
    assert torch.equal(tiles[1].reshape(tile), weight[: tile[0], tile[1] :][:, : tile[1]]) or tiling.columns == 1


def test_of_the_shapes_that_divide_others_the_one_is_taken_that_saves_most() -> None:
    shapes = {"a": (16, 16, 3, 3), "b": (32, 16, 3, 3), "c": (32, 32, 3, 3), "stem": (16, 3, 3, 3), "head": (10, 32)}
    [family] = families(shapes, 2)
    assert family.tile == (16, 16, 3, 3) and list(family.members) == ["a", "b", "c"] and family.n_tiles == 1 + 2 + 4
    assert family.size == 7 * 2304 and family.size_of(2) == 2 * 2304 + 14 and family.most_templates == 6
    # A small tile has too few numbers for as many templates, a large one has not.
    many = {"tiny": (2, 2), "wide": (4, 4), **{f"layer {k}": (64, 64) for k in range(9)}}
    assert families(many, 3)[0].tile == (64, 64)
    assert families({"a": (4, 4), "b": (4, 4, 1)}, 1) == () and families({"a": (4, 6), "b": (6, 4)}, 1) == ()


def test_the_weights_left_over_share_among_themselves() -> None:
    found = families({"a": (8, 8), "b": (8, 8), "c": (9, 5), "d": (9, 5), "e": (9, 10)}, 1)
    assert [set(family.members) for family in found] == [{"c", "d", "e"}, {"a", "b"}]


def test_mixtures_of_as_many_templates_as_there_are_directions_are_the_weights() -> None:
    torch.manual_seed(0)
    base = torch.randn(2, 4, 6)
    weights = {str(k): torch.einsum("n,nij->ij", torch.randn(2), base) for k in range(5)}
    family = Family((4, 6), {name: Tiling((4, 6), (4, 6)) for name in weights})
    mixture = Mixture.of(family, weights, 2)
    for name, weight in weights.items():
        torch.testing.assert_close(mixture.weight(name), weight)
    fewer = Mixture.of(family, weights, 1)
    for name, weight in weights.items():  # each as long as it was
        torch.testing.assert_close(fewer.weight(name).norm(), weight.norm())


def test_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    family = Family((2, 3), {"a": Tiling((4, 6), (2, 3)), "b": Tiling((2, 3), (2, 3)), "c": Tiling((2, 6), (2, 3))})
    templates = torch.randn(2, 2, 3, requires_grad=True)
    coefficients = {name: torch.randn(own.n_tiles, 2, requires_grad=True) for name, own in family.members.items()}
    mixture = Mixture(family, templates, coefficients)
    (mixture.weight("a").square().sum() + mixture.weight("b").sin().sum()).backward()
    with torch.no_grad():
        given = {"a": 2 * mixture.weight("a"), "b": mixture.weight("b").cos()}
        own, parts = mixture.gradients(given)
    assert templates.grad is not None
    torch.testing.assert_close(own, templates.grad)
    assert list(parts) == ["a", "b"]  # c has had no part in it
    for name, part in parts.items():
        torch.testing.assert_close(part, coefficients[name].grad)


# -- training ----------------------------------------------------------------------------------------------------------


def test_what_is_trained_are_templates_and_coefficients(digits: DataSource) -> None:
    module, kept = net(), []
    fit(module, digits, digits.normalization, SETTINGS, finished=kept.append)
    [method] = kept
    assert isinstance(method, SharedTemplates)
    [mixture] = method.mixtures
    assert mixture.family.tile == (16, 8, 3, 3) and mixture.family.n_tiles == 1 + 2 + 2
    trained = dict(method.trained())
    assert set(mixture.family.members).isdisjoint(trained) and len(trained) == len({id(p) for p in trained.values()})
    n_trained = sum(param.numel() for param in trained.values())
    saved = mixture.family.saved(2)
    assert saved > 0 and n_trained == sum(param.numel() for param in module.parameters()) - saved
    state = module.state_dict()
    for name in mixture.family.members:
        torch.testing.assert_close(mixture.weight(name).detach(), state[name])
    before = method_of(net(), 2).mixtures[0]
    assert not torch.equal(before.templates, mixture.templates)
    assert all(not torch.equal(before.coefficients[name], own) for name, own in mixture.coefficients.items())


class Stop(Silent):
    def advance(self, done: int, total: int, note: str = "") -> None:
        if done == 20:
            raise KeyboardInterrupt


def test_a_training_goes_on_as_if_it_had_not_stopped(digits: DataSource, tmp_path: Path) -> None:
    kept: list[Method] = []
    whole, stopped, resumed = net(), net(), net(9)
    expected = fit(whole, digits, digits.normalization, SETTINGS, finished=kept.append)
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, digits.normalization, SETTINGS, Stop(), checkpoint=StateFile(file, {}))
    state = StateFile(file, {}, resume=True)
    assert fit(resumed, digits, digits.normalization, SETTINGS, checkpoint=state, finished=kept.append) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    first, second = (method.kept() for method in kept)
    for name, tensors in first.items():
        assert all(torch.equal(tensor, second[name][key]) for key, tensor in tensors.items())


def test_layers_that_hold_their_weights_elsewhere_share_as_well(digits: DataSource) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(17, 8)
            self.rows, self.head = nn.LSTM(8, 8, num_layers=2, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rows(self.table((x.flatten(1) * 16).long().clamp(0, 16)))[0].mean(dim=1))

    module, kept = Sequence(), []
    few = TrainSettings(epochs=1, batch_size=512, method="shared-weights", options={"templates": 2}, threads=1)
    fit(module, digits, digits.normalization, few, finished=kept.append)
    [mixture] = kept[0].mixtures
    assert len(mixture.family.members) == 4 and "table.weight" not in mixture.family.members
    for name in mixture.family.members:
        torch.testing.assert_close(mixture.weight(name).detach(), module.state_dict()[name])


@pytest.mark.parametrize(
    ("module", "n_templates", "message"),
    [
        (net(), 9, r"expected at most \d+, got 9: with their coefficients they are [\d,]+ numbers in place of the "),
        (nn.Sequential(nn.Linear(64, 20), nn.Linear(20, 10)), 1, "expected two layers whose weights can be cut into"),
        (
            nn.Linear(64, 1),
            1,
            "of one kernel and with sizes that one of them divides, in Linear, got none of two dims in float32",
        ),
    ],
)
def test_what_saves_nothing_is_refused_with_figures(module: nn.Module, n_templates: int, message: str) -> None:
    with pytest.raises(InputError, match=f"--templates: {message}" if n_templates > 1 else message):
        method_of(module, n_templates)


def test_the_most_that_is_named_in_a_refusal_can_be_had() -> None:
    with pytest.raises(InputError) as caught:
        method_of(net(), 999)
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert method_of(net(), most).mixtures
    with pytest.raises(InputError, match=f"at most {most}, got {most + 1}"):
        method_of(net(), most + 1)


def test_averages_and_counts_out_of_range_are_refused(digits: DataSource, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeprune.settings import Recipe

    with pytest.raises(InputError, match="ema: expected a training without shared weights, which an average"):
        fit(net(), digits, digits.normalization, replace(SETTINGS, recipe=Recipe(ema=0.9)))
    for value in ("0", "-3", "1.5"):
        assert main(["train", "--arch", "x.py:net", "--data", "digits", "--out", "m.pt", "--templates", value]) == 2
        assert "'--templates': expected a whole number of at least 1, got" in capsys.readouterr().err


# -- as a user types it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "net.py").write_text(NET)
    command = ["train", "--arch", f"{folder}/net.py:cnn", "--data", "digits", "--epochs", "6", "--threads", "1"]
    assert main([*command, "--method", "shared-weights", "--templates", "2", "--out", f"{folder}/m.pt"]) == 0
    return folder / "m.pt"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    out = trained.parent / "onnx"
    assert main(["export", "--onnx", str(trained), "--data", "digits", "--out", str(out), "--normalize", "data"]) == 0
    return out


def test_a_checkpoint_holds_the_weights_and_their_templates(trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    own: dict[str, Any] = {}
    exec(NET, own)  # noqa: S102
    own["cnn"]().load_state_dict(content["state_dict"])  # in plain PyTorch
    model = load(trained)
    [templates] = model.shared
    assert templates.templates.shape[0] == 2 and len(templates.coefficients) == 3
    assert model.info.training is not None and model.info.training.options == {"templates": 2}
    again = model.info.training.for_finetuning()
    assert again.method is None and again.options == {}
    asked = replace(SETTINGS, optimizer="sgd", lr=0.07, weight_decay=1e-3, options={"momentum": 0.8, "templates": 2})
    asked = replace(asked, method="shared-weights", schedule="step")
    assert asked.keeps_last and not asked.makes_zeros  # nothing of how it was trained was for zeros
    assert asked.for_finetuning() == replace(asked, method=None, options={"momentum": 0.8})


def test_the_small_file_answers_as_the_plain_one_and_runs_the_same_operators(exported: Path) -> None:
    plain, small = exported / "m.onnx", exported / "m.shared.onnx"
    assert small.stat().st_size < 0.8 * plain.stat().st_size
    held = {tensor.name for tensor in onnx.load(small).graph.initializer}
    assert any("coefficients" in name for name in held) and "templates" in held
    assert operators(plain) == operators(small)
    assert not {"MatMul", "Transpose", "Mul"} & set(operators(small))
    x = np.random.default_rng(0).standard_normal((33, 1, 8, 8)).astype(np.float32)
    sessions = [ort.session(path) for path in (plain, small)]
    np.testing.assert_allclose(*(ort.run(session, x) for session in sessions), atol=1e-5)
    with torch.no_grad():
        wanted = load(exported.parent / "m.pt").program.module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ort.run(sessions[1], x), wanted, atol=1e-5)


def test_a_small_file_that_fails_is_left_out_beside_the_right_plain_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unfolded(plain: Path, small: Path) -> None:
        raise ParityError(f"{small.name}: expected onnxruntime to fold the templates, got 1 MatMul more")

    monkeypatch.setattr("edgeprune.commands.sharing.check_folded", unfolded)
    command = ["export", "--onnx", str(trained), "--data", "digits", "--out", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["left_out"] == ["m.shared.onnx: expected onnxruntime to fold the templates, got 1 MatMul more"]
    assert {"m.onnx", "features.json"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert "m.shared.onnx" not in {file.name for file in (tmp_path / "out").iterdir()}
    assert main([*command, "--force"]) == 0
    assert "left out" in " ".join(capsys.readouterr().out.split())


def test_validate_takes_the_small_file(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", f"{exported}/m.onnx", f"{exported}/m.shared.onnx", "--data", "digits", "--normalize", "data"]
    assert main([*command, "--allow-chance", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["accuracy"]["slim"] == record["accuracy"]["dense"] and not record["failures"]


def test_other_targets_are_made_of_the_plain_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--ort", str(trained), "--data", "digits", "--out", str(tmp_path)]) == 0
    assert "--onnx writes a smaller file beside it" in capsys.readouterr().err
    assert not (tmp_path / "m.shared.onnx").exists() and (tmp_path / "m.ort").exists()


@pytest.mark.parametrize("further", [("--batch", "2"), ("--preprocess", "fold")], ids=str)
def test_the_small_file_takes_what_the_plain_one_takes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], further: tuple[str, ...]
) -> None:
    out = str(tmp_path / "out")
    assert main(["export", "--onnx", str(trained), "--data", "digits", "--out", out, *further, "--json"]) == 0
    files = {Path(file["path"]).name: file for file in json.loads(capsys.readouterr().out)["files"]}
    assert files["m.shared.onnx"]["parity"] < 1e-4
    assert files["m.shared.onnx"]["size_bytes"] < files["m.onnx"]["size_bytes"]
    plain, small = (ort.session(tmp_path / "out" / name) for name in ("m.onnx", "m.shared.onnx"))
    [taken], [also] = plain.get_inputs(), small.get_inputs()
    assert (taken.shape, taken.type) == (also.shape, also.type)
    assert main(["export", "--onnx", str(trained), "--data", "digits", "--out", out]) == 2
    assert main(["export", "--c-header", str(trained), "--data", "digits", "--out", out, "--force"]) == 0
    assert not (tmp_path / "out" / "m.shared.onnx").exists()  # the files of one export lie there


@pytest.mark.slow
def test_compress_says_that_what_it_cuts_no_longer_shares(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", str(trained), "--keep-macs", "0.6", "--max-drop", "90", "--finetune-epochs", "0"]
    arch = ["--data", "digits", "--allow-chance", "--no-reconstruct"]
    assert main([*command, *arch, "--out", str(tmp_path / "run")]) == 0
    assert "what is left of 3 weights of shared templates is stored in full" in capsys.readouterr().err
    assert load(tmp_path / "run" / "slim.pt2").shared == ()


def _weights_changed(content: dict[str, Any]) -> None:
    name = next(iter(content["shared"][0]["coefficients"]))
    content["state_dict"][name] = content["state_dict"][name] + 0.01


def _coefficients_cut(content: dict[str, Any]) -> None:
    own = content["shared"][0]["coefficients"]
    own.update({name: tensor[:1] for name, tensor in own.items()})


def _unknown(content: dict[str, Any]) -> None:
    content["shared"][0]["coefficients"]["no.such"] = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_weights_changed, "expected the mixture of the templates that stand beside it, got a weight that is off by"),
        (_coefficients_cut, r"expected coefficients \(\d, 2\), got \(1, 2\)"),
        (_unknown, "expected weights of the network, got 'no.such'"),
        (lambda content: content.update(shared=3), "shared: expected a list of templates, got a int"),
        (lambda content: content.update(shared=[3]), "shared 0: expected templates"),
        (lambda content: content["shared"].append(content["shared"][0]), "shared: expected each weight once"),
        (lambda content: content["shared"][0].update(coefficients={}), "coefficients: expected tensors by name"),
        (lambda content: content["shared"][0].update(templates=torch.ones(2, 3, 5)), "expected a float32 weight in"),
        (lambda content: content["shared"][0]["templates"].fill_(float("nan")), "got a weight that is off by nan"),
    ],
)
def test_templates_that_do_not_fit_are_refused(trained: Path, tmp_path: Path, change: Any, message: str) -> None:
    content = torch.load(trained, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "other.pt")


def test_templates_that_are_parameters_are_read_and_exported(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained, weights_only=True)
    for own in content["shared"]:
        own["templates"] = nn.Parameter(own["templates"])
        own["coefficients"] = {name: nn.Parameter(value) for name, value in own["coefficients"].items()}
    torch.save(content, tmp_path / "m.pt")
    assert main(["export", "--onnx", f"{tmp_path}/m.pt", "--data", "digits", "--out", f"{tmp_path}/out"]) == 0
    assert (tmp_path / "out" / "m.shared.onnx").is_file()


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_weights_that_the_exporter_transposed_are_made_of_templates_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
    method = method_of(module, 2)
    method.begin(training=False)
    program = capture(module, torch.randn(3, 5, 24))
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    export_onnx(program, plain)
    weights = {name: tensor.detach().numpy() for name, tensor in program.state_dict.items()}
    mixtures = [Mixture.told(own, {n: w.shape for n, w in weights.items()}) for own in method.templates]
    proto, shared, whole = with_templates(onnx.load(plain), mixtures, weights)
    assert set(shared) == {"0.weight", "2.weight", "4.weight"} and whole == ()
    onnx.save(proto, small)
    check_folded(plain, small)
    x = torch.randn(7, 5, 24)
    got = ort.run(ort.session(small), x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, module(x).numpy(), atol=1e-5)
    # Read back, it is a network like any other.
    back = load(small).program.module()
    with torch.no_grad():
        np.testing.assert_allclose(back(x).numpy(), module(x).numpy(), atol=1e-5)


def test_a_file_that_a_runtime_would_not_fold_is_refused(tmp_path: Path) -> None:
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    export_onnx(capture(nn.Linear(4, 4), torch.randn(2, 4)), plain)
    proto = onnx.load(plain)
    proto.graph.node[-1].output[0], out = "inner", proto.graph.node[-1].output[0]
    proto.graph.node.append(onnx.helper.make_node("Sin", ["inner"], [out]))
    onnx.save(proto, small)
    with pytest.raises(ParityError, match="small.onnx: expected onnxruntime to fold the templates .* got 1 Sin more"):
        check_folded(plain, small)


def test_weights_that_are_not_in_the_graph_are_told() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    [own] = method_of(module, 1).templates
    mixture = Mixture.told(own, {"0.weight": (6, 6), "1.weight": (6, 6)})
    weights = {name: mixture.weight(name).numpy() for name in own.coefficients}
    held = [onnx.numpy_helper.from_array(weights["0.weight"], "w"), onnx.numpy_helper.from_array(np.eye(6), "i")]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 6]) for name in "xy"]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:], held))
    _, shared, whole = with_templates(proto, [mixture], weights)
    assert shared == ("0.weight",) and whole == ("1.weight",)
