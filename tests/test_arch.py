"""Architectures by name, and what is said when a name or its factory is wrong."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.formats.architectures import build, parse

FACTORIES = """
from torch import nn
SIZE = 3
class Net(nn.Linear):
    def __init__(self, width=4, bias=True, act="relu"):
        super().__init__(2, width, bias=bias)
        self.act = act
def raises():
    helper()
def helper():
    raise KeyError("no such\\nlayer")
def exits():
    raise SystemExit(3)
def number():
    return 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


def _message(spec: str, **overrides: Any) -> str:
    with pytest.raises(InputError) as caught:
        build(spec, **overrides)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"arch {spec}: expected ")
    return str(caught.value)


def test_parse_reads_python_values_and_strings() -> None:
    assert parse("a.b:f?n=3&rate=0.5&shape=(1,2)&flag=True&low=false&none=None&act=gelu&expr=a+b") == (
        "a.b",
        "f",
        {
            "n": 3,
            "rate": 0.5,
            "shape": (1, 2),
            "flag": True,
            "low": False,
            "none": None,
            "act": "gelu",
            "expr": "a+b",
        },
    )
    assert parse("dir.x/my file.py:net") == ("dir.x/my file.py", "net", {})


def test_file_factory_takes_arguments_and_overrides(file: Path) -> None:
    net = build(f"{file}:Net?width=7&bias=False&act=gelu", width=5)
    assert isinstance(net, nn.Linear)
    assert (net.out_features, net.bias, net.act) == (5, None, "gelu")


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 9)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(f"from torch import nn\ndef f():\n    return nn.Linear(1, {width})\n")
    assert [build(f"{tmp_path / folder / 'net.py'}:f").out_features for folder in ("a", "b", "a")] == [3, 9, 3]


def test_a_file_may_import_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "helper_beside_net.py").write_text("WIDTH = 6\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom helper_beside_net import WIDTH\ndef f():\n    return nn.Linear(1, WIDTH)\n"
    )
    assert build(f"{tmp_path / 'net.py'}:f").out_features == 6


def test_module_factory_from_the_working_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename(file.with_name("my_own_nets_for_arch.py"))
    assert build("my_own_nets_for_arch:Net").out_features == 4


def test_dotted_module_factory() -> None:
    assert isinstance(build("torch.nn:Linear?in_features=2&out_features=3"), nn.Linear)


def test_torchvision() -> None:
    pytest.importorskip("torchvision")
    assert build("torchvision:resnet18?num_classes=7").fc.out_features == 7


def test_torchvision_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    net = build("torchvision:lraspp_mobilenet_v3_large?num_classes=3")
    assert net.classifier.low_classifier.out_channels == 3


def test_unknown_names_suggest_close_ones(file: Path) -> None:
    pytest.importorskip("torchvision")
    assert "did you mean resnet18" in _message("torchvision:resnet81")
    assert "did you mean Net?" in _message(f"{file}:Nett")
    assert "did you mean torchvision?" in _message("torchvison:resnet18")


def test_timm_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *rest: Any, **named: Any) -> ModuleType:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    assert "pip install timm" in _message("timm:resnet18")


def test_timm() -> None:
    pytest.importorskip("timm")
    assert build("timm:resnet18?num_classes=3").get_classifier().out_features == 3
    assert "did you mean" in _message("timm:resnet81")


@pytest.mark.parametrize("spec", ["resnet18", ":net", "file.py:", "", "a b:c", "a..b:c", "../x:c:"])
def test_other_spellings_name_the_forms(spec: str) -> None:
    assert "pkg.module:factory" in _message(spec)


def test_bad_arguments(file: Path) -> None:
    assert "key=value" in _message(f"{file}:Net?width")
    assert "key=value" in _message(f"{file}:Net?wi dth=3")
    assert "unexpected keyword argument 'depth'" in _message(f"{file}:Net?depth=3")


def test_missing_file_and_factory(file: Path, tmp_path: Path) -> None:
    assert f"expected the file {tmp_path / 'no.py'}, got none" in _message(f"{tmp_path / 'no.py'}:f")
    assert "expected a known name, got 'none_like_it'" in _message(f"{file}:none_like_it")
    assert "expected a function or class 'SIZE', got a int" in _message(f"{file}:SIZE")


def test_a_factory_that_fails_names_error_and_line(file: Path) -> None:
    line = FACTORIES.splitlines().index('    raise KeyError("no such\\nlayer")') + 1
    assert f"KeyError: 'no such\\nlayer' (at {file}:{line} in helper)" in _message(f"{file}:raises")
    assert "SystemExit: 3" in _message(f"{file}:exits")
    assert "expected an nn.Module from 'number', got int" in _message(f"{file}:number")


def test_a_file_that_fails_names_error_and_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ny = x +\n")
    assert f"SyntaxError: invalid syntax (broken.py, line 2) (at {tmp_path / 'broken.py'}:2)" in _message(
        f"{tmp_path / 'broken.py'}:f"
    )
    (tmp_path / "raising.py").write_text("\nimport no_such_package_here\n")
    message = _message(f"{tmp_path / 'raising.py'}:f")
    assert "No module named 'no_such_package_here'" in message
    assert "raising.py:2" in message


def test_a_missing_import_inside_a_module_is_not_a_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_with_missing_import.py").write_text("import no_such_package_here\n")
    monkeypatch.chdir(tmp_path)
    assert "'no_such_package_here'" in _message("module_with_missing_import:f")
